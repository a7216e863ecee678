"""What a connection can do to a server, frame by frame: which bound holds, and that others are served meanwhile."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import grpc
import pytest
from gatekey.v1 import check_service_pb2 as pb
from gatekey_server.rpc import transport
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.attack import h2_attacker
from tests.attack.h2_attacker import BATCH_CHECK, CHECK, REFLECTION, WATCH, Peer, Target, connect, frame, gzip_bomb
from tests.support.certificates import LOCALHOST, Authority
from tests.support.server import PEPPERS, Client, ServerProcess

(AUTHORITY,) = Authority.make("attacked")
CHECK_REQUEST = pb.CheckRequest(key="x", resource="links", action="read").SerializeToString()
INVALID, NOT_FOUND, EXHAUSTED, UNIMPLEMENTED, UNAVAILABLE, UNAUTHENTICATED = "3", "5", "8", "12", "14", "16"
REFUSED_STREAM, ENHANCE_YOUR_CALM = "7", "11"
LIST = "/grpc.health.v1.Health/List"
SOON_S = 10.0


@pytest.fixture(scope="module", params=["plain text", "TLS"])
async def target(
    request: pytest.FixtureRequest, root: Client, database_url: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Target]:
    """A server without TLS and one with it, and a token."""
    assert root.token is not None
    if request.param == "plain text":
        yield Target.at(root.address, token=root.token)
        return
    directory = tmp_path_factory.mktemp("attacked")
    certificate, key = AUTHORITY.issue(LOCALHOST).write(directory)
    authority = directory / "authority.pem"
    authority.write_bytes(AUTHORITY.pem)
    server = await ServerProcess.start(
        {
            "GATEKEY_DATABASE_URL": database_url,
            "GATEKEY_PEPPERS": PEPPERS,
            "GATEKEY_TLS_CERTIFICATE": str(certificate),
            "GATEKEY_TLS_KEY": str(key),
        }
    )
    yield Target.at(server.address, ca=Path(authority), token=root.token)
    assert await server.stop() == 0
    assert "Traceback" not in "".join(server.output)


def nobody(target: Target) -> Target:
    """The same server without a token."""
    return Target(target.host, target.port, target.ca)


async def ends(peer: Peer, stream: int) -> tuple[str, str]:
    """The status and the message of a call that ends soon."""
    headers = await peer.end_of(stream, SOON_S)
    return headers.get("grpc-status", str(dict(headers))), headers.get("grpc-message", "")


async def is_served(peer: Peer) -> bool:
    """Whether a check is decided soon."""
    status, _ = await ends(peer, peer.call(CHECK, CHECK_REQUEST))
    return status == "0"


# The order: who calls, then what.


async def test_the_message_of_an_unknown_caller_is_not_waited_for(target: Target) -> None:
    async with connect(nobody(target)) as peer:
        for authorization in (None, "Bearer gk_none", "Bearer \xa0", "none"):
            assert (await ends(peer, peer.open(CHECK, authorization=authorization)))[0] == UNAUTHENTICATED
            assert (await ends(peer, peer.open(BATCH_CHECK, authorization=authorization)))[0] == UNAUTHENTICATED


@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x03\x0a\x01\xff", b""], ids=["garbage", "bad text", "empty"])
async def test_a_malformed_request_with_an_invalid_token_is_unauthenticated(target: Target, message: bytes) -> None:
    async with connect(nobody(target)) as peer:
        for path in (CHECK, BATCH_CHECK, "/gatekey.v1.ProductService/ApplyProduct", "/gatekey.v1.CacheService/Sync"):
            stream = peer.open(path, authorization="Bearer gk_none")
            peer.data(stream, frame(message), ends=True)
            assert (await ends(peer, stream))[0] == UNAUTHENTICATED


@pytest.mark.parametrize("around", ["\xa0", "\t", "\u2003", "\x0b"], ids=ascii)
async def test_only_spaces_may_be_around_a_token(target: Target, around: str) -> None:
    async with connect(target) as peer:
        for padded, expected in ((f" {target.token}  ", "0"), (f"{target.token}{around}", UNAUTHENTICATED)):
            stream = peer.open(CHECK, authorization=f"Bearer {padded}")
            peer.data(stream, frame(CHECK_REQUEST), ends=True)
            # What HTTP/2 does not allow in a header ends the call before anyone sees it.
            assert (await ends(peer, stream))[0] in {expected, "13"} - ({"13"} if expected == "0" else set())


async def test_a_unary_call_has_exactly_one_message(target: Target) -> None:
    async with connect(target) as peer:
        for messages in ([], [CHECK_REQUEST, CHECK_REQUEST], [CHECK_REQUEST, b""]):
            stream = peer.open(CHECK)
            peer.data(stream, b"".join(map(frame, messages)), ends=True)
            assert await ends(peer, stream) == (INVALID, "the call must have exactly one message")
        assert await is_served(peer)


@pytest.mark.parametrize("path", [f"{CHECK}?x=1", f"{CHECK}/", CHECK[1:], "/", "", "/gatekey.v1.CheckService/check"])
async def test_a_path_that_is_no_method_s(target: Target, path: str) -> None:
    async with connect(target) as peer:
        status, message = await ends(peer, peer.call(path, CHECK_REQUEST))
        assert status == UNIMPLEMENTED or "reset" in status, (status, message)
        assert await is_served(peer)


# What a message may cost.


async def test_a_gzip_bomb_is_not_unpacked(target: Target) -> None:
    assert len(gzip_bomb()) < 2000
    for attacker in (nobody(target), target):
        async with connect(attacker) as peer:
            began = time.monotonic()
            for _ in range(20):
                stream = peer.call(BATCH_CHECK, gzip_bomb(), [("grpc-encoding", "gzip")], compressed=True)
                status, message = await ends(peer, stream)
                assert (status, "gzip" in message) == (UNIMPLEMENTED, True)
            assert (time.monotonic() - began) / 20 < 0.1


async def test_half_a_million_parts_are_not_parsed(target: Target) -> None:
    message = b"\x0a\x00" * 500_000 + b"\x0a\x03\x0a\x01\xff"
    async with connect(target) as peer:
        stream = peer.open(BATCH_CHECK)
        await peer.data_within_windows(stream, frame(message))
        peer.data(stream, b"", ends=True)
        status, text = await ends(peer, stream)
        assert (status, text) == (INVALID, "checks: the request has more than 10000 fields")


# What a connection, and all together, may hold.


async def test_metadata_beyond_the_limit_ends_its_call_only(target: Target) -> None:
    async with connect(target) as peer:
        held = peer.open(CHECK)
        assert await is_served(peer)
        for size in (17_000, 60_000, 200_000):
            status, _ = await ends(peer, peer.open(CHECK, [("cookie", "c" * size)]))
            assert status == EXHAUSTED
        stream = peer.open(CHECK, [("cookie", "c" * 14_000)])
        peer.data(stream, frame(CHECK_REQUEST), ends=True)
        assert (await ends(peer, stream))[0] == "0"
        assert held not in peer.ended
        assert not peer.goaways


async def test_streams_beyond_the_limit_are_refused_and_others_are_served(target: Target) -> None:
    async with connect(target) as attacker, connect(target) as victim:
        streams = [attacker.open(CHECK) for _ in range(2100)]
        assert await is_served(victim)
        assert (await attacker.end_of(streams[-1], SOON_S))["reset"] in {REFUSED_STREAM, ENHANCE_YOUR_CALM}
        for _ in range(20):
            assert await is_served(victim)
        assert sum(stream in attacker.ended for stream in streams) == 2100 - transport.MAX_STREAMS


@pytest.mark.parametrize("known", [True, False], ids=["decided", "refused"])
async def test_whoever_keeps_the_limit_of_streams_is_never_refused_one(target: Target, known: bool) -> None:
    """A call that is over for the client makes room for another one, although the server has not forgotten it yet."""
    async with connect(target if known else nobody(target)) as peer:
        await ends(peer, peer.call(CHECK, CHECK_REQUEST))
        under_way, seen = set[int](), Counter[str]()
        while sum(seen.values()) < 1500:
            under_way |= {peer.call(CHECK, CHECK_REQUEST) for _ in range(transport.MAX_STREAMS - len(under_way))}
            await peer.end_of(next(iter(under_way)), 2 * SOON_S)
            over = under_way & peer.ended.keys()
            seen.update("refused" if peer.ended[each].get("reset") == REFUSED_STREAM else "answered" for each in over)
            under_way -= over
        assert seen.keys() == {"answered"}, seen


async def test_the_oldest_of_too_many_unfinished_calls_makes_room(target: Target) -> None:
    async with AsyncExitStack() as stack:
        held = transport.MAX_STREAMS - 1
        count = transport.MAX_RECEIVING_CALLS // held + 1
        peers = [await stack.enter_async_context(connect(target)) for _ in range(count)]
        victim = await stack.enter_async_context(connect(target))
        streams = [peers[0].open(CHECK) for _ in range(held)]
        # Once this one is answered, those before it are known to the server.
        assert await is_served(peers[0])
        for peer in peers[1:]:
            for _ in range(held):
                peer.open(CHECK)
        assert (await ends(peers[0], streams[0]))[0] == UNAVAILABLE
        for _ in range(20):
            assert await is_served(victim)


async def test_watches_of_health_are_few_on_a_connection_and_starve_nobody(target: Target) -> None:
    message = health_pb2.HealthCheckRequest().SerializeToString()
    async with connect(nobody(target)) as attacker, connect(target) as victim:
        watches = [attacker.call(WATCH, message) for _ in range(15)]
        reflections = [attacker.open(REFLECTION) for _ in range(10)]
        for held, most in ((watches, transport.MAX_WATCHES), (reflections, transport.MAX_REFLECTIONS)):
            statuses = [(await ends(attacker, stream))[0] for stream in held[most:]]
            assert set(statuses) == {EXHAUSTED}
            assert not set(held[:most]) & attacker.ended.keys()
        assert await is_served(victim)
        stream = attacker.call("/grpc.health.v1.Health/Check", message)
        assert (await ends(attacker, stream))[0] == "0"
        attacker.reset(watches[0])
        stream = attacker.call(WATCH, message)
        await asyncio.sleep(0.1)
        assert stream not in attacker.ended


@pytest.mark.slow
async def test_what_does_not_come_is_not_waited_for_for_ever(target: Target) -> None:
    async with connect(target) as peer:
        began = time.monotonic()
        unfinished, idle = peer.open(CHECK), peer.open(REFLECTION)
        silent = await asyncio.open_connection(target.host, target.port)
        slow = await asyncio.open_connection(target.host, target.port)
        slow[1].write(b"\x16\x03\x01\x02\x00" if target.ca else b"PRI * HTTP/2.0\r\n")

        async def end(reader: asyncio.StreamReader) -> float:
            try:
                while await reader.read(1 << 16):
                    pass
            except OSError:
                pass
            return time.monotonic() - began

        both = asyncio.gather(end(silent[0]), end(slow[0]))
        for stream in (unfinished, idle):
            assert (await peer.end_of(stream, transport.RECEIVE_TIMEOUT_S + 5))["grpc-status"] == UNAVAILABLE
        assert max(await both) < transport.HANDSHAKE_TIMEOUT_S + 3
        for _, writer in (silent, slow):
            writer.transport.abort()


async def test_connections_beyond_the_limit_are_closed(root: Client) -> None:
    target = Target.at(root.address, token=root.token)
    async with connect(target) as victim:
        opened = await asyncio.gather(
            *(asyncio.open_connection(target.host, target.port) for _ in range(transport.MAX_CLIENT_CONNECTIONS + 50))
        )
        try:
            assert await is_served(victim)
            await asyncio.sleep(0.5)
            assert sum(reader.at_eof() or reader.exception() is not None for reader, _ in opened) >= 50
            assert await is_served(victim)
        finally:
            for _, writer in opened:
                writer.transport.abort()


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        h2_attacker.header_only_streams,
        h2_attacker.unfinished_messages,
        h2_attacker.rapid_reset,
        h2_attacker.watch_flood,
        h2_attacker.junk_metadata,
        h2_attacker.ping_flood,
        h2_attacker.settings_flood,
    ],
    ids=lambda attack: attack.__name__,
)
async def test_a_victim_loses_nothing(target: Target, attack: h2_attacker.Attack) -> None:
    async with connect(target) as victim:
        for attacker in (nobody(target), target):
            attacking = asyncio.create_task(attack(attacker, 0.7))
            while not attacking.done():
                assert await is_served(victim)
                # Health, too, whoever holds what.
                assert await ends(victim, victim.call(LIST, b"")) == ("0", "")
                await asyncio.sleep(0.01)
            await attacking


# Health, for those who ask in order.


async def test_health_lists_all_services_and_knows_no_others(root: Client) -> None:
    stub = health_pb2_grpc.HealthStub(root.channel)
    statuses = (await stub.List(health_pb2.HealthListRequest(), timeout=5)).statuses
    assert {"", "gatekey.v1.CheckService", "gatekey.v1.AuditService"} <= statuses.keys()
    assert {each.status for each in statuses.values()} == {health_pb2.HealthCheckResponse.SERVING}
    with pytest.raises(grpc.RpcError) as raised:
        await stub.Check(health_pb2.HealthCheckRequest(service="none"), timeout=5)
    assert isinstance(raised.value, grpc.aio.AioRpcError)
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(health_pb2.HealthCheckRequest(service="none"))
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()
