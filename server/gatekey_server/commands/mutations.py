"""What every mutation has in common: one transaction, its audit event, and calls that are safe to repeat."""

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
"""Raises a `GatekeyError` for a caller that may not do what is asked for."""


class WaitUntilVisible(Protocol):
    """What happens after the commit. `event` is where the mutation's audit event stands, if it left one."""

    async def __call__(self, commit: Commit, event: AuditPosition | None, *, wait: bool) -> None:
        """With `wait`, return once no process can answer from snapshots older than the commit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation(Generic[R]):
    """A caller's wish to change something, apart from what it is."""

    caller: Caller
    identify_again: Callable[[Connection], Awaitable[Caller]]
    """Identifies the caller as of a statement of a transaction. Raises `Unauthenticated` (`TOKEN_INVALID`)."""
    verb: str
    """What is done, as in `CreateApiKey`."""
    actor: PrincipalName | None = None
    """On whose behalf; None: the caller's own."""
    validate_only: bool = False
    """Do everything but keep it."""
    request_id: uuid.UUID | None = None
    """Repetitions with the same id are answered from `answer`."""
    fingerprint: bytes = b""
    """SHA-256 of the method and the request."""
    answer: Callable[[R], bytes] = lambda _: b""
    """Writes the answer, before the commit; kept for repetitions. No secret is in it."""
    wait_until_visible: WaitUntilVisible
    """Waits until a revision is known everywhere."""
    demands: list[Demand] = field(default_factory=list)
    """What the caller has met so far."""

    def demand(self, demand: Demand) -> None:
        """Have the caller meet a demand now, and once more before the commit. Raises as the demand."""
        demand(self.caller)
        self.demands.append(demand)

    def require(self, path: Path, action: str) -> None:
        """Refuse the caller unless it may do the action. Raises as `Caller.require`."""
        self.demand(lambda caller: caller.require(path, action))

    async def judge_again(self, connection: Connection, held: Caller | None = None) -> None:
        """Refuse a caller whose token has ended, or gives less, since the call came. Raises as the demands.

        `held` is the caller where nobody else can have changed its token since.
        """
        caller = held or await self.identify_again(connection)
        for demand in self.demands:
            demand(caller)


@dataclass(frozen=True, slots=True)
class MutationOutcome(Generic[R]):
    """What a mutation did."""

    result: R
    target: ProductName | TenantName | PrincipalName | ApiKeyName
    before: Description | None
    after: Description | None


class Replayed(Exception):
    """The call is a repetition: nothing was done, and `answer` is what the first one was answered."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.answer = answer


class _Validated(Exception):
    """Takes the result out of a transaction that must not be kept."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self.result = result


async def run(
    database: Database,
    mutation: Mutation[R],
    within: ProductName | TenantName,
    work: Callable[[Connection], Awaitable[MutationOutcome[R]]],
) -> R:
    """Do `work` in one transaction with its audit event; the caller was authorised before, and is once more at its end.

    Returns once no check that starts afterwards, on any process, is answered from what was before.
    `work` holds the lock of `within`, the tenant or the product that its target belongs to. A change that
    changed nothing leaves no event. Raises `Replayed`, and `AlreadyExists` (`REQUEST_ID_REUSED`) for
    the id of another request.
    """

    if not mutation.demands:
        raise AssertionError("a mutation demands something of its caller")
    demanded = len(mutation.demands)

    async def attempt(connection: Connection) -> tuple[MutationOutcome[R] | Replayed, Commit, AuditPosition | None]:
        del mutation.demands[demanded:]
        held = await _hold_caller(connection, mutation, within)
        # Afterwards the token may be gone, and with it what people call it.
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
        # Whatever cannot be told must not be done. To write it down takes some milliseconds where it is large.
        await pauses.pause()
        answer = mutation.answer(change.result)
        await pauses.pause()
        if mutation.request_id is not None:
            await audit.finish_request(connection, _caller(mutation), mutation.request_id, answer)
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
        # The first call may still be waiting, or whoever made it has not.
        await mutation.wait_until_visible(commit, None, wait=True)
        raise change
    # What was not there before is in no cache. What was already as it should be may have just become so.
    is_creation = change.before is None and change.after is not None
    await mutation.wait_until_visible(commit, event, wait=not is_creation)
    return change.result


async def _hold_caller(
    connection: Connection, mutation: Mutation[Any], within: ProductName | TenantName
) -> Caller | None:
    """The caller as it is before `work`, where that may end the caller's own token or take something from it.

    The lock of its tenant keeps everybody else from doing so before the commit. None where `work` is about another
    tenant. Raises `Unauthenticated` (`TOKEN_INVALID`).
    """
    own = mutation.caller.name.parent
    if within != own:
        return None
    await products.lock_shared(connection, ProductName(own.product))
    await tenants.lock(connection, own)
    return await mutation.identify_again(connection)


async def conclude(connection: Connection, mutation: Mutation[Any], held: Caller | None = None) -> Commit:
    """Take the revision of a transaction and judge its caller again; not much but the commit should follow.

    In this order: revisions are the order of commits, so whatever changes the caller's token after this judgement
    is committed after this transaction.
    """
    commit = await changes.take_position(connection)
    await mutation.judge_again(connection, held)
    return commit


async def refuse_repetition(database: Database, mutation: Mutation[R]) -> None:
    """For what works in several transactions, of which only the last is `run`: raise as `run` before the first."""
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
    """Refuse a change of something that has changed since. Raises `Aborted` (`ETAG_MISMATCH`)."""
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


def _replay(mutation: Mutation[R], fingerprint: bytes, answer: bytes | None) -> Replayed:
    if fingerprint != mutation.fingerprint or answer is None:
        raise AlreadyExists("REQUEST_ID_REUSED", "another request had this `request_id`")
    return Replayed(answer)


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
    """The product and the tenant that something belongs to; no tenant for a product."""
    if isinstance(target, ProductName):
        return target.product, ""
    tenant = target if isinstance(target, TenantName) else target.parent
    return tenant.product, tenant.tenant


def _caller(mutation: Mutation[R]) -> str:
    return str(mutation.caller.name)
