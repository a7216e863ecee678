"""Calls to the server through the client's transport, with `ApiError` as the `Failure` that people read."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

from google.protobuf.message import Message

from gatekey import errors
from gatekey._calls import Call, Listing, Method, Transport
from gatekey._connection import ADMIN_S, PAGE_SIZE, endpoint_at, is_this_machine
from gatekey._requests import call_of
from gatekey._tokens import Tokens
from gatekey.cli.connection import Endpoint, find_endpoint
from gatekey.cli.fields import typed
from gatekey.cli.problems import Failure, complain

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

_MAY_BE_DONE = "what was asked may still have been done"


class Connection:
    """The client's transport to the server of an endpoint. To be closed, or used in a `with`."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        target = endpoint_at(endpoint.addresses, endpoint.tls)
        self._transport = Transport(target, Tokens(endpoint.token, optional=False))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transport.close()

    def call(self, method: Method[Request, Response], request: Request, timeout_s: float = ADMIN_S) -> Response:
        """Call one method. Raises `Failure`."""
        return self.call_with_trailers(method, request, timeout_s)[0]

    def call_with_trailers(
        self, method: Method[Request, Response], request: Request, timeout_s: float = ADMIN_S
    ) -> tuple[Response, dict[str, str]]:
        """Call one method, and return its response with the text in its trailing metadata. Raises `Failure`."""
        return self._make(call_of(method, request, actor=self._endpoint.actor), timeout_s)

    def pages(self, method: Method[Request, Response], request: Request) -> Iterator[Response]:
        """Call a method that lists until the list ends; one page at least. Raises `Failure`."""
        fields: Any = request
        fields.page_size = PAGE_SIZE
        listing: Listing[Response, Response] = Listing(
            call_of(method, request, actor=self._endpoint.actor), lambda page: [page]
        )
        call: Call[Response] | None = listing.first
        while call is not None:
            page, _ = self._make(call, ADMIN_S)
            yield page
            call = listing.after(page)

    def _make(self, call: Call[Response], timeout_s: float) -> tuple[Response, dict[str, str]]:
        try:
            return self._transport.make_with_trailers(call, timeout_s)
        except errors.ApiError as error:
            raise _failure(error, self._endpoint, timeout_s) from None
        except KeyboardInterrupt:
            if _changes_something(call.request):
                complain("warning", f"interrupted: {_MAY_BE_DONE}")
            raise


def connect() -> Connection:
    """Connect to the server that `find_endpoint` finds. Warns where others could read along."""
    endpoint = find_endpoint()
    if endpoint.tls is None and not all(map(_is_this_machine, endpoint.addresses)):
        complain(
            "warning",
            f"{endpoint.address} is not this machine, and the connection is not encrypted:"
            " whoever sees it can take the token and the keys",
        )
    return Connection(endpoint)


def _changes_something(request: Message) -> bool:
    mutation: Any = request
    return "request_id" in request.DESCRIPTOR.fields_by_name and not mutation.validate_only


def _is_this_machine(address: str) -> bool:
    # A server listens on them, and only clients on its machine reach it by them.
    is_unspecified = address.rpartition(":")[0] in ("0.0.0.0", "[::]")  # noqa: S104 - what is not bound to here
    return is_unspecified or is_this_machine(address)


def _failure(error: errors.ApiError, endpoint: Endpoint, timeout_s: float) -> Failure:
    if not error.reason:
        return _transport_failure(error, endpoint, timeout_s)
    text, violations = error.message, error.violations
    lines = [f"{typed(v.field)}: {v.description} ({v.reason})" for v in violations]
    if isinstance(error, errors.Unauthenticated):
        lines.append(f"the token came from {endpoint.token_source}, and went to {endpoint.address}")
    if len(violations) == 1 and violations[0].reason == error.reason:
        lines = []
        if text.startswith(f"{violations[0].field}: "):
            text = f"{typed(violations[0].field)}: {text.partition(': ')[2]}"
    elif violations and text.startswith(f"{violations[0].field}: "):
        text = f"the request has {len(violations)} problems" if len(violations) > 1 else "the request has a problem"
    return Failure(text, *lines, reason=error.reason)


def _transport_failure(error: errors.ApiError, endpoint: Endpoint, timeout_s: float) -> Failure:
    code = error.code.name
    # An error without a text has the name of its code in its place.
    text = error.message if error.message != code else ""
    if isinstance(error, errors.Unavailable):
        return Failure(
            f"no Gatekey responds at {endpoint.address}",
            *(line for line in (text, *_hints(text, endpoint)) if line),
            "`gatekey serve` starts one; GATEKEY_ADDRESS and GATEKEY_TOKEN name another",
            reason=code,
        )
    if isinstance(error, errors.DeadlineExceeded):
        return Failure(f"{endpoint.address} did not respond within {timeout_s:g} s; {_MAY_BE_DONE}", reason=code)
    if code == "UNIMPLEMENTED":
        return Failure(f"what listens at {endpoint.address} is no Gatekey, or an older one", text, reason=code)
    return Failure(text or "the call failed", reason=code)


def _hints(text: str, endpoint: Endpoint) -> Iterator[str]:
    """Name the variable that is probably wrong: the transport tells only what it saw."""
    # A server that speaks TLS, or wants a certificate, hangs up.
    hung_up = any(word in text.lower() for word in ("closed", "reset", "broken pipe", "eof", "parsing"))
    if endpoint.tls is None:
        if hung_up:
            yield "this was plain text; if the server speaks TLS, GATEKEY_CA has to name the file of its authorities"
    elif "WRONG_VERSION_NUMBER" in text:
        yield "the server does not speak TLS: leave GATEKEY_CA out"
    elif "CERTIFICATE_VERIFY_FAILED" in text:
        yield "GATEKEY_CA does not vouch for the server's certificate, or the certificate has another name or is over"
    elif "handshaker" in text:
        yield "what GATEKEY_CA, GATEKEY_CLIENT_CERTIFICATE or GATEKEY_CLIENT_KEY names cannot be used"
    elif endpoint.tls.certificate is None and hung_up:
        yield "the server may want a certificate: GATEKEY_CLIENT_CERTIFICATE and GATEKEY_CLIENT_KEY"
