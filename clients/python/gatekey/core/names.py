"""Ids, and the resource names of Gatekey's own API."""

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from gatekey.core.errors import InvalidRequest
from gatekey.core.grants import ID_CHARS, Path

MAX_DISPLAY_NAME_CHARS = 128
MAX_LABELS = 64
MAX_LABEL_CHARS = 256

_ID = re.compile(rf"[{ID_CHARS}]{{1,128}}")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_./-]{0,62}")
_PRODUCT_ID = re.compile(r"[a-z](?:-?[a-z0-9]){0,62}")
_NOT_IDS = frozenset({".", "..", "-"})  # `-` stands for "any parent" in resource names (AIP-159)
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
# Two digits at a time, because a check of a key that is not in memory formats an id.
_CROCKFORD_PAIRS = tuple(first + second for first in _CROCKFORD for second in _CROCKFORD)
_KEY_ID = re.compile(rf"key_[0-7][{_CROCKFORD}]{{25}}")


def is_product_id(text: str) -> bool:
    """Whether the text is a lower-case id of at most 63 characters."""
    return len(text) <= 63 and _PRODUCT_ID.fullmatch(text) is not None


def parse_id(text: str, field: str) -> str:
    """Return an id that the caller chose, validated. Raises `InvalidRequest` (`ID_REQUIRED`, `ID_INVALID`)."""
    if not text:
        raise InvalidRequest.at(field, "ID_REQUIRED", "an id is required")
    if text in _NOT_IDS or not _ID.fullmatch(text):
        raise InvalidRequest.at(
            field,
            "ID_INVALID",
            "an id is 1 to 128 characters of A-Z a-z 0-9 . _ ~ ! $ & ' ( ) + , ; = : @ % - and not `.`, `..` or `-`",
        )
    return text


def parse_display_name(text: str, field: str, *, required: bool = False) -> str:
    """Return a display name, validated.

    Raises `InvalidRequest` (`DISPLAY_NAME_REQUIRED`, `DISPLAY_NAME_TOO_LONG`, `DISPLAY_NAME_INVALID`).
    """
    if required and not text.strip():
        raise InvalidRequest.at(field, "DISPLAY_NAME_REQUIRED", "a name is required")
    if len(text) > MAX_DISPLAY_NAME_CHARS:
        raise InvalidRequest.at(field, "DISPLAY_NAME_TOO_LONG", f"more than {MAX_DISPLAY_NAME_CHARS} characters")
    if not text.isprintable():
        raise InvalidRequest.at(field, "DISPLAY_NAME_INVALID", "holds a character that cannot be printed")
    return text


def parse_text(text: str, field: str, most_chars: int) -> str:
    """Return a text for people, validated. It may have several lines. Raises `InvalidRequest` (`TEXT_INVALID`)."""
    if len(text) > most_chars:
        raise InvalidRequest.at(field, "TEXT_INVALID", f"more than {most_chars} characters")
    if not all(character.isprintable() or character == "\n" for character in text):
        raise InvalidRequest.at(field, "TEXT_INVALID", "holds a character that cannot be printed")
    return text


def parse_labels(labels: Mapping[str, str], field: str) -> dict[str, str]:
    """Return labels, validated. Raises `InvalidRequest` (`LABELS_INVALID`)."""
    if len(labels) > MAX_LABELS:
        raise InvalidRequest.at(field, "LABELS_INVALID", f"more than {MAX_LABELS}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            raise InvalidRequest.at(
                field, "LABELS_INVALID", "a label's key is 1 to 63 characters of a-z 0-9 _ . / -, a letter first"
            )
        if len(value) > MAX_LABEL_CHARS or not value.isprintable():
            raise InvalidRequest.at(
                f"{field}[{key}]", "LABELS_INVALID", f"a value is at most {MAX_LABEL_CHARS} printable characters"
            )
    return dict(labels)


def format_key_id(key_uid: uuid.UUID) -> str:
    """Return the id of a key's UUID: `key_` and 26 characters of Crockford's base 32."""
    number = key_uid.int
    return "key_" + "".join([_CROCKFORD_PAIRS[(number >> shift) & 1023] for shift in range(120, -1, -10)])


def parse_key_id(text: str) -> uuid.UUID | None:
    """Return a key's UUID, from its id; None where no key can have that id."""
    if not _KEY_ID.fullmatch(text):
        return None
    number = 0
    for character in text[4:]:
        number = number << 5 | _CROCKFORD.index(character)
    return uuid.UUID(int=number)


def new_key_uid(unix_ms: int, random_bits: int) -> uuid.UUID:
    """Return a new UUID of version 7, whose order is the order of creation to the millisecond.

    `random_bits` are 74 random bits.
    """
    rand_a, rand_b = random_bits >> 62 & 0xFFF, random_bits & (1 << 62) - 1
    return uuid.UUID(int=(unix_ms & (1 << 48) - 1) << 80 | 7 << 76 | rand_a << 64 | 2 << 62 | rand_b)


