"""The decision table, `tests/decisions.yaml`: read, and refused where anything in it is not understood."""

import enum
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from gatekey.core.decisions import Reason
from gatekey.core.secrets import CHECKSUM_CHARS, RANDOM_CHARS, TAIL_CHARS, checksum
from gatekey.v1 import product_spec_pb2
from google.protobuf import json_format
from pydantic import BaseModel, ConfigDict, Field, model_validator
from ruamel.yaml import YAML

from tests.support.server import EXAMPLES, ROOT

TABLE = ROOT / "tests" / "decisions.yaml"

OWN_TENANT = "north"
OTHER_TENANT = "south"

REFUSALS = frozenset(
    {
        "RESOURCE_REQUIRED",
        "RESOURCE_INVALID",
        "RESOURCE_TOO_LONG",
        "ACTION_REQUIRED",
        "ACTION_INVALID",
        "ID_REQUIRED",
        "ID_INVALID",
    }
)
"""Why a request can be refused as invalid, so that no decision is made."""

_REPLACES = "replaces"
_EMPTY = "''"


class State(enum.StrEnum):
    """Something that happened to a key, its secret, its owner or its tenant."""

    REVOKED = "revoked"
    DISABLED = "disabled"
    EXPIRED = "expired"
    EXPIRES_LATER = "expires-later"
    SECRET_EXPIRED = "secret-expired"
    SECRET_EXPIRES_LATER = "secret-expires-later"
    SUSPENDED = "suspended"
    TENANT_DELETED = "tenant-deleted"
    KEY_DELETED = "key-deleted"
    OWNER_REMOVED = "owner-removed"


class Presented(enum.StrEnum):
    """How the holder of a secret presents it."""

    ISSUED = "issued"
    MISTYPED = "mistyped"
    FORGED = "forged"
    OTHER_PREFIX = "other-prefix"
    OTHER_CASE = "other-case"
    SPACED = "spaced"
    WITH_SCHEME = "with-scheme"
    CUT = "cut"

    def of(self, secret: str) -> str:
        """What is presented of the secret that was issued."""
        body, sum_ = secret[:-CHECKSUM_CHARS], secret[-CHECKSUM_CHARS:]
        changed = body[:-1] + ("a" if body[-1] != "a" else "b")
        moved = "other_" + body[-RANDOM_CHARS:]
        return {
            Presented.ISSUED: secret,
            Presented.MISTYPED: changed + sum_,
            Presented.FORGED: changed + checksum(changed),
            Presented.OTHER_PREFIX: moved + checksum(moved),
            Presented.OTHER_CASE: secret[:-TAIL_CHARS] + secret[-TAIL_CHARS:].swapcase(),
            Presented.SPACED: f" {secret}",
            Presented.WITH_SCHEME: f"Bearer {secret}",
            Presented.CUT: body,
        }[self]


class Caller(enum.StrEnum):
    """Who asks."""

    ANYONE = "anyone"
    OWN_PRODUCT = "own-product"
    OTHER_PRODUCT = "other-product"
    ADMINISTRATOR = "administrator"

    @property
    def may_check(self) -> bool:
        """Whether the caller may check keys of the key's product."""
        return self in (Caller.ANYONE, Caller.OWN_PRODUCT)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Key(_Strict):
    """A key, its owner, and the spec it was made under."""

    spec: str
    later: str | None = None
    kind: Literal["SECRET", "PUBLISHABLE"] = "SECRET"
    role: str | None = None
    role_later: str | None = None
    machine: bool = False
    tenant: bool = False
    mode: Literal["ALL", "READ_ONLY", "RESTRICTED"] | None = None
    grants: dict[str, list[str]] = {}

    @model_validator(mode="after")
    def _one_owner(self) -> Self:
        owners = [self.role is not None, self.machine, self.tenant, self.kind == "PUBLISHABLE"]
        if sum(owners) != 1:
            raise ValueError("a key has a role, or belongs to a machine user or to the tenant, or is publishable")
        if self.role_later and not self.role:
            raise ValueError("`role_later` needs `role`")
        return self

    @property
    def role_now(self) -> str | None:
        """The member's role when the check is made; None where the owner is no member."""
        return self.role_later or self.role


@dataclass(frozen=True)
class Holder:
    """A key in a state: what the holder of a secret has."""

    key: str
    state: frozenset[State]


