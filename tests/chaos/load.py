"""The load: checks of all keys by all processes, and mutations of the keys, everything with its times."""

import asyncio
import random
import time
import uuid
from collections import deque
from collections.abc import Sequence
from typing import Any

import grpc
from gatekey.v1 import (
    api_key_service_pb2_grpc,
    check_service_pb2_grpc,
    machine_user_service_pb2_grpc,
    member_service_pb2_grpc,
    product_service_pb2_grpc,
    tenant_service_pb2_grpc,
)
from gatekey.v1 import check_service_pb2 as pb

from tests.chaos.caching import DECIDED_BY_CACHE
from tests.chaos.fixtures import ACTION, GONE, RESOURCE, Group, Step
from tests.chaos.history import ALLOWED, Check, Failure, History, Mutation, Timeline, Transition

# Longer than any fault, so that what was asked before it or meanwhile is answered after it.
_CHECK_TIMEOUT_S = 15.0
_MUTATION_TIMEOUT_S = 10.0

_RECOVERY_TIMEOUT_S = 2.0
_RETRY_S = 0.1
_PAUSES_S = (0.0, 0.0, 0.05, 0.2, 1.0)
_CHECKERS = 4
_PROBED_AT_ONCE = 3
_CHECKED_AT_ONCE = (1, 1, 1, 8)
_MAX_IN_FLIGHT = 400
_HOT_S = 1.0
_HOT_SHARE = 0.6
_EVERYWHERE_SHARE = 0.5

# After these, nobody knows whether a mutation was done; and so it is sent again, under the same id.
_UNDER_FAULTS = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})

_CHANNEL_OPTIONS = (
    # A server that is back is to be asked again soon.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 500),
    # Each channel is a connection of its own.
    ("grpc.use_local_subchannel_pool", 1),
)

_SERVICES = {
    "keys": api_key_service_pb2_grpc.ApiKeyServiceStub,
    "machine_users": machine_user_service_pb2_grpc.MachineUserServiceStub,
    "members": member_service_pb2_grpc.MemberServiceStub,
    "products": product_service_pb2_grpc.ProductServiceStub,
    "tenants": tenant_service_pb2_grpc.TenantServiceStub,
}

_REASONS = {number: name.removeprefix("REASON_") for name, number in pb.CheckResponse.Reason.items()}
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class Target:
    """A server process, as its clients see it: always at the same address."""

    def __init__(self, number: int, address: str, token: str, *, caching: bool = False) -> None:
        self.number = number
        self.caching = caching
        """Whether it is a service with a client cache, which answers checks and nothing else."""
        self._metadata = (("authorization", f"Bearer {token}"),)
        self._channels = [grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS) for _ in range(2)]
        checking, mutating = self._channels
        self._checks = check_service_pb2_grpc.CheckServiceStub(checking)
        self._services = {name: stub(mutating) for name, stub in _SERVICES.items()}
        self.in_flight = 0

    async def close(self) -> None:
        """Close the connections; what is not answered yet fails."""
        for channel in self._channels:
            await channel.close()

    async def check(self, secrets: Sequence[str], timeout_s: float) -> Sequence[pb.BatchCheckResult]:
        """Check secrets: several by one call for all."""
        checks = [pb.CheckRequest(key=secret, resource=RESOURCE, action=ACTION) for secret in secrets]
        if len(checks) == 1:
            response = await self._checks.Check(checks[0], metadata=self._metadata, timeout=timeout_s)
            return [pb.BatchCheckResult(response=response)]
        batch = pb.BatchCheckRequest(checks=checks)
        answer = await self._checks.BatchCheck(batch, metadata=self._metadata, timeout=timeout_s)
        return list(answer.results)

    async def mutate(self, step: Step, *, everywhere: bool) -> Any:
        """Make a mutation once."""
        method = getattr(self._services[step.service], step.verb)
        metadata = (*self._metadata, ("gatekey-wait", "everywhere")) if everywhere else self._metadata
        return await method(step.request, metadata=metadata, timeout=_MUTATION_TIMEOUT_S)


