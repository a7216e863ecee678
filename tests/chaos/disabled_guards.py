"""The parts of the protocol switched off one by one, to see that it falls ill without each of them."""

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from gatekey._cache.local_cache import LocalCache
from gatekey.core import clock
from gatekey.core.invalidation_index import InvalidationIndex
from gatekey.core.lease import Lease
from gatekey.core.secrets import Digest
from gatekey.v1 import cache_service_pb2 as pb
from gatekey_server.store import snapshots
from gatekey_server.store.database import Database
from gatekey_server.store.products import CompiledSpecs
from gatekey_server.store.snapshots import LoadResult

NONE = "none"

# So that what is only rare without them is frequent.
_LATE_FILL_S = 0.4
_OVERTAKING_S = 0.05


def _no_lease() -> None:
    Lease.is_held = lambda self: True  # type: ignore[method-assign]


def _late_fill() -> None:
    """Take what was loaded to be as of the time when it is stored."""
    histories: list[InvalidationIndex] = []
    begin, load = InvalidationIndex.__init__, snapshots.load

    def begin_and_tell(index: InvalidationIndex) -> None:
        begin(index)
        histories.append(index)

    async def load_late(database: Database, specs: CompiledSpecs, digests: Sequence[Digest]) -> LoadResult:
        loaded = await load(database, specs, digests)
        await asyncio.sleep(random.uniform(0, _LATE_FILL_S))
        return replace(loaded, revision=max(loaded.revision, histories[-1].applied.revision))

    InvalidationIndex.__init__ = begin_and_tell  # type: ignore[method-assign, assignment]
    snapshots.load = load_late


def _client_clock() -> None:
    """Have the client cache read its clock after the answer to `Sync`, instead of before the question."""
    synced = LocalCache._synced

    def synced_late(local_cache: LocalCache, answer: pb.SyncResponse, _: float) -> None:
        synced(local_cache, answer, clock.now())

    LocalCache._synced = synced_late  # type: ignore[method-assign, assignment]


IN_SERVERS: Mapping[str, Callable[[], None]] = {"lease": _no_lease, "late-fill": _late_fill}
"""Those of the server's code. Each is called before the server starts."""

IN_CLIENTS: Mapping[str, Callable[[], None]] = {"client-clock": _client_clock}
"""Those of the client caches."""

IN_DATABASE: Mapping[str, str] = {
    "commit-order": f"""
        create sequence overtaking;
        select setval('overtaking', current + 1) from revision;
        create or replace function take_revision() returns bigint
        language plpgsql set search_path from current as $$
        declare
            taken bigint;
            its_stamp uuid := gen_random_uuid();
        begin
            if not exists (
                select from change where transaction = pg_current_xact_id_if_assigned() and revision is null
            ) then
                return null;
            end if;
            taken := nextval('overtaking');
            perform pg_sleep(random() * {_OVERTAKING_S});
            update revision set current = taken, stamp = its_stamp where current < taken;
            update change set revision = taken, stamp = its_stamp
            where transaction = pg_current_xact_id() and revision is null;
            perform pg_notify('gatekey_change', '');
            return taken;
        end
        $$
    """
}
"""Those of the database's, as SQL."""

NAMES = (NONE, *IN_SERVERS, *IN_CLIENTS, *IN_DATABASE)
