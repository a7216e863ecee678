"""The common frame of all mutations: one transaction, its audit event, and replays by request id."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar, cast

from gatekey.core.audit import AuditPosition, Description
from gatekey.core.changes import Commit
from gatekey.core.errors import Aborted, AlreadyExists
from gatekey.core.grants import Path
from gatekey.core.names import ApiKeyName, PrincipalName, ProductName, TenantName

from gatekey_server.authorization.callers import Caller
from gatekey_server.commands import events
from gatekey_server.store import audit, changes, pauses, products, tenants
from gatekey_server.store.database import Connection, Database

R = TypeVar("R")
Demand = Callable[[Caller], None]
"""A check of the caller. It raises a `DomainError` for a caller that may not make the change."""


class WaitUntilVisible(Protocol):
    """Called after the commit. `event` is the position of the mutation's audit event, if there is one."""

    async def __call__(self, commit: Commit, event: AuditPosition | None, *, wait: bool) -> None:
        """With `wait`, return once no process decides from snapshots older than the commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation(Generic[R]):
    """Options common to all mutations."""

    caller: Caller
    identify_again: Callable[[Connection], Awaitable[Caller]]
    """Returns the caller as of a statement of a transaction. Raises `Unauthenticated` (`TOKEN_INVALID`)."""
    verb: str
    """The method, as in `CreateApiKey`."""
    actor: PrincipalName | None = None
    """The principal on whose behalf the change is made; None for the caller itself."""
    validate_only: bool = False
    """Do everything except commit."""
    request_id: uuid.UUID | None = None
    """Repeated calls with the same id return the stored response."""
    fingerprint: bytes = b""
    """SHA-256 of the method and the request."""
    serialize_response: Callable[[R], bytes] = lambda _: b""
    """Serializes the response, before the commit. It is stored for repeated calls, and holds no secret."""
    wait_until_visible: WaitUntilVisible
    """Waits until the commit is visible everywhere."""
    demands: list[Demand] = field(default_factory=list)
    """The checks that the caller has passed so far."""

    def demand(self, demand: Demand) -> None:
        """Check the caller now, and again before the commit. Raises as the demand."""
        demand(self.caller)
        self.demands.append(demand)

    def require(self, path: Path, action: str) -> None:
        """Raise as `Caller.require` unless the caller may do the action, now and again before the commit."""
        self.demand(lambda caller: caller.require(path, action))

    async def judge_again(self, connection: Connection, held: Caller | None = None) -> None:
        """Check the caller again: its token may have expired or lost permissions since the call came.

        `held` is the caller where a lock has kept its token unchanged since. Raises as the demands.
        """
        caller = held or await self.identify_again(connection)
        for demand in self.demands:
            demand(caller)


@dataclass(frozen=True, slots=True)
class MutationOutcome(Generic[R]):
    """The result of a mutation, and its target before and after."""

    result: R
    target: ProductName | TenantName | PrincipalName | ApiKeyName
    before: Description | None
    after: Description | None


class Replayed(Exception):
    """The call is a repetition: nothing was done, and `response` is the response to the first call."""

    def __init__(self, response: bytes) -> None:
        super().__init__()
        self.response = response


class _Validated(Exception):
    """Carries the result out of a transaction that must be rolled back."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result


async def run(
    database: Database,
    mutation: Mutation[R],
    within: ProductName | TenantName,
    work: Callable[[Connection], Awaitable[MutationOutcome[R]]],
) -> R:
    """Run `work` in one transaction with its audit event. The caller is authorised before, and again at the end.

    Returns once no check that starts afterwards, on any process, is decided from older snapshots. `work` locks
    `within`, the tenant or product that its target belongs to. A mutation that changed nothing leaves no event.
    Raises `Replayed`, and `AlreadyExists` (`REQUEST_ID_REUSED`) for the id of another request.
    """

    if not mutation.demands:
        raise AssertionError("a mutation demands something of its caller")
    demanded = len(mutation.demands)

    async def attempt(connection: Connection) -> tuple[MutationOutcome[R] | Replayed, Commit, AuditPosition | None]:
        del mutation.demands[demanded:]
        held = await _hold_caller(connection, mutation, within)
        # Read now: `work` may delete the caller's token, and with it the display name that the event holds.
        head = None if held is None else await audit.head(connection, *chain(within), mutation.caller.snapshot.uid)
        if mutation.validate_only:
            result = (await work(connection)).result
            await mutation.judge_again(connection, held)
            raise _Validated(result)
        if mutation.request_id is not None:
            replayed = await _claim(connection, mutation, mutation.request_id)
            if replayed is not None:
                return replayed, await conclude(connection, mutation, held), None
        change = await work(connection)
        # A change whose response cannot be serialized must not be committed. Large ones take some milliseconds.
        await pauses.pause()
        response = mutation.serialize_response(change.result)
        await pauses.pause()
        if mutation.request_id is not None:
            await audit.finish_request(connection, _caller(mutation), mutation.request_id, response)
        is_change = change.before != change.after
        if is_change and head is None:
            head = await audit.head(connection, *chain(change.target), mutation.caller.snapshot.uid)
        commit = await conclude(connection, mutation, held)
        event = None
        if is_change and head is not None:
            event = await _append_event(connection, mutation, change, head, commit.position.revision)
        return change, commit, event

    try:
        change, commit, event = await database.transaction(attempt, scope=chain(within))
    except _Validated as validated:
        return cast("R", validated.result)
    if isinstance(change, Replayed):
        # The first call may not have waited to the end, so the repetition waits as well.
        await mutation.wait_until_visible(commit, None, wait=True)
        raise change
    # A creation is in no cache yet. A no-op may race with the call that made the change, so it waits.
    is_creation = change.before is None and change.after is not None
    await mutation.wait_until_visible(commit, event, wait=not is_creation)
    return change.result


