"""Random messages for every RPC, and random damage to what is right: by the fields, and byte by byte."""

import random
import re
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.timestamp_pb2 import Timestamp

MAX_KNOWN = 200
"""How many texts of a kind are remembered of what servers answered."""

_VARINT, _I64, _LENGTH, _I32 = 0, 1, 2, 5
_FIXED = {_I64: 8, _I32: 4}

ODD_TEXTS = (
    *("", " ", "\0", "a\0b", "\n", "\r\n", "\t", "\x1b[31m", "\x7f", "\ufeff", "\u202e", "\u2028", "\ud7ff", "\ufffe"),
    *(
        "\U0010ffff",
        "é",
        "e\u0301",
        "ß",
        "İ",
        "\u0130" * 64,
        "🗝️",
        "-",
        "*",
        "**",
        ".",
        "..",
        "/",
        "//",
        "%",
        "%s",
        "%00",
    ),
    *(
        "{}",
        "{0}",
        "$1",
        "'",
        "''",
        '"',
        "\\",
        "\\0",
        "\\u0000",
        "';--",
        "null",
        "None",
        "NaN",
        "true",
        "0",
        "-1",
        "1e999",
    ),
    *("products/-", "products/*", "products//", "products/heyoo/tenants/-/apiKeys/-", "key_", "key_" + "0" * 26),
    *(
        "a" * 63,
        "a" * 64,
        "a" * 65,
        "a" * 128,
        "a" * 129,
        "a" * 256,
        "a" * 257,
        "a" * 1025,
        "é" * 5000,
        "/".join("ab" * 40),
    ),
)
NUMBERS = (0, 1, -1, 2, 50, 255, 1000, 1001, 2**31 - 1, -(2**31), 2**31, 2**32, 2**63 - 1, -(2**63), 2**64 - 1)
_TIMES = (*NUMBERS, 253_402_300_799, 253_402_300_800, -62_135_596_800, -62_135_596_801, 221_845_392_000, 1_900_000_000)
_NANOS = (0, 0, 0, 1, -1, 999_999_999, 10**9, 2**31 - 1, -(2**31))

# What a field is about, by its name.
_KINDS = (
    ("name", r"name|parent|owner|target|actor|caller|api_key|principal"),
    ("secret", r"key|keys|secret"),
    ("token", r"page_token"),
    ("etag", r"etag"),
    ("id", r".*_id|product|tenant|member|machine_user"),
    ("resource", r"resource|pattern"),
    ("action", r"action|actions|read_actions"),
    ("role", r"role"),
    ("verb", r"verb"),
    ("mask", r"paths"),
    ("prefix", r"prefix"),
    ("header", r"header|scheme"),
)
_COLLECTION_OF = {
    "ApiKeyService": "apiKeys",
    "MemberService": "members",
    "MachineUserService": "machineUsers",
    "TenantService": "tenants",
    "ProductService": "products",
}
# What the servers' answers tell that later requests may want to name.
_TOLD = {"name": "name", "etag": "etag", "next_page_token": "token", "secret": "secret"}


class Words:
    """Texts that mean something to the server, by what they are about."""

    def __init__(self, keep_from: Iterable[str] = ()) -> None:
        self._given: dict[str, list[str]] = defaultdict(list)
        self._told: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=MAX_KNOWN))
        self._not_to_be_named = tuple(keep_from)

    def add(self, kind: str, *texts: str) -> None:
        """Add texts for good."""
        self._given[kind] += texts

    def learn(self, message: Message) -> None:
        """Remember what an answer tells."""
        for field, value in message.ListFields():
            kind = _TOLD.get(field.name)
            if kind is not None and isinstance(value, str):
                if not value.startswith(self._not_to_be_named):
                    self._told[kind].append(value)
            elif field.message_type is not None and not field.message_type.full_name.startswith("google."):
                inner = value if field.is_repeated else [value]
                if not field.message_type.GetOptions().map_entry:
                    for each in inner:
                        self.learn(each)

    def of(self, kind: str) -> Sequence[str]:
        """All of a kind."""
        return [*self._given[kind], *self._told[kind]]


