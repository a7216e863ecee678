"""`grpc.health.v1.Health`: whether the server can decide now. It needs no token."""

import asyncio
from collections.abc import AsyncIterator, Iterable

from gatekey.core.errors import NotFound
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2 import HealthCheckResponse

SERVING = HealthCheckResponse.SERVING
NOT_SERVING = HealthCheckResponse.NOT_SERVING
SERVICE_NAME: str = pb.DESCRIPTOR.services_by_name["Health"].full_name


class Health:
    """The health service, with one status for all services."""

    def __init__(self, services: Iterable[str]) -> None:
        self._services = frozenset(("", *services))
        self._status = NOT_SERVING
        self._is_over = False
        self._changed = asyncio.Event()

    def set(self, *, serving: bool) -> None:
        """Report a status from now on."""
        if not self._is_over:
            self._tell(SERVING if serving else NOT_SERVING)

    def end(self) -> None:
        """Report `NOT_SERVING`, finally."""
        self._is_over = True
        self._tell(NOT_SERVING)

    def check(self, request: pb.HealthCheckRequest) -> pb.HealthCheckResponse:
        """Return the status of a service. Raises `NotFound`."""
        if request.service not in self._services:
            raise NotFound("SERVICE_NOT_FOUND", "there is no such service")
        return HealthCheckResponse(status=self._status)

    def list(self, _: pb.HealthListRequest) -> pb.HealthListResponse:
        """Return the status of every service."""
        return pb.HealthListResponse(
            statuses={name: HealthCheckResponse(status=self._status) for name in self._services}
        )

    async def watch(self, request: pb.HealthCheckRequest) -> AsyncIterator[pb.HealthCheckResponse]:
        """Yield the status of a service, now and whenever it changes, without end."""
        # By the protocol, a watch of an unknown service stays open, too.
        is_known, told = request.service in self._services, None
        while True:
            changed = self._changed
            status = self._status if is_known else HealthCheckResponse.SERVICE_UNKNOWN
            if status != told:
                told = status
                yield HealthCheckResponse(status=status)
            await changed.wait()

    def _tell(self, status: "HealthCheckResponse.ServingStatus") -> None:
        self._status = status
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
