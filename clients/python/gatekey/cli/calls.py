"""Calls to the server: with the token, with a deadline, and with its refusals as failures."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Protocol, Self, TypeVar

import grpc

from gatekey import errors
from gatekey.cli.connection import CALL_S, Endpoint
from gatekey.cli.problems import Failure
from gatekey.v1 import (
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    check_service_pb2_grpc,
    machine_user_service_pb2_grpc,
    member_service_pb2_grpc,
    product_service_pb2_grpc,
    tenant_service_pb2_grpc,
)

_PAGE_SIZE = 200
# A page may hold that many of the largest things that the server accepts.
_MAX_ANSWER_BYTES = _PAGE_SIZE << 20


class _PageRequest(Protocol):
    page_size: int
    page_token: str


class _Page(Protocol):
    @property
    def next_page_token(self) -> str: ...


Request = TypeVar("Request")
Response = TypeVar("Response")
PageRequest = TypeVar("PageRequest", bound=_PageRequest)
Page = TypeVar("Page", bound=_Page)


class Connection:
    """The server's services, called with the token and a deadline. To be closed, or used in a `with`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        options = [
            ("grpc.max_receive_message_length", _MAX_ANSWER_BYTES),
            # A proxy for the web is not meant to see tokens in plain text.
            ("grpc.enable_http_proxy", 0),
        ]
        target = f"dns:///{endpoint.address}"
        if endpoint.ca is None:
            self._channel = grpc.insecure_channel(target, options)
        else:
            credentials = grpc.ssl_channel_credentials(endpoint.ca, endpoint.key, endpoint.certificate)
            self._channel = grpc.secure_channel(target, credentials, options)
        self.checks = check_service_pb2_grpc.CheckServiceStub(self._channel)
        self.products = product_service_pb2_grpc.ProductServiceStub(self._channel)
        self.tenants = tenant_service_pb2_grpc.TenantServiceStub(self._channel)
        self.members = member_service_pb2_grpc.MemberServiceStub(self._channel)
        self.machine_users = machine_user_service_pb2_grpc.MachineUserServiceStub(self._channel)
        self.keys = api_key_service_pb2_grpc.ApiKeyServiceStub(self._channel)
        self.audit = audit_service_pb2_grpc.AuditServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    def call(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout_s: float = CALL_S
    ) -> Response:
        """Call one method. Raises `Failure`."""
        metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {self._endpoint.token}"),)
        if self._endpoint.actor:
            metadata += (("gatekey-actor", self._endpoint.actor),)
        try:
            return method(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _failure(error, self._endpoint, timeout_s) from None

    def pages(self, method: grpc.UnaryUnaryMultiCallable[PageRequest, Page], request: PageRequest) -> Iterator[Page]:
        """Call a method that lists until the list ends; one page at least. Raises `Failure`."""
        request.page_size = _PAGE_SIZE
        while True:
            page = self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token


def _failure(error: grpc.RpcError, endpoint: Endpoint, timeout_s: float) -> Failure:
    failed = errors.from_rpc(error)
    text, violations = failed.message, failed.violations
    if not failed.reason:
        return _transport_failure(failed.code, error.details() or "", endpoint.address, timeout_s)
    lines = [f"{v.field}: {v.description} ({v.reason})" for v in violations]
    if failed.code is grpc.StatusCode.UNAUTHENTICATED:
        lines.append(f"the token came from {endpoint.token_source}")
    if len(violations) == 1 and violations[0].reason == failed.reason:
        lines = []
    elif violations and text.startswith(f"{violations[0].field}: "):
        text = f"the request has {len(violations)} problems" if len(violations) > 1 else "the request has a problem"
    return Failure(text, *lines, reason=failed.reason)


def _transport_failure(code: grpc.StatusCode, text: str, address: str, timeout_s: float) -> Failure:
    if code is grpc.StatusCode.UNAVAILABLE:
        return Failure(
            f"no Gatekey answers at {address}",
            text,
            "`gatekey serve` starts one; GATEKEY_ADDRESS and GATEKEY_TOKEN name another",
            reason=code.name,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(
            f"{address} did not answer within {timeout_s:g} s; what was asked may still have been done",
            reason=code.name,
        )
    return Failure(text or "the call failed", reason=code.name)