class Load:
    """Checks and mutates until it is stopped."""

    def __init__(self, targets: list[Target], groups: int, rng: random.Random, checks_per_s: float) -> None:
        self._targets = targets
        self._servers = [target for target in targets if not target.caching]
        self._quiet = Group("quiet")
        self._groups = [Group(f"chaos{number}") for number in range(groups)]
        self._rng = rng
        self._interval_s = len(targets) * _CHECKERS / checks_per_s
        self._hot: deque[tuple[float, Timeline]] = deque()
        self._checking: asyncio.TaskGroup
        self._stopping = asyncio.Event()
        self.found = asyncio.Event()
        """Whether a check was allowed that should not have been."""
        self.history = History()
        for group in self._everything():
            group.on_new = self.history.timelines.append

    async def set_up(self) -> None:
        """Make what is to be checked."""
        async with asyncio.TaskGroup() as self._checking:
            for group in self._everything():
                self._checking.create_task(self._set_up(group))

    async def run(self) -> None:
        """Check and mutate until `stop`; then check everything once more, everywhere."""
        async with asyncio.TaskGroup() as self._checking:
            checkers = [
                self._checking.create_task(self._keep_checking(target))
                for target in self._targets
                for _ in range(_CHECKERS)
            ]
            async with asyncio.TaskGroup() as mutating:
                for group in self._groups:
                    mutating.create_task(self._keep_mutating(group))
            for checker in checkers:
                checker.cancel()
        async with asyncio.TaskGroup() as tasks:
            for target in self._targets:
                tasks.create_task(self._check_all(target))

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    async def recover(self) -> None:
        """Return once every process answers a check of a key that nothing happens to."""
        for target in self._targets:
            while not await self._check(target, [self._quiet.keys[0].timeline], _RECOVERY_TIMEOUT_S):
                await asyncio.sleep(_RETRY_S)

    def _everything(self) -> tuple[Group, ...]:
        return self._quiet, *self._groups

    async def _set_up(self, group: Group) -> None:
        for step in group.set_up():
            await self._mutate(group, step)

    async def _keep_checking(self, target: Target) -> None:
        while True:
            await asyncio.sleep(self._interval_s * self._rng.uniform(0.5, 1.5))
            timelines = [self._choose() for _ in range(self._rng.choice(_CHECKED_AT_ONCE))]
            await self._check(target, timelines)

    async def _check_all(self, target: Target) -> None:
        for group in self._everything():
            await self._check(target, group.timelines())

    def _choose(self) -> Timeline:
        while self._hot and self._hot[0][0] < time.monotonic() - _HOT_S:
            self._hot.popleft()
        if self._hot and self._rng.random() < _HOT_SHARE:
            return self._rng.choice(self._hot)[1]
        group = self._rng.choice(self._groups)
        return self._rng.choice(group.timelines())

    async def _check(self, target: Target, timelines: Sequence[Timeline], timeout_s: float = _CHECK_TIMEOUT_S) -> bool:
        """Check and write down; whether all were answered."""
        target.in_flight += 1
        start = time.monotonic()
        try:
            results = await target.check([timeline.secret for timeline in timelines], timeout_s)
        except grpc.aio.AioRpcError as error:
            self._note("check", start, error.code(), error.details())
            return False
        finally:
            target.in_flight -= 1
        end = time.monotonic()
        for timeline, result in zip(timelines, results, strict=True):
            if result.HasField("error"):
                self._note("check of several", start, _CODES[result.error.code], result.error.message)
            else:
                self.history.decided_by_caches += result.response.message == DECIDED_BY_CACHE
                self._write_down(timeline, Check(start, end, target.number, _answer(result.response), target.caching))
        return not any(result.HasField("error") for result in results)

    def _write_down(self, timeline: Timeline, check: Check) -> None:
        timeline.checks.append(check)
        if check.reason == ALLOWED and not timeline.is_right(check):
            self.found.set()

    def _probe(self, timelines: list[Timeline]) -> None:
        """Check at once what a mutation that has just returned was about."""
        for timeline in self._rng.sample(timelines, min(len(timelines), _PROBED_AT_ONCE)):
            self._hot.append((time.monotonic(), timeline))
            for target in self._targets:
                if target.in_flight < _MAX_IN_FLIGHT:
                    self._checking.create_task(self._check(target, [timeline]))

    async def _keep_mutating(self, group: Group) -> None:
        while not self._stopping.is_set():
            await self._mutate(group, group.next_step(self._rng))
            await asyncio.sleep(self._rng.choice(_PAUSES_S))

    async def _mutate(self, group: Group, step: Step) -> None:
        before = group.reasons()
        step.change()
        after = group.reasons()
        changed = {
            timeline: after.get(timeline, GONE)
            for timeline, reason in before.items()
            if after.get(timeline, GONE) != reason
        }
        mutation = Mutation(step.verb, step.target, time.monotonic())
        mutation.everywhere = len(self._servers) < len(self._targets) and self._rng.random() < _EVERYWHERE_SHARE
        mutation.revoked = any(before[timeline] == ALLOWED for timeline in changed)
        self.history.mutations.append(mutation)
        for timeline, reason in changed.items():
            timeline.transitions.append(Transition(mutation, reason))
        answer = await self._send(mutation, step)
        known = len(self.history.timelines)
        step.finish(answer)
        self._probe([*changed, *self.history.timelines[known:]])

    async def _send(self, mutation: Mutation, step: Step) -> Any:
        """Send a mutation until it is answered, each time to another process."""
        step.request.request_id = str(uuid.uuid4())
        while True:
            target = self._rng.choice(self._servers)
            mutation.attempts += 1
            start = time.monotonic()
            try:
                answer = await target.mutate(step, everywhere=mutation.everywhere)
            except grpc.aio.AioRpcError as error:
                if not self._note("mutation", start, error.code(), error.details()):
                    raise
                await asyncio.sleep(_RETRY_S)
                continue
            mutation.end, mutation.process = time.monotonic(), target.number
            return answer

    def _note(self, what: str, start: float, code: grpc.StatusCode, details: str | None) -> bool:
        """Count an error; answers whether it is one that a fault or too much load may bring about."""
        if code in _UNDER_FAULTS:
            self.history.failures.append(Failure(start, time.monotonic(), f"{what} {code.name}"))
            return True
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED and what == "check":
            self.history.refused += 1
            return True
        self.history.errors[f"{what} {code.name}: {details}"] += 1
        return False


def _answer(response: pb.CheckResponse) -> str:
    return ALLOWED if response.allowed else _REASONS[response.reason]
