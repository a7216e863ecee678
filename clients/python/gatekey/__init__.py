"""Gatekey's client: may the holder of this key do this action on this resource?

::

    import gatekey

    with gatekey.Client("gatekey.example:443", tls=gatekey.TLS()) as client:
        decision = client.check(key, gatekey.Path("links", link_id), "update")

What can go wrong is drawn in `gatekey.errors`. The generated API is in `gatekey.v1`, the command line in `gatekey.cli`.
"""

from gatekey._cache.options import Cache
from gatekey._connection import TLS
from gatekey._paths import Path
from gatekey._requests import EVERYWHERE, Wait
from gatekey.client import AsyncClient, Client
from gatekey.decisions import AccessDenied, CheckFailed, Decision, KeyKind, Permission, Question, Reason
from gatekey.errors import (
    Aborted,
    AlreadyExists,
    ApiError,
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    FieldViolation,
    GatekeyError,
    InternalError,
    InvalidArgument,
    InvalidPath,
    Misconfigured,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    SecretWithheld,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "EVERYWHERE",
    "TLS",
    "Aborted",
    "AccessDenied",
    "AlreadyExists",
    "ApiError",
    "AsyncClient",
    "Cache",
    "Cancelled",
    "CheckFailed",
    "Client",
    "DeadlineExceeded",
    "Decision",
    "FailedPrecondition",
    "FieldViolation",
    "GatekeyError",
    "InternalError",
    "InvalidArgument",
    "InvalidPath",
    "KeyKind",
    "Misconfigured",
    "NotFound",
    "Path",
    "Permission",
    "PermissionDenied",
    "Question",
    "Reason",
    "ResourceExhausted",
    "SecretWithheld",
    "Unauthenticated",
    "Unavailable",
    "Wait",
]
