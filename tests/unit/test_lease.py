"""Waiting for a lease, without which nothing is answered."""

import asyncio
from datetime import UTC, datetime

import pytest
from gatekey.core import clock
from gatekey.core.errors import Unavailable
from gatekey.core.lease import LEASE_S
from gatekey_server.freshness import lease as module
from gatekey_server.freshness.lease import PrimaryLease

SERVER = datetime(2026, 1, 1, tzinfo=UTC)


async def test_who_waits_goes_on_when_it_is_renewed() -> None:
    lease = PrimaryLease()
    waiting = [asyncio.create_task(lease.wait_until_held()) for _ in range(3)]
    await asyncio.sleep(0)
    lease.renew(clock.now() - LEASE_S, SERVER)
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting), "it is over already"
    lease.renew(clock.now(), SERVER)
    await asyncio.gather(*waiting)
    await lease.wait_until_held()


async def test_nobody_waits_for_what_is_not_to_be_expected() -> None:
    lease = PrimaryLease()
    waiting = asyncio.create_task(lease.wait_until_held())
    await asyncio.sleep(0)
    lease.fail_waiters()
    with pytest.raises(Unavailable):
        await waiting
    with pytest.raises(Unavailable):
        await lease.wait_until_held()
    lease.renew(clock.now(), SERVER)
    lease.fail_waiters()
    await lease.wait_until_held()


async def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEASE_WAIT_S", 0.01)
    with pytest.raises(Unavailable):
        await PrimaryLease().wait_until_held()
