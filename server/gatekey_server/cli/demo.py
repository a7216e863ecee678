"""Something to try at once: `gatekey serve --demo` gives each product of a directory a tenant, an owner and a key."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import typer
from gatekey import _methods as methods
from gatekey.cli import local
from gatekey.cli.calls import Connection
from gatekey.cli.connection import Endpoint
from gatekey.cli.problems import Failure, complain
from gatekey.cli.specs import read_spec
from gatekey.v1 import (
    api_key_service_pb2,
    check_service_pb2,
    member_service_pb2,
    product_service_pb2,
    product_spec_pb2,
    tenant_service_pb2,
    types_pb2,
)

TENANT = "demo"
OWNER = "owner"

# No spec needs more to find one action that a key has and one that it lacks; each costs a check.
_MAX_TRIES = 64
_READING = ("read", "get", "list", "view")

_Reason = check_service_pb2.CheckResponse.Reason
_DEAD = frozenset({_Reason.REASON_KEY_UNKNOWN, _Reason.REASON_KEY_REVOKED, _Reason.REASON_KEY_EXPIRED})


@dataclass(frozen=True, slots=True)
class _Check:
    resource: str
    action: str
    tenant: str = ""

    def arguments(self) -> list[str]:
        return [self.resource, self.action, *(["--tenant", self.tenant] if self.tenant else [])]


@dataclass(frozen=True, slots=True)
class _Demo:
    """What can be tried with one product."""

    product: str
    secret: str
    allowed: _Check | None
    denied: _Check | None


def prepare(endpoint: Endpoint, environment: Sequence[str], specs_dir: Path, keys_file: Path) -> None:
    """Prepare what is not there yet, and print what to try. What goes wrong is a warning, never an error.

    What exists is kept: specs that were changed, and the keys in `keys_file`, which are shown again.
    `environment` holds the variables, ready for a shell, that commands need in order to find the server.
    """
    try:
        with Connection(endpoint) as gatekey:
            demos = list(_prepare_all(gatekey, specs_dir, keys_file))
        if demos:
            typer.echo(_text(demos, keys_file, environment))
    except Failure as failure:
        complain("warning", f"the demo is not complete: {failure.lines[0]}", *failure.lines[1:])
    except OSError as error:
        complain("warning", f"the demo is not complete: {error.strerror}: {error.filename}")
    except Exception as error:  # noqa: BLE001 - the server goes on; the text might hold a secret
        complain("warning", f"the demo is not complete: {type(error).__name__}")


def _prepare_all(gatekey: Connection, specs_dir: Path, keys_file: Path) -> Iterator[_Demo]:
    files = sorted(specs_dir.glob("*.yaml"))
    if not files:
        raise Failure(f"there are no specs (*.yaml) in {specs_dir}")
    secrets = _read_secrets(keys_file)
    # With an external database, nothing else has made the directory by now.
    keys_file.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
    for file in files:
        try:
            yield _prepare_product(gatekey, read_spec(file), secrets, keys_file)
        except Failure as failure:
            complain("warning", f"no demo of {file.name}: {failure.lines[0]}", *failure.lines[1:])


def _prepare_product(
    gatekey: Connection, wanted: product_spec_pb2.ProductSpec, secrets: dict[str, str], keys_file: Path
) -> _Demo:
    spec = _apply(gatekey, wanted)
    secret = secrets.get(spec.product)
    candidates = list(islice(_candidates(spec), _MAX_TRIES))
    if secret is None or _reason(gatekey, secret, candidates[0]) in _DEAD:
        secret = _create_key(gatekey, spec)
        secrets[spec.product] = secret
        # A key whose secret was printed and then lost could not be found again.
        _write_secrets(keys_file, secrets)
    return _Demo(spec.product, secret, *_try_out(gatekey, secret, candidates))


@contextmanager
def _unless(reason: str) -> Iterator[None]:
    """Pass over a failure for this reason."""
    try:
        yield
    except Failure as failure:
        if failure.reason != reason:
            raise


def _apply(gatekey: Connection, wanted: product_spec_pb2.ProductSpec) -> product_spec_pb2.ProductSpec:
    """Return the spec in force. A product that exists keeps its own; only a missing one is created."""
    request = product_service_pb2.GetProductRequest(name=f"products/{wanted.product}")
    try:
        return gatekey.call(methods.GET_PRODUCT, request).spec
    except Failure as failure:
        if failure.reason != "PRODUCT_NOT_FOUND":
            raise
    return gatekey.call(methods.APPLY_PRODUCT, product_service_pb2.ApplyProductRequest(spec=wanted)).spec


def _create_key(gatekey: Connection, spec: product_spec_pb2.ProductSpec) -> str:
    parent = f"products/{spec.product}"
    tenant = f"{parent}/tenants/{TENANT}"
    owner_role = next(role.role for role in spec.roles if role.owner)
    with _unless("TENANT_EXISTS"):
        gatekey.call(methods.CREATE_TENANT, tenant_service_pb2.CreateTenantRequest(parent=parent, tenant_id=TENANT))
    with _unless("MEMBER_EXISTS"):
        gatekey.call(
            methods.ADD_MEMBER,
            member_service_pb2.AddMemberRequest(
                parent=tenant, member_id=OWNER, member=member_service_pb2.Member(role=owner_role)
            ),
        )
    compiled = spec.secret_keys
    of_tenant = compiled.default_owner == product_spec_pb2.SecretKeyPolicy.OWNER_TENANT
    mode = compiled.default_mode or compiled.modes[0]
    key = api_key_service_pb2.ApiKey(
        display_name="Demo",
        owner=tenant if of_tenant else f"{tenant}/members/{OWNER}",
        mode=mode,
        grants=_grants(compiled, spec) if mode == types_pb2.ACCESS_MODE_RESTRICTED else [],
    )
    request = api_key_service_pb2.CreateApiKeyRequest(parent=tenant, api_key=key)
    return gatekey.call(methods.CREATE_API_KEY, request).secret


def _grants(compiled: product_spec_pb2.SecretKeyPolicy, spec: product_spec_pb2.ProductSpec) -> list[types_pb2.Grant]:
    """What a restricted key is to be granted: some of what can be."""
    if compiled.restricted.scope == product_spec_pb2.RestrictedPolicy.SCOPE_RESOURCES:
        return [compiled.restricted.grantable[0]]
    offered = [action for grant in compiled.restricted.grantable for action in grant.actions]
    if "*" in offered:
        offered = [action for collection in spec.collections for action in collection.actions]
    reading = [action for action in dict.fromkeys(offered) if action in (spec.read_actions or _READING)]
    return [types_pb2.Grant(resource="*", actions=reading or offered[:1])]


def _candidates(spec: product_spec_pb2.ProductSpec) -> Iterator[_Check]:
    """Checks to try, the likely ones first: one resource of each collection, and reading before the rest."""
    reading = spec.read_actions or _READING
    for is_reading in (True, False):
        for collection in spec.collections:
            resource = f"{collection.pattern}/*".replace("*", "abc")
            for action in collection.actions:
                if (action in reading) is is_reading:
                    yield _Check(resource, action)


def _try_out(gatekey: Connection, secret: str, candidates: list[_Check]) -> tuple[_Check | None, _Check | None]:
    """Find a check that is allowed and one that is denied, by asking."""
    allowed = denied = None
    for candidate in candidates:
        if _reason(gatekey, secret, candidate) == _Reason.REASON_ALLOWED:
            allowed = allowed or candidate
        else:
            denied = denied or candidate
        if allowed and denied:
            break
    if allowed and not denied:
        denied = _Check(allowed.resource, allowed.action, "other")
    return allowed, denied


def _reason(gatekey: Connection, secret: str, check: _Check) -> int:
    request = check_service_pb2.CheckRequest(key=secret, resource=check.resource, action=check.action)
    return gatekey.call(methods.CHECK, request).reason


def _read_secrets(path: Path) -> dict[str, str]:
    try:
        content = local.read_private(path)
    except local.LocalConfigError as error:
        raise Failure(str(error)) from error
    return {product: secret for product, secret in (content or {}).items() if isinstance(secret, str)}


def _write_secrets(path: Path, secrets: Mapping[str, str]) -> None:
    # Neither can hold a quote or a backslash: they are ids of products, and prefixes with base-62 characters.
    lines = [f'{product} = "{secret}"\n' for product, secret in sorted(secrets.items())]
    local.write_private(path, "".join(["# The keys of `gatekey serve --demo`, by product.\n", *lines]))


def _text(demos: list[_Demo], keys_file: Path, environment: Sequence[str]) -> str:
    width = max(len(demo.product) for demo in demos)
    lines = ["", "Try it in a second terminal:", *_commands(demos[0], environment)]
    lines += ["", f"The demo keys ({keys_file}):", ""]
    for demo in demos:
        lines.append(f"  {demo.product:{width}}  {demo.secret}")
        for verdict, check in (("allowed", demo.allowed), ("denied", demo.denied)):
            if check is not None:
                lines.append(f"  {'':{width}}    {verdict:7}  {shlex.join(check.arguments())}")
    return "\n".join([*lines, ""])


def _commands(demo: _Demo, environment: Sequence[str]) -> Iterator[str]:
    for verdict, check in (("allowed", demo.allowed), ("denied", demo.denied)):
        if check is not None:
            words = [*environment, shlex.join([_program(), "check", demo.secret, *check.arguments()])]
            yield from ("", f"  # {verdict}", f"  {' '.join(words)}")


def _program() -> str:
    """The words by which this program can be started from the current directory."""
    path = Path(sys.argv[0]).absolute()
    if not path.is_file() or not os.access(path, os.X_OK):
        return "gatekey"
    if path.is_relative_to(Path.cwd()):
        below = str(path.relative_to(Path.cwd()))
        return below if "/" in below else f"./{below}"
    return "gatekey" if shutil.which("gatekey") == str(path) else str(path)