async def _hold_caller(
    connection: Connection, mutation: Mutation[Any], within: ProductName | TenantName
) -> Caller | None:
    """Return the caller as it is before `work`, where `work` may change the caller's own token.

    The lock of its tenant keeps all others from changing the token before the commit. None where `work` is in another
    tenant. Raises `Unauthenticated` (`TOKEN_INVALID`).
    """
    own = mutation.caller.name.parent
    if within != own:
        return None
    await products.lock_shared(connection, ProductName(own.product))
    await tenants.lock(connection, own)
    return await mutation.identify_again(connection)


async def conclude(connection: Connection, mutation: Mutation[Any], held: Caller | None = None) -> Commit:
    """Take the revision of a transaction, then check its caller again. Little but the commit should follow.

    The order matters: revisions have the order of commits, so a change of the caller's token after this check
    commits after this transaction.
    """
    commit = await changes.take_position(connection)
    await mutation.judge_again(connection, held)
    return commit


async def refuse_repetition(database: Database, mutation: Mutation[R]) -> None:
    """Raise as `run` for a repetition. For commands of several transactions, of which only the last is `run`."""
    if mutation.request_id is None or mutation.validate_only:
        return
    async with database.connection() as connection:
        known = await audit.lock_request(connection, _caller(mutation), mutation.request_id)
        if known is not None:
            await mutation.judge_again(connection)
    if known is not None:
        replayed = _replay(mutation, *known)
        await mutation.wait_until_visible(await changes.current_position(database), None, wait=True)
        raise replayed


def check_etag(wanted: str, current: str) -> None:
    """Raise `Aborted` (`ETAG_MISMATCH`) where the target has changed since the caller read it."""
    if wanted and wanted != current:
        raise Aborted("ETAG_MISMATCH", "it has changed since; read it again", metadata={"etag": current})


async def _claim(connection: Connection, mutation: Mutation[R], request_id: uuid.UUID) -> Replayed | None:
    caller = _caller(mutation)
    if await audit.begin_request(connection, caller, request_id, mutation.fingerprint):
        return None
    known = await audit.lock_request(connection, caller, request_id)
    if known is None:
        raise AssertionError("a claimed request is there")
    return _replay(mutation, *known)


def _replay(mutation: Mutation[R], fingerprint: bytes, response: bytes | None) -> Replayed:
    if fingerprint != mutation.fingerprint or response is None:
        raise AlreadyExists("REQUEST_ID_REUSED", "another request had this `request_id`")
    return Replayed(response)


async def _append_event(
    connection: Connection, mutation: Mutation[R], change: MutationOutcome[R], head: audit.Head, revision: int
) -> AuditPosition:
    return await events.append(
        connection,
        head,
        time=mutation.caller.now,
        verb=mutation.verb,
        target=str(change.target),
        caller=_caller(mutation),
        actor=str(mutation.actor) if mutation.actor else "",
        request_id=str(mutation.request_id) if mutation.request_id else "",
        before=change.before,
        after=change.after,
        revision=revision,
    )


def chain(target: ProductName | TenantName | PrincipalName | ApiKeyName) -> tuple[str, str]:
    """Return the ids of the product and the tenant that a target belongs to; an empty tenant for a product."""
    if isinstance(target, ProductName):
        return target.product, ""
    tenant = target if isinstance(target, TenantName) else target.parent
    return tenant.product, tenant.tenant


def _caller(mutation: Mutation[R]) -> str:
    return str(mutation.caller.name)