class Maker:
    """Makes messages."""

    def __init__(self, rng: random.Random, words: Words, examples: Sequence[Message] = ()) -> None:
        self._rng = rng
        self._words = words
        self._examples: dict[str, list[Message]] = defaultdict(list)
        for example in examples:
            self._examples[example.DESCRIPTOR.full_name].append(example)
        self._collection = ""

    def request(self, method: MethodDescriptor) -> tuple[bytes, Message | None]:
        """A request, in bytes; with the message, where they are still one."""
        rng = self._rng
        self._collection = _COLLECTION_OF.get(method.containing_service.name, "")
        oddness = rng.choice((0.0, 0.02, 0.02, 0.1, 0.5))
        message = self.message(method.input_type, oddness)
        while rng.random() < 0.4:
            self._change(message, 0.5)
        data = message.SerializeToString()
        if rng.random() < 0.3:
            for _ in range(rng.choice((1, 1, 2, 5))):
                data = self.damage(data)
            return data, None
        return data, message

    def message(self, descriptor: Descriptor, oddness: float) -> Any:
        """A message with most of its fields."""
        rng = self._rng
        examples = self._examples.get(descriptor.full_name)
        message = GetMessageClass(descriptor)()
        # Of what a request is made of, nearly always; requests themselves are also made up.
        if examples and rng.random() < (0.5 if descriptor.name.endswith("Request") else 0.9):
            message.CopyFrom(rng.choice(examples))
            return message
        presence = rng.choice((0.3, 0.7, 0.95))
        for field in descriptor.fields:
            # Changes are made by some, so that there is something left.
            rare = field.name in {"force", "etag", "min_revision"}
            if rng.random() < (0.1 if rare else presence):
                self._fill(message, field, oddness)
        return message

    def _change(self, message: Any, oddness: float) -> None:
        """Clear a field, or give it another value, at any depth."""
        rng = self._rng
        fields = message.DESCRIPTOR.fields
        if not fields:
            return
        field = rng.choice(fields)
        if field.message_type is not None and not _is_map(field) and rng.random() < 0.8:
            value = getattr(message, field.name)
            if not field.is_repeated:
                self._change(value, oddness)
                return
            if value:
                self._change(rng.choice(value), oddness)
                return
        if rng.random() < 0.7 or field.is_repeated:
            message.ClearField(field.name)
        if rng.random() < 0.8:
            self._fill(message, field, oddness)

    def _fill(self, message: Any, field: FieldDescriptor, oddness: float) -> None:
        if _is_map(field):
            labels = getattr(message, field.name)
            for _ in range(self._rng.choice((1, 2, 70))):
                labels[self.text("label", oddness)] = self.text("label", oddness)
        elif field.is_repeated:
            self._fill_list(getattr(message, field.name), field, oddness)
        elif field.message_type is not None:
            getattr(message, field.name).CopyFrom(self._inner(field.message_type, oddness))
        else:
            setattr(message, field.name, self._scalar(field, oddness))

    def _fill_list(self, items: Any, field: FieldDescriptor, oddness: float) -> None:
        rng = self._rng
        count = rng.choice((1, 1, 2, 3))
        times = rng.choice((65, 257, 1001, 5000)) if rng.random() < oddness / 5 else 1
        for _ in range(count):
            if field.message_type is None:
                items.extend([self._scalar(field, oddness)] * times)
            else:
                items.extend([self._inner(field.message_type, oddness)] * times)

    def _inner(self, descriptor: Descriptor, oddness: float) -> Any:
        rng = self._rng
        if descriptor.full_name == Timestamp.DESCRIPTOR.full_name:
            return Timestamp(seconds=self._wide(_TIMES, 63), nanos=rng.choice(_NANOS))
        if descriptor.full_name == Duration.DESCRIPTOR.full_name:
            usual = rng.choice((0, 1, 60, 3600, 86_400))
            seconds = self._wide(_TIMES, 63) if rng.random() < oddness * 2 else usual
            return Duration(seconds=seconds, nanos=rng.choice(_NANOS) if rng.random() < oddness * 2 else 0)
        return self.message(descriptor, oddness)

    def _scalar(self, field: FieldDescriptor, oddness: float) -> Any:
        rng = self._rng
        if field.type == FieldDescriptor.TYPE_STRING:
            return self.text(field.name, oddness)
        if field.type == FieldDescriptor.TYPE_BYTES:
            return rng.choice((b"", b"\0", rng.randbytes(rng.choice((1, 8, 16, 32, 33, 500)))))
        if field.type == FieldDescriptor.TYPE_BOOL:
            return rng.random() < 0.5
        if field.enum_type is not None:
            if rng.random() < oddness:
                return rng.choice((-1, 99, 2**31 - 1, -(2**31)))
            return rng.choice(field.enum_type.values).number
        if field.type in {FieldDescriptor.TYPE_FIXED64, FieldDescriptor.TYPE_UINT64}:
            return rng.choice([number for number in NUMBERS if number >= 0])
        usual = rng.randrange(60)
        bits = 31 if field.type == FieldDescriptor.TYPE_INT32 else 63
        return self._wide(NUMBERS, bits) if rng.random() < max(oddness, 0.05) else usual

    def _wide(self, numbers: Sequence[int], bits: int) -> int:
        return self._rng.choice([number for number in numbers if -(2**bits) <= number < 2**bits])

    def text(self, field: str, oddness: float) -> str:
        """A text for a field of a name."""
        rng = self._rng
        if rng.random() < oddness:
            odd = rng.choice(ODD_TEXTS)
            if rng.random() < 0.3:
                odd = self._known(field) + odd
            return odd
        return self._known(field)

    def _known(self, field: str) -> str:
        rng = self._rng
        if field == "request_id":
            return rng.choice(("", "", "", str(uuid.UUID(int=rng.getrandbits(128))), str(uuid.UUID(int=1))))
        kind = next((kind for kind, names in _KINDS if re.fullmatch(names, field)), None)
        if kind is None:
            return rng.choice(("name", "A longer name", "x"))
        words = self._words.of(kind)
        if kind == "name" and rng.random() < 0.9:
            words = self._fitting(field, words) or words
        if kind in {"token", "etag"} and rng.random() < 0.7:
            return ""
        return rng.choice(words) if words else ""

    def _fitting(self, field: str, names: Sequence[str]) -> list[str]:
        """The names of what the service is about."""
        if field == "parent":
            wanted = {"products", "tenants"} if self._collection in {"", "tenants"} else {"tenants"}
        elif field == "owner":
            wanted = {"members", "machineUsers"}
        elif field == "api_key":
            wanted = {"apiKeys"}
        else:
            wanted = {self._collection}
        return [name for name in names if name.split("/")[-2:-1] and name.split("/")[-2] in wanted]

    # ------------------------------------------------------------ bytes

    def damage(self, data: bytes) -> bytes:
        """Bytes that differ from those given in one way."""
        ways: list[Callable[[bytes], bytes]] = [
            self._flip,
            self._cut,
            self._insert,
            self._duplicate,
            self._shuffle,
            self._retype,
            self._huge_varint,
            self._nest,
            self._unknown,
            self._deeper,
            self._bad_text,
        ]
        return self._rng.choice(ways)(data)

    def _flip(self, data: bytes) -> bytes:
        if not data:
            return b"\0"
        changed = bytearray(data)
        for _ in range(self._rng.choice((1, 1, 4))):
            changed[self._rng.randrange(len(changed))] ^= 1 << self._rng.randrange(8)
        return bytes(changed)

    def _cut(self, data: bytes) -> bytes:
        start, end = sorted(self._rng.randrange(len(data) + 1) for _ in range(2))
        return data[:end] if self._rng.random() < 0.7 else data[:start] + data[end:]

    def _insert(self, data: bytes) -> bytes:
        at = self._rng.randrange(len(data) + 1)
        return data[:at] + self._rng.randbytes(self._rng.choice((1, 2, 10, 100))) + data[at:]

    def _duplicate(self, data: bytes) -> bytes:
        fields = split(data)
        if not fields:
            return data + data
        chosen = self._rng.choice(fields)
        times = self._rng.choice((1, 1, 2, 300, 12_000))
        return data + chosen * min(times, max(1, (400 << 10) // max(len(chosen), 1)))

    def _shuffle(self, data: bytes) -> bytes:
        fields = split(data)
        self._rng.shuffle(fields)
        return b"".join(fields)

    def _retype(self, data: bytes) -> bytes:
        """The first field with another wire type, or another number."""
        if not data:
            return b"\x07"
        return bytes(((data[0] & 0xF8) | self._rng.randrange(8),)) + data[1:]

    def _huge_varint(self, data: bytes) -> bytes:
        tag = varint(self._rng.randrange(1, 20) << 3 | self._rng.choice((_VARINT, _LENGTH)))
        number = self._rng.choice(
            (b"\xff" * 9 + b"\x01", b"\xff" * 20, b"\x80" * 9 + b"\0", varint(2**31), varint(2**32 - 1))
        )
        return data + tag + number

    def _nest(self, data: bytes) -> bytes:
        """Groups, or messages in messages, deeper than anyone goes."""
        depth, number = self._rng.choice((10, 99, 101, 5000)), self._rng.randrange(1, 20)
        if self._rng.random() < 0.5:
            start, end = varint(number << 3 | 3), varint(number << 3 | 4)
            return data + start * depth + (end * depth if self._rng.random() < 0.5 else b"")
        for _ in range(min(depth, 101)):
            data = varint(number << 3 | _LENGTH) + varint(len(data)) + data
        return data

    def _unknown(self, data: bytes) -> bytes:
        number = self._rng.choice((0, 50, 18_999, 19_000, 2**29 - 1, 2**29))
        body = self._rng.randbytes(self._rng.choice((0, 3, 60)))
        return varint(number << 3 | _LENGTH) + varint(len(body)) + body + data

    def _deeper(self, data: bytes) -> bytes:
        """Damage to the inside of a field that has a length."""
        fields = split(data)
        for number in self._rng.sample(range(len(fields)), len(fields)):
            field = fields[number]
            try:
                tag, at = read_varint(field, 0)
                _, at = read_varint(field, at)
            except IndexError:
                continue
            if tag & 7 == _LENGTH and len(field) > 2:
                inner = self.damage(field[at:])
                fields[number] = varint(tag) + varint(len(inner)) + inner
                break
        return b"".join(fields)

    def _bad_text(self, data: bytes) -> bytes:
        text = self._rng.choice((b"\xff\xfe", b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\0"))
        return data + varint(self._rng.randrange(1, 16) << 3 | _LENGTH) + varint(len(text)) + text


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)


def varint(number: int) -> bytes:
    """A number on the wire."""
    text = b""
    while number > 0x7F:
        text += bytes((number & 0x7F | 0x80,))
        number >>= 7
    return text + bytes((number,))


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where it ends. Raises `IndexError`."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def split(data: bytes) -> list[bytes]:
    """The fields of a message, each with its tag; what is no field any more is the last."""
    fields, at = [], 0
    while at < len(data):
        start = at
        try:
            tag, at = read_varint(data, at)
            if tag & 7 == _LENGTH:
                length, at = read_varint(data, at)
                at += length
            elif tag & 7 == _VARINT:
                _, at = read_varint(data, at)
            else:
                at += _FIXED.get(tag & 7, 0)
        except IndexError:
            at = len(data)
        fields.append(data[start:at])
    return fields
