"""What the tests of the Python client share: both kinds of client behind one face, and a keyed tenant."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import gatekey

from tests.support.server import Client

PRODUCT = "heyoo"
KINDS = ("threads", "event loop", "event loop, unbatched")


async def made(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
    """The result of a method of either client, in a thread if it blocks; a list is read to its end."""
    if inspect.iscoroutinefunction(function):
        return await function(*arguments, **keywords)

    def block() -> Any:
        result = function(*arguments, **keywords)
        return list(result) if inspect.isgenerator(result) else result

    result = await asyncio.to_thread(block)
    return [each async for each in result] if inspect.isasyncgen(result) else result


@asynccontextmanager
async def opened(kind: str, *arguments: Any, **keywords: Any) -> AsyncIterator[Any]:
    """A client of one of the kinds; typed loosely, because the tests use both alike."""
    if kind == "threads":
        with gatekey.Client(*arguments, **keywords) as client:
            yield client
    else:
        async with gatekey.AsyncClient(*arguments, batch=kind == "event loop", **keywords) as client:
            yield client


@dataclass(frozen=True)
class Shop:
    """A tenant, and two keys of its owner: one that may do everything, and one that may only read campaigns."""

    tenant: str
    owner: str
    key: str
    name: str
    reader: str


async def open_shop(root: Client, tenant_id: str) -> Shop:
    """Make one."""
    tenant = await root.create_tenant(PRODUCT, tenant_id)
    owner = await root.add_member(tenant, "owner", "owner")
    key = await root.create_key(tenant, owner)
    reader = await root.create_key(tenant, owner, mode="RESTRICTED", grants={"campaigns": ["read"]})
    return Shop(tenant_id, owner, key.secret, key.api_key.name, reader.secret)