class Case(_Strict):
    """One question and its answer."""

    group: str
    key: str
    state: str = ""
    secret: Presented = Presented.ISSUED
    caller: Caller = Caller.ANYONE
    tenant: str | None = None
    resource: str
    action: str
    expected: str

    @model_validator(mode="after")
    def _understood(self) -> Self:
        if self.expected not in Reason.__members__ and self.expected not in REFUSALS:
            raise ValueError(f"`{self.expected}` is neither a reason nor a refusal")
        if len(self.holder.state) != len(self._words()):
            raise ValueError(f"`{self.state}` says something twice")
        return self

    @property
    def id(self) -> str:
        """The case's name: its group, and whatever sets it apart from the others in it."""
        parts = [f"{self.group}: {self.key}"]
        if self.state:
            parts.append(f"({self.state})")
        if self.secret is not Presented.ISSUED:
            parts.append(f"presented {self.secret}")
        if self.caller is not Caller.ANYONE:
            parts.append(f"to {self.caller}")
        parts.append(f"{self.action or _EMPTY} {self.resource or _EMPTY}")
        if self.tenant is not None:
            parts.append(f"in {self.tenant or _EMPTY}")
        return " ".join(parts).replace(" + ", "+")

    @property
    def holder(self) -> Holder:
        """Whose question it is."""
        return Holder(self.key, frozenset(State(word) for word in self._words()))

    @property
    def refused(self) -> bool:
        """Whether the request is refused, and not decided."""
        return self.expected in REFUSALS

    @property
    def missing(self) -> list[tuple[str, str]]:
        """The resource and action that the answer must name as missing."""
        return [(self.resource, self.action)] if self.expected.endswith("_PERMISSION_MISSING") else []

    def _words(self) -> list[str]:
        return self.state.split(" + ") if self.state else []


class _Group(_Strict):
    group: str
    about: str
    columns: list[str] = ["resource", "action", "expected"]
    rows: list[list[str | None]] = Field(min_length=1)
    key: str | None = None
    state: str | None = None
    secret: str | None = None
    caller: str | None = None
    tenant: str | None = None
    resource: str | None = None
    action: str | None = None
    expected: str | None = None

    def cases(self) -> Iterator[Case]:
        values = self.model_dump(exclude={"about", "columns", "rows"}, exclude_none=True)
        if twice := sorted(set(values) & set(self.columns)):
            raise ValueError(f"{self.group}: {twice} are both columns and values of the group")
        for row in self.rows:
            yield Case.model_validate({**values, **dict(zip(self.columns, row, strict=True))})


class Table(_Strict):
    """The whole table."""

    specs: dict[str, dict[str, Any]]
    keys: dict[str, Key]
    groups: list[_Group]

    @cached_property
    def cases(self) -> list[Case]:
        """All cases, in the order of the table."""
        return [case for group in self.groups for case in group.cases()]

    def spec(self, name: str) -> product_spec_pb2.ProductSpec:
        """A spec by name, as a new message."""
        return json_format.ParseDict(self._document(name), product_spec_pb2.ProductSpec())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key in self.keys.values():
            for name in filter(None, (key.spec, key.later)):
                self.spec(name)
        _refuse("groups that share a name", _repeated(group.group for group in self.groups))
        _refuse("cases that share a name", _repeated(case.id for case in self.cases))
        used = {case.key for case in self.cases}
        _refuse("keys that are not declared", used - set(self.keys))
        _refuse("keys that no case uses", set(self.keys) - used)
        named = {name for key in self.keys.values() for name in (key.spec, key.later)}
        named |= {document.get(_REPLACES) for document in self.specs.values()}
        _refuse("specs that no key uses", set(self.specs) - named)
        return self

    def _document(self, name: str) -> dict[str, Any]:
        document: dict[str, Any] = self.specs[name] if name in self.specs else _load(EXAMPLES / f"{name}.yaml")
        if _REPLACES not in document:
            return document
        merged = {**self._document(document[_REPLACES]), **document}
        return {field: value for field, value in merged.items() if field != _REPLACES and value is not None}


def load() -> Table:
    """Read the table. Raises `ValueError` where it is not understood or contradicts itself."""
    return Table.model_validate(_load(TABLE))


def _load(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def _repeated(names: Iterator[str]) -> set[str]:
    return {name for name, count in Counter(names).items() if count > 1}


def _refuse(what: str, names: set[str]) -> None:
    if names:
        raise ValueError(f"{what}: {sorted(names)}")