@dataclass(frozen=True, slots=True)
class ProductName:
    """`products/{product}`."""

    product: str

    def __str__(self) -> str:
        return f"products/{self.product}"

    @property
    def path(self) -> Path:
        return ("products", self.product)

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Return the parsed name. Raises `InvalidRequest` (`NAME_REQUIRED`, `NAME_INVALID`)."""
        (product,) = _parse(text, field, "products/{product}")
        return cls(product)


@dataclass(frozen=True, slots=True)
class CheckConfigName:
    """`products/{product}/checkConfig`. The product is None for `-`, which stands for the only one."""

    product: str | None

    def __str__(self) -> str:
        return f"products/{self.product or '-'}/checkConfig"

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Return the parsed name. Raises `InvalidRequest` (`NAME_REQUIRED`, `NAME_INVALID`)."""
        if text == "products/-/checkConfig":
            return cls(None)
        (product,) = _parse(text, field, "products/{product}/checkConfig")
        return cls(product)


@dataclass(frozen=True, slots=True)
class TenantName:
    """`products/{product}/tenants/{tenant}`."""

    product: str
    tenant: str

    def __str__(self) -> str:
        return f"products/{self.product}/tenants/{self.tenant}"

    @property
    def path(self) -> Path:
        return ("products", self.product, "tenants", self.tenant)

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Return the parsed name. Raises `InvalidRequest` (`NAME_REQUIRED`, `NAME_INVALID`)."""
        return cls(*_parse(text, field, "products/{product}/tenants/{tenant}"))


@dataclass(frozen=True, slots=True)
class MemberName:
    """`products/{product}/tenants/{tenant}/members/{member}`."""

    parent: TenantName
    member: str

    def __str__(self) -> str:
        return f"{self.parent}/members/{self.member}"

    @property
    def path(self) -> Path:
        return (*self.parent.path, "members", self.member)

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Return the parsed name. Raises `InvalidRequest` (`NAME_REQUIRED`, `NAME_INVALID`)."""
        product, tenant, member = _parse(text, field, "products/{product}/tenants/{tenant}/members/{member}")
        return cls(TenantName(product, tenant), member)


@dataclass(frozen=True, slots=True)
class MachineUserName:
    """`products/{product}/tenants/{tenant}/machineUsers/{machine_user}`."""

    parent: TenantName
    machine_user: str

    def __str__(self) -> str:
        return f"{self.parent}/machineUsers/{self.machine_user}"

    @property
    def path(self) -> Path:
        return (*self.parent.path, "machineUsers", self.machine_user)

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Return the parsed name. Raises `InvalidRequest` (`NAME_REQUIRED`, `NAME_INVALID`)."""
        product, tenant, user = _parse(text, field, "products/{product}/tenants/{tenant}/machineUsers/{machine_user}")
        return cls(TenantName(product, tenant), user)


PrincipalName = MemberName | MachineUserName


def parse_principal_name(text: str, field: str) -> PrincipalName:
    """Return the parsed name of a member or a machine user.

    Raises `InvalidRequest` (`NAME_REQUIRED`, `NAME_INVALID`).
    """
    if text.split("/")[4:5] == ["machineUsers"]:
        return MachineUserName.parse(text, field)
    return MemberName.parse(text, field)


KeyOwnerName = PrincipalName | TenantName
"""The name of a secret key's owner: a member, a machine user, or the tenant itself."""


def parse_key_owner_name(text: str, field: str) -> KeyOwnerName:
    """Return the parsed name of a key's owner. Raises as `parse_principal_name`."""
    return TenantName.parse(text, field) if text.count("/") == 3 else parse_principal_name(text, field)


@dataclass(frozen=True, slots=True)
class ApiKeyName:
    """`products/{product}/tenants/{tenant}/apiKeys/{api_key}`."""

    parent: TenantName
    api_key: str

    def __str__(self) -> str:
        return f"{self.parent}/apiKeys/{self.api_key}"

    @property
    def path(self) -> Path:
        return (*self.parent.path, "apiKeys", self.api_key)

    @classmethod
    def parse(cls, text: str, field: str) -> Self:
        """Return the parsed name. Raises `InvalidRequest` (`NAME_REQUIRED`, `NAME_INVALID`)."""
        product, tenant, key = _parse(text, field, "products/{product}/tenants/{tenant}/apiKeys/{api_key}")
        return cls(TenantName(product, tenant), key)


def _parse(text: str, field: str, template: str) -> tuple[str, ...]:
    if not text:
        raise InvalidRequest.at(field, "NAME_REQUIRED", f"a name of the form `{template}` is required")
    segments, wanted = text.split("/"), template.split("/")
    same_form = len(segments) == len(wanted) and all(
        want.startswith("{") or have == want for have, want in zip(segments, wanted, strict=True)
    )
    ids = tuple(have for have, want in zip(segments, wanted, strict=False) if want.startswith("{"))
    if not same_form or not is_product_id(ids[0]) or any(i in _NOT_IDS or not _ID.fullmatch(i) for i in ids):
        raise InvalidRequest.at(field, "NAME_INVALID", f"not of the form `{template}`")
    return ids
