"""All attacks, by name: of which kind each is, what it does, and the bound that holds.

An attack is `async def attack(scene, duration_s)`: it attacks for so long and returns what it saw. The ones that need
no more than frames are in `h2_attacker.py`.
"""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from gatekey.core.decisions import RULES
from gatekey.v1 import (
    api_key_service_pb2,
    audit_service_pb2,
    cache_service_pb2,
    check_service_pb2,
    machine_user_service_pb2,
    member_service_pb2,
    product_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message

from tests.acceptance.test_times import DURATIONS, TIMES
from tests.attack import h2_attacker
from tests.attack.ground import ATTACKED, Ground, Scene
from tests.attack.h2_attacker import BATCH_CHECK, CHECK, frame, repeatedly
from tests.unit.test_spec_work import HUGE, worst_spec

Run = Callable[[Scene, float], Coroutine[Any, Any, Mapping[str, int]]]
Prepare = Callable[[Ground], Awaitable[dict[str, Any]]]

# What would show in the log if it were written there as it is.
_FORGED = '\r\n{"event":"forged","level":"critical"}\r\n\x1b[2J\x1b[31mforged\x1b[0m\0\x85\u2028'
_AT_ONCE = 8
_TIMEOUT_S = 20


@dataclass(frozen=True)
class Attack:
    """An attack."""

    name: str
    kind: int
    """Which of the kinds of ways to stop a service: see `KINDS`."""
    run: Run
    prepare: Prepare = Ground.nothing


KINDS = {
    0: "",
    1: "times",
    2: "work",
    3: "transport",
    4: "answers",
    5: "much data",
    6: "crowds",
    7: "log",
}

ATTACKS: dict[str, Attack] = {}
"""All of them, by name."""


def _attack(kind: int, prepare: Prepare = Ground.nothing) -> Callable[[Run], Run]:
    def register(run: Run) -> Run:
        name = run.__name__
        ATTACKS[name] = Attack(name, kind, run, prepare)
        return run

    return register


def _with_and_without_token(attack: h2_attacker.Attack) -> Run:
    async def both(scene: Scene, duration_s: float) -> Counter[str]:
        tokens = None, scene.checker
        first, second = await asyncio.gather(*(attack(scene.target(token), duration_s) for token in tokens))
        return first + second

    both.__name__, both.__doc__ = attack.__name__, attack.__doc__
    return both


Call = tuple[str, Message | bytes]


async def _flood(
    scene: Scene, token: str, calls: Sequence[Call], duration_s: float, *, at_once: int = _AT_ONCE
) -> Counter[str]:
    """Make calls in turn, so many at a time, again and again."""
    seen: Counter[str] = Counter()
    turn = itertools.cycle(
        [(path, call if isinstance(call, bytes) else call.SerializeToString()) for path, call in calls]
    )
    credentials = grpc.ssl_channel_credentials(Path(scene.ca).read_bytes()) if scene.ca else None

    async def insist(channel: grpc.aio.Channel) -> None:
        while True:
            path, data = next(turn)
            try:
                metadata = (("authorization", f"Bearer {token}"),)
                call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
                await call(data, metadata=metadata, timeout=_TIMEOUT_S)
                seen["OK"] += 1
            except grpc.aio.AioRpcError as error:
                seen[error.code().name] += 1

    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
    channels = [
        grpc.aio.secure_channel(scene.address, credentials, options)
        if credentials
        else grpc.aio.insecure_channel(scene.address, options)
        for _ in range(-(-at_once // 50))
    ]
    tasks = [asyncio.create_task(insist(channel)) for channel, _ in zip(itertools.cycle(channels), range(at_once))]
    done, _ = await asyncio.wait(tasks, timeout=duration_s)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for channel in channels:
        await channel.close()
    for task in done:
        task.result()
    return seen


def _method(service: str, method: str) -> str:
    return f"/gatekey.v1.{service}/{method}"


_APPLY = _method("ProductService", "ApplyProduct")
_CREATE_KEY = _method("ApiKeyService", "CreateApiKey")
_ROTATE_KEY = _method("ApiKeyService", "RotateApiKey")
_LIST_KEYS = _method("ApiKeyService", "ListApiKeys")
_LIST_EVENTS = _method("AuditService", "ListAuditEvents")
_UPDATE_TENANT = _method("TenantService", "UpdateTenant")
_SYNC = _method("CacheService", "Sync")


@_attack(0)
async def nothing(scene: Scene, duration_s: float) -> Counter[str]:
    """No attack: what the machine does when it has nothing else to do."""
    await asyncio.sleep(duration_s)
    return Counter({scene.address: 1})


# 1. Times that cannot be held.


async def _a_key(ground: Ground) -> dict[str, Any]:
    tenant, owner = await ground.tenant()
    key = (await ground.root.create_key(tenant, owner)).api_key.name
    return {"tenant": tenant, "owner": owner, "key": key}


@_attack(1, _a_key)
async def extreme_times(scene: Scene, duration_s: float) -> Counter[str]:
    """Times and durations beyond every bound in keys, rotations and filters."""
    tenant, owner, key = (scene.snapshots[name] for name in ("tenant", "owner", "key"))
    pb, calls = api_key_service_pb2, list[Call]()
    for time in TIMES:
        wanted = pb.ApiKey(display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_ALL, expire_time=time)
        calls += [
            (_CREATE_KEY, pb.CreateApiKeyRequest(parent=tenant, api_key=wanted)),
            (_LIST_EVENTS, audit_service_pb2.ListAuditEventsRequest(parent=tenant, start_time=time)),
        ]
    calls += [(_ROTATE_KEY, pb.RotateApiKeyRequest(name=key, grace=duration)) for duration in DURATIONS]
    return await _flood(scene, scene.administrator, calls, duration_s)


async def _spoilt_rows(ground: Ground) -> dict[str, Any]:
    tenant, owner = await ground.tenant()
    key = (await ground.root.create_key(tenant, owner, grants={"links": ["read"]}, mode="RESTRICTED")).api_key.name
    secrets = await ground.copies(key, 400)
    for table in ("api_key", "secret"):
        await ground.sql.execute(f"alter table {table} drop constraint if exists {table}_expire_time_is_finite")
    copies = "display_name = 'copy' and tenant_uid = (select max(tenant_uid) from tenant)"
    await ground.sql.execute(f"update api_key set expire_time = 'infinity' where {copies} and key_uid::text < '8'")
    await ground.sql.execute(f"update api_key set grants = '{{\"no\": 1}}' where {copies} and key_uid::text >= '8'")
    return {"secrets": secrets}


@_attack(1, _spoilt_rows)
async def spoilt_rows(scene: Scene, duration_s: float) -> Counter[str]:
    """Checks of keys whose rows hold infinity or cannot be read, in loads that others share."""
    requests = [
        check_service_pb2.CheckRequest(key=key, resource="links", action="read") for key in scene.snapshots["secrets"]
    ]
    return await _flood(scene, scene.checker, [(CHECK, request) for request in requests], duration_s, at_once=16)


# 2. Work before permission, and without bound.


def _specs() -> list[product_spec_pb2.ProductSpec]:
    """The largest and the longest specs, valid or not, and the worst one of those that are valid, with changes."""
    specs = [make() for make in HUGE.values()]
    for number in range(4):
        specs.append(worst_spec())
        specs[-1].display_name = f"Version {number}"
    for spec in specs:
        spec.product, spec.secret_keys.prefix = ATTACKED, f"{ATTACKED}_"
        spec.publishable_keys.prefix = f"{ATTACKED}pub_"
    return specs


def _applications(*, validate_only: bool) -> list[Call]:
    request = product_service_pb2.ApplyProductRequest
    return [(_APPLY, request(spec=spec, force=True, validate_only=validate_only)) for spec in _specs()]


@_attack(2)
async def specs_without_permission(scene: Scene, duration_s: float) -> Counter[str]:
    """The largest specs, by a token that may only check."""
    return await _flood(scene, scene.checker, _applications(validate_only=False), duration_s)


@_attack(2)
async def specs_with_permission(scene: Scene, duration_s: float) -> Counter[str]:
    """The largest specs, by a token that may apply them, and dry runs of them, two at a time."""
    calls = _applications(validate_only=False) + _applications(validate_only=True)
    return await _flood(scene, scene.administrator, calls, duration_s, at_once=2)


@_attack(2, _a_key)
async def grants_without_number(scene: Scene, duration_s: float) -> Counter[str]:
    """Keys with up to 90,000 grants, and as many grants as a key may have."""
    tenant, owner = scene.snapshots["tenant"], scene.snapshots["owner"]
    links = types_pb2.Grant(resource="links", actions=["read"])
    lists = [
        [types_pb2.Grant()] * 90_000,
        [links] * 30_000,
        [types_pb2.Grant(resource="links", actions=["read"] * 60_000)],
        [types_pb2.Grant(resource=f"domains/{number:0250}", actions=["read", "write"]) for number in range(256)],
    ]
    calls: list[Call] = []
    for grants in lists:
        key = api_key_service_pb2.ApiKey(
            display_name="Key", owner=owner, mode=types_pb2.ACCESS_MODE_RESTRICTED, grants=grants
        )
        calls.append((_CREATE_KEY, api_key_service_pb2.CreateApiKeyRequest(parent=tenant, api_key=key)))
    return await _flood(scene, scene.administrator, calls, duration_s)


async def _large_keys(ground: Ground) -> dict[str, Any]:
    tenant, owner = await ground.tenant()
    grants = {f"domains/{'d' * 240}{number:04}": ["read", "write"] for number in range(256)}
    key = await ground.root.create_key(tenant, owner, mode="RESTRICTED", grants=grants)
    return {"tenant": tenant, "secrets": await ground.copies(key.api_key.name, 250)}


@_attack(2, _large_keys)
async def worst_batches(scene: Scene, duration_s: float) -> Counter[str]:
    """Batches of a thousand checks of long paths, with many keys of 256 grants each."""
    path = f"domains/{'d' * 240}9999/links/{'x' * 240}/more/{'y' * 240}"
    batch = check_service_pb2.BatchCheckRequest()
    for _, key in zip(range(1000), itertools.cycle(scene.snapshots["secrets"])):
        batch.checks.add(key=key, resource=path, action="write")
    return await _flood(scene, scene.checker, [(BATCH_CHECK, batch)], duration_s)


# 3. The transport, and what else frames can do.

_KINDS_OF_FRAMES = {"gzip_bombs": 2, "malformed_batches": 2, "junk_metadata": 7}
for _each in h2_attacker.ATTACKS.values():
    _attack(_KINDS_OF_FRAMES.get(_each.__name__, 3))(_with_and_without_token(_each))


# 4. Answers that are bounded in rows, not in bytes.


async def _large_events(ground: Ground) -> dict[str, Any]:
    tenant, _ = await ground.tenant()
    grants = [{"resource": f"c{index:05}{'x' * 58}", "actions": ["read", "write"]} for index in range(2400)]
    spec = json.dumps({"spec_version": 1, "spec": {"roles": [{"role": "r", "grants": grants}]}})
    await ground.sql.execute(
        "insert into audit_event (product_id, tenant_id, sequence, event_time, verb, target, caller, actor, request_id,"
        " before, after, hash) select $1, $2, n, now(), 'ApplyProduct', '', '', '', '', $3, $3, sha256('')"
        " from generate_series(1000, 1024) n",
        *(ATTACKED, tenant.rpartition("/")[2], spec),
    )
    return {"tenant": tenant}


@_attack(4, _large_events)
async def large_events(scene: Scene, duration_s: float) -> Counter[str]:
    """Lists of audit events that hold a spec of 250 KB before and after."""
    request = audit_service_pb2.ListAuditEventsRequest(parent=scene.snapshots["tenant"], page_size=1000)
    return await _flood(scene, scene.administrator, [(_LIST_EVENTS, request)], duration_s)


@_attack(4, _large_keys)
async def large_keys(scene: Scene, duration_s: float) -> Counter[str]:
    """Lists of keys with 256 grants each, and all that a cache is told of them."""
    listed = [
        (_LIST_KEYS, api_key_service_pb2.ListApiKeysRequest(parent=scene.snapshots["tenant"], page_size=size))
        for size in (0, 1000)
    ]
    resolve = cache_service_pb2.ResolveRequest(keys=scene.snapshots["secrets"], rules=RULES)
    first, second = await asyncio.gather(
        _flood(scene, scene.administrator, listed, duration_s),
        _flood(scene, scene.checker, [(_method("CacheService", "Resolve"), resolve)], duration_s, at_once=2),
    )
    return first + second


# 5. Work that grows with the data.


async def _many_keys(ground: Ground) -> dict[str, Any]:
    tenant, member = await ground.tenant()
    await ground.root.add_member(tenant, "other", "owner")
    made = await ground.root.create_key(tenant, new_machine_user=True)
    others = [await ground.tenant() for _ in range(2)]
    for name, kind, number in (
        (tenant, "MEMBER", 100_000),
        (tenant, "MACHINE_USER", 20_000),
        *((other, "MEMBER", 20_000) for other, _ in others),
    ):
        await ground.sql.execute(
            """
            with made as (
                insert into api_key (tenant_uid, key_uid, principal_uid, display_name, kind, mode)
                select tenant_uid, gen_random_uuid(), principal_uid, 'Key', 'SECRET', 'ALL'
                from principal join tenant using (tenant_uid), generate_series(1, $4::int)
                where product_id = $1 and tenant_id = $2 and kind = $3 and principal_id <> 'other'
                returning tenant_uid, key_uid
            )
            insert into secret (tenant_uid, key_uid, slot, digest, pepper_version, hint)
            select tenant_uid, key_uid, 1, sha256(uuid_send(key_uid)), 1, '' from made
            """,
            *(ATTACKED, name.rpartition("/")[2], kind, int(number * ground.scale)),
            timeout=120,
        )
    return {"member": member, "machine_user": made.machine_user.name, "tenants": [name for name, _ in others]}


@_attack(5, _many_keys)
async def removals(scene: Scene, duration_s: float) -> Counter[str]:
    """A member with 100,000 keys is removed, a machine user and two tenants with 20,000 are, too."""
    suspended, deleted = scene.snapshots["tenants"]
    pb = tenant_service_pb2
    calls: list[Call] = [
        (
            _method("MemberService", "RemoveMember"),
            member_service_pb2.RemoveMemberRequest(name=scene.snapshots["member"], force=True),
        ),
        (
            _method("MachineUserService", "DeleteMachineUser"),
            machine_user_service_pb2.DeleteMachineUserRequest(name=scene.snapshots["machine_user"]),
        ),
        (_method("TenantService", "SuspendTenant"), pb.SuspendTenantRequest(name=suspended)),
        (_method("TenantService", "DeleteTenant"), pb.DeleteTenantRequest(name=deleted)),
        (_method("TenantService", "ResumeTenant"), pb.ResumeTenantRequest(name=suspended)),
        (_method("TenantService", "UndeleteTenant"), pb.UndeleteTenantRequest(name=deleted)),
    ]
    # What is removed stays removed; the tenants go and come.
    return await _flood(scene, scene.administrator, calls, duration_s, at_once=2)


# 6. Crowds.


@_attack(6, _a_key)
async def a_crowd_in_a_tenant(scene: Scene, duration_s: float) -> Counter[str]:
    """300 mutations of one tenant at a time."""
    updates = [
        tenant_service_pb2.UpdateTenantRequest(
            tenant=tenant_service_pb2.Tenant(name=scene.snapshots["tenant"], display_name=f"Name {number}"),
            update_mask=FieldMask(paths=["display_name"]),
        )
        for number in range(1000)
    ]
    calls: list[Call] = [(_UPDATE_TENANT, update) for update in updates]
    return await _flood(scene, scene.administrator, calls, duration_s, at_once=300)


async def _old_cursor(ground: Ground) -> dict[str, Any]:
    tenant, _ = await ground.tenant()
    sync = ground.root.channel.unary_unary(
        _SYNC,
        request_serializer=cache_service_pb2.SyncRequest.SerializeToString,
        response_deserializer=cache_service_pb2.SyncResponse.FromString,
    )
    cursor = (await sync(cache_service_pb2.SyncRequest(), timeout=10)).cursor
    # As many revisions as are told at most, and a revision for each.
    await ground.sql.execute(
        f"do $$ begin for n in 1..450 loop"
        f" update tenant set suspend_time = now() where tenant_id = '{tenant.rpartition('/')[2]}'; commit;"
        f" update tenant set suspend_time = null where tenant_id = '{tenant.rpartition('/')[2]}'; commit;"
        f" end loop; end $$",
        timeout=60,
    )
    return {"cursor": cursor.hex()}


@_attack(6, _old_cursor)
async def old_cursors(scene: Scene, duration_s: float) -> Counter[str]:
    """Caches that ask for hundreds of changes again and again, or have cursors of their own making."""
    cursor = bytes.fromhex(scene.snapshots["cursor"])
    cursors = [cursor, b"", cursor[:-1] + b"\0", b"\xff" * 30, b"x" * 10_000]
    calls: list[Call] = [(_SYNC, cache_service_pb2.SyncRequest(cursor=each)) for each in cursors]
    return await _flood(scene, scene.checker, calls, duration_s, at_once=32)


# 7. The log.


@_attack(7)
async def tokens_in_headers(scene: Scene, duration_s: float) -> Counter[str]:
    """Good tokens in bad headers: with what is no ASCII, no text, no base64, or in other places."""
    token = scene.checker.encode()
    values = [b"Bearer " + token + end for end in (b"\xa0", b"\xc2\xa0", b"\t", b"\x0b", b"\x80" * 50, b" x")]
    values += [token, b"Basic " + token, b"Bearer" + token, b"Bearer " + token + _FORGED.encode()]
    junk = [
        [("x-token", scene.checker + "\xa0")],
        [("x-token-bin", scene.checker)],
        [(f"x-{scene.checker.lower()}", "value")],
        [("grpc-timeout", scene.checker)],
        [("grpc-encoding", scene.checker)],
        [("content-type", scene.checker)],
        [("user-agent", scene.checker + _FORGED)],
    ]
    message = frame(check_service_pb2.CheckRequest(key=scene.checker, resource="x").SerializeToString())

    async def attack(peer: h2_attacker.Peer) -> None:
        while peer.is_open:
            streams = [peer.open(CHECK, metadata) for metadata in junk]
            streams += [peer.open(CHECK, authorization=value) for value in values]
            streams += [peer.open(f"/{scene.checker}"), peer.open(f"{CHECK}?key={scene.checker}")]
            for stream in streams:
                peer.data(stream, message, ends=True)
            await peer.flush()
            await peer.end_of(streams[-1])

    return await repeatedly(scene.target(scene.checker), duration_s, attack)


@_attack(7)
async def forged_lines(scene: Scene, duration_s: float) -> Counter[str]:
    """Texts with line ends and escapes, and tokens, in GOAWAY frames, keys, names and paths."""
    text = f"{_FORGED} {scene.checker}"
    request = check_service_pb2.CheckRequest(key=text, resource=text, action=text, tenant=text)

    async def attack(peer: h2_attacker.Peer) -> None:
        streams = [peer.call(path, request.SerializeToString()) for path in (CHECK, BATCH_CHECK, f"{CHECK}/{_FORGED}")]
        for stream in streams[:2]:
            await peer.end_of(stream)
        peer.goaway(text.encode() * 50)
        await peer.flush()
        # It ends the connection: the next one is as good.
        await asyncio.sleep(0.01)

    return await repeatedly(scene.target(scene.checker), duration_s, attack)


__all__ = ["ATTACKS", "KINDS", "Attack"]
