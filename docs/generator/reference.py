"""A reference of the API: one page for each file in protos/gatekey/v1/, from its comments."""

from __future__ import annotations

import html
import posixpath
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
    ServiceDescriptorProto,
)

PROTOS = "protos"
PACKAGE = "gatekey/v1"
INDEX = f"{PROTOS}/{PACKAGE}/README.md"

# The numbers of fields of descriptors, of which the paths in `SourceCodeInfo` are made.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_FIELDS, _NESTED, _NESTED_ENUMS, _ONEOFS = 2, 3, 4, 8
_VALUES = _METHODS = 2

_Place = tuple[int, ...]


@dataclass(frozen=True)
class _File:
    """One file, with its comments by their places."""

    proto: FileDescriptorProto
    comments: Mapping[_Place, str]

    @property
    def title(self) -> str:
        return self.proto.service[0].name if self.proto.service else posixpath.basename(self.proto.name)

    @property
    def page(self) -> str:
        return f"{posixpath.basename(self.proto.name)}.md"


@dataclass(frozen=True)
class _Message:
    """A message with its name as it is written on the page: a nested one's begins with the outer one's."""

    name: str
    proto: DescriptorProto
    place: _Place


def reference(root: Path) -> dict[str, str]:
    """Return the reference's pages by their paths: an index, and a page for each file of the package."""
    read = [_File(proto, dict(_comments(proto))) for proto in _compile(root / PROTOS)]
    # Pages that have a service come first.
    read.sort(key=lambda file: (not file.proto.service, file.title))
    links = _links(read)
    pages = {f"{PROTOS}/{PACKAGE}/{file.page}": _linked(_page(file, links), links, file.page) for file in read}
    return {INDEX: _linked(_index(read), links, "README.md"), **pages}


def _compile(protos: Path) -> list[FileDescriptorProto]:
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "protos.binpb"
        names = sorted(str(path.relative_to(protos)) for path in (protos / PACKAGE).glob("*.proto"))
        command = [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{protos}",
            "--include_source_info",
            f"-o{out}",
            *names,
        ]
        subprocess.run(command, check=True)  # noqa: S603
        return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def _comments(proto: FileDescriptorProto) -> Iterator[tuple[_Place, str]]:
    for location in proto.source_code_info.location:
        text = (location.leading_comments + location.trailing_comments).strip()
        if text:
            yield tuple(location.path), "\n".join(line.strip() for line in text.splitlines())


def _messages(protos: Iterable[DescriptorProto], place: _Place, outer: str = "") -> Iterator[_Message]:
    """Yield messages and the ones nested in them, but for the entries of maps."""
    for number, proto in enumerate(protos):
        if not proto.options.map_entry:
            name, here = f"{outer}{proto.name}", (*place, number)
            yield _Message(name, proto, here)
            yield from _messages(proto.nested_type, (*here, _NESTED), f"{name}.")


def _enums(file: _File) -> Iterator[tuple[str, EnumDescriptorProto, _Place]]:
    for number, proto in enumerate(file.proto.enum_type):
        yield proto.name, proto, (_ENUMS, number)
    for message in _messages(file.proto.message_type, (_MESSAGES,)):
        for number, proto in enumerate(message.proto.enum_type):
            yield f"{message.name}.{proto.name}", proto, (*message.place, _NESTED_ENUMS, number)


def _links(read: Iterable[_File]) -> dict[str, str]:
    """Return where each service, method (as `Service.Method`), message, enum and value is described."""
    links: dict[str, str] = {}
    for file in read:
        for service in file.proto.service:
            links[service.name] = file.page
            links |= {
                f"{service.name}.{method.name}": f"{file.page}#{service.name}.{method.name}"
                for method in service.method
            }
        for message in _messages(file.proto.message_type, (_MESSAGES,)):
            links[message.name] = f"{file.page}#{message.name}"
        for name, proto, _ in _enums(file):
            links[name] = f"{file.page}#{name}"
            links |= {value.name: f"{file.page}#{name}" for value in proto.value}
    return links


def _linked(markdown: str, links: Mapping[str, str], page: str) -> str:
    """Return a page on which every name in code that has a place of its own links to it."""

    def link(match: re.Match[str]) -> str:
        target = links.get(match[1])
        if target is None:
            return match[0]
        return f"[{match[0]}]({target.removeprefix(page) if target != page else target})"

    return re.sub(r"(?<![\[`])`([A-Z][\w.]*)`(?!`)", link, markdown)


# ---------------------------------------------------------------- pages


def _index(read: Iterable[_File]) -> str:
    lines = [
        "# API reference",
        "",
        "The services and messages of `gatekey.v1`. What holds for all of them is in [API](../../../docs/api.md).",
    ]
    for file in read:
        lines += ["", f"## [{file.title}]({file.page})", ""]
        for number, service in enumerate(file.proto.service):
            lines += [_text(file, (_SERVICES, number)), "", "| method | |", "|---|---|"]
            for index, method in enumerate(service.method):
                summary = _first_sentence(_cell(file, (_SERVICES, number, _METHODS, index)))
                lines.append(f"| [`{method.name}`]({file.page}#{service.name}.{method.name}) | {summary} |")
        if not file.proto.service:
            names = [message.name for message in _messages(file.proto.message_type, (_MESSAGES,))]
            names += [name for name, _, _ in _enums(file)]
            lines.append(", ".join(f"`{name}`" for name in names))
    return "\n".join(lines) + "\n"


