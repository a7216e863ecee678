"""Administration: creations and rotations, and a tenant of 200,000 keys page by page."""

import asyncio
import statistics
import time
from pathlib import Path

from gatekey.core.names import format_key_id
from gatekey.v1 import api_key_service_pb2, api_key_service_pb2_grpc, types_pb2

from bench import gatekey as g
from bench.report import Report

_CREATIONS = 2000
_AT_ONCE = 16
_TENANT_KEYS = 200_000
_PAGE = 1000


async def admin(report: Report, _: Path) -> None:
    """Through one server, by the generated client."""
    section = "admin"
    async with g.postgres() as cluster:
        async with g.gatekey(cluster) as server:
            await g.apply_product(server)
        await g.fill(cluster, _TENANT_KEYS, keys_of_a_tenant=_TENANT_KEYS)
        tenant = g.tenant_of(0)
        async with g.gatekey(cluster) as server, server.channel() as channel:
            stub = api_key_service_pb2_grpc.ApiKeyServiceStub(channel)
            metadata = tuple(server.metadata.items())

            async def create(_: int) -> None:
                key = api_key_service_pb2.ApiKey(
                    display_name="Key", owner=f"{tenant}/members/owner", mode=types_pb2.ACCESS_MODE_ALL
                )
                request = api_key_service_pb2.CreateApiKeyRequest(parent=tenant, api_key=key)
                await stub.CreateApiKey(request, metadata=metadata)

            async def rotate(number: int) -> None:
                name = f"{tenant}/apiKeys/{format_key_id(g.key_uid(number))}"
                await stub.RotateApiKey(api_key_service_pb2.RotateApiKeyRequest(name=name), metadata=metadata)

            for name, work in (("creations in one tenant", create), ("rotations in one tenant", rotate)):
                gate = asyncio.Semaphore(_AT_ONCE)

                async def bounded(number: int) -> None:
                    async with gate:  # noqa: B023
                        await work(number)  # noqa: B023

                started_at = time.perf_counter()
                await asyncio.gather(*(bounded(number) for number in range(_CREATIONS)))
                report.add(section, name, _CREATIONS / (time.perf_counter() - started_at), "/s")
            times, request = [], api_key_service_pb2.ListApiKeysRequest(parent=tenant, page_size=_PAGE)
            listed = 0
            while True:
                started_at = time.perf_counter()
                page = await stub.ListApiKeys(request, metadata=metadata)
                times.append((time.perf_counter() - started_at) * 1000)
                listed += len(page.api_keys)
                request.page_token = page.next_page_token
                if not page.next_page_token:
                    break
            assert listed == _TENANT_KEYS + _CREATIONS, listed
            tenth = len(times) // 10
            first, last = statistics.median(times[:tenth]), statistics.median(times[-tenth - 1 : -1])
            report.add(section, f"a page of {_PAGE} keys among the first", first, "ms")
            report.add(section, f"a page of {_PAGE} keys among the last of {listed:,}", last, "ms")
            report.add(section, "the last against the first", last / first, "times", 1.5, at_least=False)
