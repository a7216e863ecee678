"""Product specs in YAML, by the protobuf JSON mapping, with every problem of their form.

Read as nodes rather than values: a node has a line, keeps duplicate keys, and is not multiplied by aliases.
"""

import difflib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from gatekey.v1.product_spec_pb2 import ProductSpec
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from gatekey.cli.problems import Failure

MAX_BYTES = 1 << 20
# Far more than a valid spec has; aliases of aliases could make more than there is memory for.
_MAX_VALUES = 100_000
_SHOWN_CHARS = 40
_ROOT = "spec"

_YAML = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(f"{_YAML}{name}" for name in ("str", "int", "float", "bool", "null", "timestamp"))
_NULL = f"{_YAML}null"

_Reader = Callable[[Node, FieldDescriptor, str], Any]


def read_spec(path: Path) -> ProductSpec:
    """Read a spec. Raises `Failure` with a line for each problem of its form; the server judges the rest."""
    walk = _Walk()
    try:
        root = walk.yaml.compose(_read(path))
        document = walk.message(root, ProductSpec.DESCRIPTOR, _ROOT) if root is not None else {}
    except YAMLError as error:
        raise _failure(path, [_syntax_problem(error)]) from None
    except RecursionError:
        raise _failure(path, [f"{_ROOT}: is nested too deeply (SYNTAX)"]) from None
    if root is None:
        walk.problems.append(f"{_ROOT}: is empty (REQUIRED)")
    if walk.problems:
        raise _failure(path, walk.problems)
    try:
        return json_format.ParseDict(document, ProductSpec())
    except json_format.ParseError as error:
        raise _failure(path, [f"{_ROOT}: {error} (TYPE_INVALID)"]) from None


def write_spec(spec: ProductSpec) -> str:
    """Write a spec as YAML that `read_spec` reads."""
    yaml = YAML(pure=True)
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(_readable(json_format.MessageToDict(spec)), text)
    return text.getvalue()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise Failure(f"{path}: {error.strerror}", reason="FILE_UNREADABLE") from error
    if len(data) > MAX_BYTES:
        raise Failure(f"{path} has more than {MAX_BYTES} bytes", reason="FILE_TOO_LARGE")
    return data


def _failure(path: Path, problems: list[str]) -> Failure:
    count = f"{len(problems)} problems" if len(problems) > 1 else "a problem"
    return Failure(f"{path} has {count}", *problems, reason="SPEC_MALFORMED")


def _syntax_problem(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}" if mark else ""
        return f"{_ROOT}: {error.problem or error.context}{where} (SYNTAX)"
    return f"{_ROOT}: {getattr(error, 'reason', 'is not YAML')} (SYNTAX)"


class _Walk:
    """Goes through a document along the descriptor of what it should be."""

    def __init__(self) -> None:
        self.yaml = YAML(typ="safe", pure=True)
        self.problems: list[str] = []
        self._values = 0

    def message(self, node: Node, descriptor: Descriptor, at: str) -> dict[str, Any]:
        """Read the fields of a message."""
        if not isinstance(node, MappingNode):
            self._add(node, at, f"fields are needed, not {_shown(node)}", "TYPE_INVALID")
            return {}
        return {
            field.json_name: value
            for field, value_node in self._fields(node, descriptor, at)
            if (value := self._field(value_node, field, f"{at}.{field.name}")) is not None
        }

    def _fields(self, node: MappingNode, descriptor: Descriptor, at: str) -> Iterator[tuple[FieldDescriptor, Node]]:
        known = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
        seen = set()
        for key, value in node.value:
            field = known.get(key.value) if isinstance(key, ScalarNode) else None
            if field is None:
                self._add(key, f"{at}.{_text(key)}", f"there is no such field{_hint(key, descriptor)}", "FIELD_UNKNOWN")
            elif field.name in seen:
                self._add(key, f"{at}.{field.name}", "is given more than once", "FIELD_DUPLICATE")
            else:
                seen.add(field.name)
                yield field, value

    def _field(self, node: Node, field: FieldDescriptor, at: str) -> Any:
        if node.tag == _NULL:
            return None
        read = self._submessage if _has_fields(field) else self._leaf
        if not field.is_repeated:
            return read(node, field, at)
        if not isinstance(node, SequenceNode):
            self._add(node, at, f"a list is needed, not {_shown(node)}", "TYPE_INVALID")
            return None
        return [read(item, field, f"{at}[{index}]") for index, item in enumerate(node.value)]

    def _submessage(self, node: Node, field: FieldDescriptor, at: str) -> Any:
        return self.message(node, field.message_type, at)

    def _leaf(self, node: Node, field: FieldDescriptor, at: str) -> Any:
        self._count()
        wanted = _wanted(field)
        if not isinstance(node, ScalarNode) or node.tag not in _SCALAR_TAGS:
            self._add(node, at, f"{wanted} is needed, not {_shown(node)}", "TYPE_INVALID")
            return None
        value = self.yaml.constructor.construct_object(node)
        if field.enum_type is not None and not _is_member(value, field):
            self._add(node, at, f"{wanted} is needed, not {_shown(node)}", "ENUM_UNKNOWN")
            return None
        document = {field.json_name: [value] if field.is_repeated else value}
        try:
            json_format.ParseDict(document, GetMessageClass(field.containing_type)())
        except json_format.ParseError:
            self._add(node, at, f"{wanted} is needed, not {_shown(node)}", "TYPE_INVALID")
        return value