def _page(file: _File, links: Mapping[str, str]) -> str:
    lines = [f"# {file.title}"]
    for number, service in enumerate(file.proto.service):
        lines += _service(file, service, (_SERVICES, number), links)
    if file.proto.message_type:
        lines += ["", "## Messages"]
    for message in _messages(file.proto.message_type, (_MESSAGES,)):
        lines += _message(file, message, links)
    enums = list(_enums(file))
    if enums:
        lines += ["", "## Enums"]
    for name, proto, place in enums:
        lines += _enum(file, name, proto, place)
    return "\n".join(lines) + "\n"


def _service(file: _File, service: ServiceDescriptorProto, place: _Place, links: Mapping[str, str]) -> Iterator[str]:
    yield from ["", _text(file, place), "", f"Full name: `{file.proto.package}.{service.name}`", "", "## Methods"]
    for number, method in enumerate(service.method):
        yield from ["", f"### {method.name} {{ #{service.name}.{method.name} }}", "", _signature(method, links), ""]
        yield _text(file, (*place, _METHODS, number))


def _signature(method: MethodDescriptorProto, links: Mapping[str, str]) -> str:
    request = f"{'stream of ' if method.client_streaming else ''}{_named(method.input_type, links)}"
    response = f"{'stream of ' if method.server_streaming else ''}{_named(method.output_type, links)}"
    return f"Request: {request}. Response: {response}."


def _message(file: _File, message: _Message, links: Mapping[str, str]) -> Iterator[str]:
    yield from ["", f"### {message.name} {{ #{message.name} }}", "", _text(file, message.place)]
    if not message.proto.field:
        yield from ["", "It has no fields."]
        return
    yield from ["", "| field | type | |", "|---|---|---|"]
    for number, field in enumerate(message.proto.field):
        about = [_cell(file, (*message.place, _FIELDS, number))]
        if field.HasField("oneof_index") and not field.proto3_optional:
            about.append(f"One of `{message.proto.oneof_decl[field.oneof_index].name}`.")
        if field.options.deprecated:
            about.insert(0, "Deprecated.")
        yield f"| `{field.name}` | {_type(field, message.proto, links)} | {' '.join(filter(None, about))} |"
    for number, oneof in enumerate(message.proto.oneof_decl):
        comment = file.comments.get((*message.place, _ONEOFS, number))
        if comment:
            yield from ["", f"`{oneof.name}`: {_prose(comment)}"]


def _enum(file: _File, name: str, proto: EnumDescriptorProto, place: _Place) -> Iterator[str]:
    yield from ["", f"### {name} {{ #{name} }}", "", _text(file, place), "", "| value | number | |", "|---|---|---|"]
    for number, value in enumerate(proto.value):
        # Values are anchors of their enum; a link from its own table would lead nowhere new.
        yield f"| <code>{value.name}</code> | {value.number} | {_cell(file, (*place, _VALUES, number))} |"


def _type(field: FieldDescriptorProto, message: DescriptorProto, links: Mapping[str, str]) -> str:
    if field.type_name:
        entry = next((e for e in message.nested_type if field.type_name.endswith(f".{e.name}")), None)
        if entry is not None and entry.options.map_entry:
            key, value = entry.field
            return f"map of {_type(key, entry, links)} to {_type(value, entry, links)}"
        name = _named(field.type_name, links)
    else:
        name = f"`{FieldDescriptorProto.Type.Name(field.type).removeprefix('TYPE_').lower()}`"
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        return f"repeated {name}"
    return f"optional {name}" if field.proto3_optional else name


def _named(full_name: str, links: Mapping[str, str]) -> str:
    name = full_name.removeprefix(f".{PACKAGE.replace('/', '.')}.")
    return f"[`{name}`]({links[name]})" if name in links else f"`{full_name.removeprefix('.')}`"


# ---------------------------------------------------------------- comments


def _text(file: _File, place: _Place) -> str:
    """Return a comment as paragraphs."""
    return _prose(file.comments.get(place, ""))


def _cell(file: _File, place: _Place) -> str:
    """Return a comment as the cell of a table."""
    paragraphs = re.split(r"\n\n+", _text(file, place))
    return "<br>".join(" ".join(paragraph.splitlines()) for paragraph in paragraphs).replace("|", r"\|")


def _prose(comment: str) -> str:
    """Return a comment as Markdown in which nothing but code is marked up."""
    parts = re.split(r"(`[^`]*`)", comment)
    return "".join(part if part.startswith("`") else html.escape(part, quote=False) for part in parts)


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)(?:\s|<br>)", text, maxsplit=1)[0]
