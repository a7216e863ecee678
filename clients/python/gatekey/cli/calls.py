"""Calls to the server: with the token, with a deadline, and with its refusals as failures."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from gatekey import errors
from gatekey._connection import OPTIONS, PAGE_SIZE, target_of
from gatekey.cli.connection import CALL_S, Endpoint
from gatekey.cli.fields import typed
from gatekey.cli.problems import Failure, complain
from gatekey.v1 import (
    api_key_service_pb2_grpc,
    audit_service_pb2_grpc,
    check_service_pb2_grpc,
    machine_user_service_pb2_grpc,
    member_service_pb2_grpc,
    product_service_pb2_grpc,
    tenant_service_pb2_grpc,
)

_MAY_BE_DONE = "what was asked may still have been done"


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
        options = list(OPTIONS)
        if len(endpoint.addresses) > 1:
            # Else all of them together are told to the server as its name, which is none.
            options.append(("grpc.default_authority", endpoint.addresses[0]))
        target = target_of(endpoint.addresses)
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
        """Call one method. Raises as `call_with_trailers`."""
        return self.call_with_trailers(method, request, timeout_s)[0]

    def call_with_trailers(
        self, method: grpc.UnaryUnaryMultiCallable[Request, Response], request: Request, timeout_s: float = CALL_S
    ) -> tuple[Response, dict[str, str]]:
        """Call one method; answers what the metadata behind the response says as well. Raises `Failure`.

        A mutation gets a `request_id`: the connection's options repeat a call whose answer was lost.
        """
        message: Any = request
        if "request_id" in message.DESCRIPTOR.fields_by_name and not (message.request_id or message.validate_only):
            message.request_id = str(uuid.uuid4())
        metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {self._endpoint.token}"),)
        if self._endpoint.actor:
            metadata += (("gatekey-actor", self._endpoint.actor),)
        try:
            response, call = method.with_call(request, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as error:
            raise _failure(error, self._endpoint, timeout_s) from None
        except KeyboardInterrupt:
            if "request_id" in message.DESCRIPTOR.fields_by_name and not message.validate_only:
                complain("warning", f"interrupted: {_MAY_BE_DONE}")
            raise
        return response, {key: value for key, value in call.trailing_metadata() or () if isinstance(value, str)}

    def pages(self, method: grpc.UnaryUnaryMultiCallable[PageRequest, Page], request: PageRequest) -> Iterator[Page]:
        """Call a method that lists until the list ends; one page at least. Raises `Failure`."""
        request.page_size = PAGE_SIZE
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
        return _transport_failure(failed.code, error.details() or "", endpoint, timeout_s)
    lines = [f"{typed(v.field)}: {v.description} ({v.reason})" for v in violations]
    if failed.code is grpc.StatusCode.UNAUTHENTICATED:
        lines.append(f"the token came from {endpoint.token_source}, and went to {endpoint.address}")
    if len(violations) == 1 and violations[0].reason == failed.reason:
        lines = []
        if text.startswith(f"{violations[0].field}: "):
            text = f"{typed(violations[0].field)}: {text.partition(': ')[2]}"
    elif violations and text.startswith(f"{violations[0].field}: "):
        text = f"the request has {len(violations)} problems" if len(violations) > 1 else "the request has a problem"
    return Failure(text, *lines, reason=failed.reason)


def _transport_failure(code: grpc.StatusCode, text: str, endpoint: Endpoint, timeout_s: float) -> Failure:
    if code is grpc.StatusCode.UNAVAILABLE:
        return Failure(
            f"no Gatekey answers at {endpoint.address}",
            *(line for line in (text, *_hints(text, endpoint)) if line),
            "`gatekey serve` starts one; GATEKEY_ADDRESS and GATEKEY_TOKEN name another",
            reason=code.name,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return Failure(
            f"{endpoint.address} did not answer within {timeout_s:g} s; {_MAY_BE_DONE}",
            reason=code.name,
        )
    if code is grpc.StatusCode.UNIMPLEMENTED:
        return Failure(f"what listens at {endpoint.address} is no Gatekey, or an older one", text, reason=code.name)
    return Failure(text or "the call failed", reason=code.name)


def _hints(text: str, endpoint: Endpoint) -> Iterator[str]:
    """Name the variable that is probably wrong: the transport tells only what it saw."""
    # A server that speaks TLS, or wants a certificate, hangs up.
    hung_up = any(word in text.lower() for word in ("closed", "reset", "broken pipe", "eof", "parsing"))
    if endpoint.ca is None:
        if hung_up:
            yield "this was plain text; if the server speaks TLS, GATEKEY_CA has to name the file of its authorities"
    elif "WRONG_VERSION_NUMBER" in text:
        yield "the server does not speak TLS: leave GATEKEY_CA out"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        yield "GATEKEY_CA does not vouch for the server's certificate, or the certificate has another name or is over"
    elif "handshaker" in text:
        yield "what GATEKEY_CA, GATEKEY_CLIENT_CERTIFICATE or GATEKEY_CLIENT_KEY names cannot be used"
    elif endpoint.certificate is None and hung_up:
        yield "the server may want a certificate: GATEKEY_CLIENT_CERTIFICATE and GATEKEY_CLIENT_KEY"
