"""What every mutation has in common: one transaction, its audit event, and calls that are safe to repeat."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar, cast

from gatekey_server.commands import events
from gatekey_server.commands.callers import Caller
from gatekey_server.commands.events import Place
from gatekey_server.domain.audit import Description
from gatekey_server.domain.errors import Aborted, AlreadyExists
from gatekey_server.domain.names import ApiKeyName, PrincipalName, ProductName, TenantName
from gatekey_server.store import audit, changes
from gatekey_server.store.database import Connection, Database

R = TypeVar("R")


class Settle(Protocol):
    """What happens after the commit. `event` is where the mutation's audit event stands, if it left one."""

    async def __call__(self, revision: int, event: Place | None, *, wait: bool) -> None:
        """With `wait`, return once no process can answer from facts older than the revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation(Generic[R]):
    """A caller's wish to change something, apart from what it is."""

    caller: Caller
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
    """Writes the answer to repetitions. No secret is in it."""
    settle: Settle
    """Waits until a revision is known everywhere."""


@dataclass(frozen=True, slots=True)
class Change(Generic[R]):
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


async def run(database: Database, mutation: Mutation[R], work: Callable[[Connection], Awaitable[Change[R]]]) -> R:
    """Do `work` in one transaction with its audit event; the caller was authorised before.

    Returns once no check that starts afterwards, on any process, is answered from what was before.
    `work` holds the lock of the tenant, or of the product, that its target belongs to. A change that
    changed nothing leaves no event. Raises `Replayed`, and `AlreadyExists` (`REQUEST_ID_REUSED`) for
    the id of another request.
    """

    async def attempt(connection: Connection) -> tuple[Change[R] | Replayed, int, Place | None]:
        if mutation.validate_only:
            raise _Validated((await work(connection)).result)
        if mutation.request_id is not None:
            replayed = await _claim(connection, mutation, mutation.request_id)
            if replayed is not None:
                return replayed, await changes.take_revision(connection), None
        change = await work(connection)
        if mutation.request_id is not None:
            answer = mutation.answer(change.result)
            await audit.finish_request(connection, _caller(mutation), mutation.request_id, answer)
        revision = await changes.take_revision(connection)
        event = None
        if change.before != change.after:
            event = await _append_event(connection, mutation, change, revision)
        return change, revision, event

    try:
        change, revision, event = await database.transaction(attempt)
    except _Validated as validated:
        return cast("R", validated.result)
    if isinstance(change, Replayed):
        # The first call may still be waiting, or whoever made it has not.
        await mutation.settle(revision, None, wait=True)
        raise change
    # What was not there before is in no cache. What was already as it should be may have just become so.
    is_creation = change.before is None and change.after is not None
    await mutation.settle(revision, event, wait=not is_creation)
    return change.result


async def refuse_repetition(database: Database, mutation: Mutation[R]) -> None:
    """For what works in several transactions, of which only the last is `run`: raise as `run` before the first."""
    if mutation.request_id is None or mutation.validate_only:
        return
    async with database.connection() as connection:
        known = await audit.lock_request(connection, _caller(mutation), mutation.request_id)
    if known is not None:
        replayed = _replay(mutation, *known)
        await mutation.settle(await changes.current_revision(database), None, wait=True)
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


async def _append_event(connection: Connection, mutation: Mutation[R], change: Change[R], revision: int) -> Place:
    product, tenant = _chain(change.target)
    return await events.append(
        connection,
        product,
        tenant,
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


def _chain(target: ProductName | TenantName | PrincipalName | ApiKeyName) -> tuple[str, str]:
    if isinstance(target, ProductName):
        return target.product, ""
    tenant = target if isinstance(target, TenantName) else target.parent
    return tenant.product, tenant.tenant


def _caller(mutation: Mutation[R]) -> str:
    fact = mutation.caller.fact
    return str(ApiKeyName(TenantName(fact.product, fact.tenant), fact.key_id))
