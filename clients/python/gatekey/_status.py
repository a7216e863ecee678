"""`google.rpc.Status` as errors carry it, read and written without the package that declares it.

The few messages that matter are declared here once more, in a pool of their own, so that they are in nobody's way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

KEY = "grpc-status-details-bin"
"""The trailing metadata that holds it."""

_PACKAGE = "google.rpc"
_TYPE_URL = "type.googleapis.com/google.rpc."
_TEXT, _BYTES, _INT = FieldDescriptorProto.TYPE_STRING, FieldDescriptorProto.TYPE_BYTES, FieldDescriptorProto.TYPE_INT32


@dataclass(frozen=True, slots=True)
class Status:
    """What the details of an error say."""

    reason: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    violations: tuple[tuple[str, str, str], ...] = ()
    """The field, the reason and the description of each."""


NOTHING = Status()


def _message(name: str, **fields: tuple[int, FieldDescriptorProto.Type.ValueType | str]) -> DescriptorProto:
    """Declare a message; a field whose type is a name repeats that message."""
    message = DescriptorProto(name=name)
    for field_name, (number, kind) in fields.items():
        added = message.field.add(name=field_name, number=number, label=FieldDescriptorProto.LABEL_OPTIONAL)
        if isinstance(kind, str):
            added.label, added.type_name = FieldDescriptorProto.LABEL_REPEATED, f".{_PACKAGE}.{kind}"
            added.type = FieldDescriptorProto.TYPE_MESSAGE
        else:
            added.type = kind
    return message


def _declare() -> dict[str, Any]:
    info = _message("ErrorInfo", reason=(1, _TEXT), domain=(2, _TEXT), metadata=(3, "ErrorInfo.MetadataEntry"))
    entry = _message("MetadataEntry", key=(1, _TEXT), value=(2, _TEXT))
    entry.options.map_entry = True
    info.nested_type.append(entry)
    violation = _message("FieldViolation", field=(1, _TEXT), description=(2, _TEXT), reason=(3, _TEXT))
    messages = (
        _message("Any", type_url=(1, _TEXT), value=(2, _BYTES)),
        _message("Status", code=(1, _INT), message=(2, _TEXT), details=(3, "Any")),
        info,
        violation,
        _message("BadRequest", field_violations=(1, "FieldViolation")),
    )
    pool = DescriptorPool()
    pool.Add(FileDescriptorProto(name="status.proto", package=_PACKAGE, syntax="proto3", message_type=messages))
    return {each.name: GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{each.name}")) for each in messages}


_CLASSES = _declare()


def read(data: bytes) -> Status:
    """What the details say, as far as they can be read."""
    info, bad_request = _CLASSES["ErrorInfo"](), _CLASSES["BadRequest"]()
    by_url = {f"{_TYPE_URL}ErrorInfo": info, f"{_TYPE_URL}BadRequest": bad_request}
    try:
        for detail in _CLASSES["Status"].FromString(data).details:
            if detail.type_url in by_url:
                by_url[detail.type_url].ParseFromString(detail.value)
    except DecodeError:
        return NOTHING
    return Status(
        info.reason,
        dict(info.metadata),
        tuple((each.field, each.reason, each.description) for each in bad_request.field_violations),
    )


def write(code: int, message: str, domain: str, reason: str, metadata: Mapping[str, str]) -> bytes:
    """The details of an error that has a reason."""
    info = _CLASSES["ErrorInfo"](reason=reason, domain=domain, metadata=dict(metadata))
    detail = {"type_url": f"{_TYPE_URL}ErrorInfo", "value": info.SerializeToString()}
    data: bytes = _CLASSES["Status"](code=code, message=message, details=[detail]).SerializeToString()
    return data
