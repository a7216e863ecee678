"""Product specs in YAML, by the protobuf JSON mapping, with every problem of their form.

Read as nodes rather than values: a node has a line, keeps duplicate keys, and is not multiplied by aliases.
"""

import difflib
import io
import re
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, cast

from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError, YAMLWarning
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from gatekey.cli.problems import Failure
from gatekey.cli.streams import label, read_file
from gatekey.v1.product_spec_pb2 import ProductSpec

MAX_BYTES = 1 << 20
# Far more than a valid spec has; aliases of aliases could make more than there is memory for.
_MAX_VALUES = 100_000
_MAX_PROBLEMS = 50
_SHOWN_CHARS = 40
_ROOT = "spec"

_DURATION = re.compile(r"([0-9]{1,12})([mhdw])")
_UNITS_S = {"m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PATH = re.compile(r"[a-z_.\[\]0-9]+(?=: )")
_ALIAS = "while scanning an alias"

_YAML = "tag:yaml.org,2002:"
_SCALAR_TAGS = frozenset(f"{_YAML}{name}" for name in ("str", "int", "float", "bool", "null"))
_NULL = f"{_YAML}null"


def read_spec(path: Path) -> ProductSpec:
    """Read a spec; `-` stands for standard input.

    Raises `Failure` with a line for each problem of its form; the server judges the rest.
    """
    walk = _Walk()
    try:
        with warnings.catch_warnings():
            # They tell of the module's names and lines, with which a user could do nothing.
            warnings.simplefilter("ignore", YAMLWarning)
            root = _composed(walk.yaml, read_file(path, MAX_BYTES))
            document = walk.message(root, ProductSpec.DESCRIPTOR, _ROOT) if root is not None else None
    except YAMLError as error:
        raise _failure(path, [_syntax_problem(error)]) from None
    except RecursionError:
        raise _failure(path, [f"{_ROOT}: is nested too deeply (SYNTAX)"]) from None
    except _TooManyValuesError:
        raise _failure(path, [f"{_ROOT}: has more than {_MAX_VALUES} values (SPEC_TOO_LARGE)"]) from None
    if root is None:
        walk.problems.append(f"{_ROOT}: is empty (REQUIRED)")
    if walk.problems or document is None:
        raise _failure(path, walk.problems, walk.unlisted)
    try:
        return json_format.ParseDict(document, ProductSpec())
    except json_format.ParseError as error:
        raise _failure(path, [f"{_ROOT}: {error} (TYPE_INVALID)"]) from None


def _composed(yaml: YAML, text: bytes) -> Node | None:
    """Read a document as nodes. Raises `YAMLError` or `RecursionError`."""
    try:
        return cast("Node | None", yaml.compose(text))
    except (YAMLError, RecursionError):
        raise
    except Exception as error:
        # ruamel.yaml has assertions and look-ups of its own for text that it does not foresee, as `%YAML 1.3`.
        raise YAMLError from error


def _constructed(yaml: YAML, node: ScalarNode) -> Any:
    """Read the value of a node. Raises `ValueError`."""
    try:
        return yaml.constructor.construct_object(node)
    except Exception as error:
        # As above, for `!!float .`.
        raise ValueError from error


def write_spec(spec: ProductSpec) -> str:
    """Write a spec as YAML that `read_spec` reads."""
    yaml = YAML(pure=True)
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 120
    text = io.StringIO()
    yaml.dump(_readable(json_format.MessageToDict(spec)), text)
    return text.getvalue()


def _failure(path: Path, problems: list[str], unlisted: int = 0) -> Failure:
    count = f"{len(problems) + unlisted} problems" if len(problems) + unlisted > 1 else "a problem"
    more = [f"and {unlisted} more"] if unlisted else []
    return Failure(f"{label(path)} has {count}", *problems, *more, reason="SPEC_MALFORMED")


def in_yaml(problem: str) -> str:
    """A line about a problem that the server found, with the names of fields as they are written in YAML."""
    return _PATH.sub(lambda path: re.sub("_([a-z])", lambda letter: letter[1].upper(), path[0]), problem, count=1)


def _syntax_problem(error: YAMLError) -> str:
    if isinstance(error, MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        what = ", ".join(text for text in (error.context, error.problem) if text)
        if error.context == _ALIAS:
            what = 'write a `*` in quotes: "*"'
    else:
        where = f"byte {error.position + 1}: " if isinstance(error, ReaderError) else ""
        what = error.reason if isinstance(error, ReaderError) else "this is not YAML 1.2"
    return f"{_ROOT}: {where}{what} (SYNTAX)"


class _TooManyValuesError(Exception):
    """Reading on could take for ever."""


class _Walk:
    """Goes through a document along the descriptor of what it should be."""

    def __init__(self) -> None:
        self.yaml = YAML(typ="safe", pure=True)
        self.problems: list[str] = []
        self.unlisted = 0
        self._values = 0

    def message(self, node: Node, descriptor: Descriptor, at: str) -> dict[str, Any] | None:
        """Read the fields of a message, as a document of the JSON mapping."""
        if not isinstance(node, MappingNode):
            self._add(node, at, f"fields are needed, not {_shown(node)}", "TYPE_INVALID")
            return None
        return {
            field.json_name: value
            for field, value_node in self._fields(node, descriptor, at)
            if (value := self._field(value_node, field, f"{at}.{field.json_name}")) is not None
        }

    def _fields(self, node: MappingNode, descriptor: Descriptor, at: str) -> Iterator[tuple[FieldDescriptor, Node]]:
        known = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
        seen = set()
        for key, value in node.value:
            self._count()
            name = key.value if isinstance(key, ScalarNode) else "?"
            field = known.get(name)
            if field is None:
                hint = "" if self._is_full() else _hint(name, known)
                self._add(key, f"{at}.{_cut(name)}", f"there is no such field{hint}", "FIELD_UNKNOWN")
            elif field.name in seen:
                self._add(key, f"{at}.{field.json_name}", "is given more than once", "FIELD_DUPLICATE")
            else:
                seen.add(field.name)
                yield field, value

    def _field(self, node: Node, field: FieldDescriptor, at: str) -> Any:
        if node.tag == _NULL:
            return None
        if not field.is_repeated:
            return self._value(node, field, at)
        if not isinstance(node, SequenceNode):
            self._add(node, at, f"a list is needed, not {_shown(node)}", "TYPE_INVALID")
            return None
        return [self._value(item, field, f"{at}[{index}]") for index, item in enumerate(node.value)]

    def _value(self, node: Node, field: FieldDescriptor, at: str) -> Any:
        self._count()
        if field.message_type is not None and not _is_scalar_in_json(field.message_type):
            return self.message(node, field.message_type, at)
        try:
            return self._scalar(node, field)
        except (ValueError, KeyError):
            is_unknown = field.enum_type is not None and isinstance(node, ScalarNode)
            reason = "ENUM_UNKNOWN" if is_unknown else "TYPE_INVALID"
            self._add(node, at, f"{_wanted(field)} is needed, not {_shown(node)}", reason)
            return None

    def _scalar(self, node: Node, field: FieldDescriptor) -> Any:
        """Read what stands for a field that has none of its own. Raises `ValueError` or `KeyError`."""
        if not isinstance(node, ScalarNode) or node.tag not in _SCALAR_TAGS:
            raise ValueError
        value = _constructed(self.yaml, node)
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.Duration":
            value = _in_seconds(value)
        # `ParseDict` takes `true` for 1, and numbers that stand for nothing.
        if field.enum_type is not None:
            value = _member(value, field.enum_type)
        message = GetMessageClass(cast("Descriptor", field.containing_type))()
        try:
            json_format.ParseDict({field.json_name: [value] if field.is_repeated else value}, message)
        except json_format.ParseError as error:
            raise ValueError from error
        return value

    def _count(self) -> None:
        self._values += 1
        if self._values > _MAX_VALUES:
            raise _TooManyValuesError

    def _is_full(self) -> bool:
        return len(self.problems) >= _MAX_PROBLEMS

    def _add(self, node: Node, at: str, description: str, reason: str) -> None:
        if self._is_full():
            self.unlisted += 1
            return
        self.problems.append(f"{at}: line {node.start_mark.line + 1}: {description} ({reason})")


def _is_scalar_in_json(message: Descriptor) -> bool:
    return message.full_name.startswith("google.protobuf.")


def _member(value: object, enum: EnumDescriptor) -> object:
    """A value of an enum, written in full or without what all names begin with. Raises `ValueError`."""
    if type(value) is int and value in enum.values_by_number:
        return value
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    for name in (value, f"{prefix}{value}"):
        if isinstance(name, str) and name in enum.values_by_name:
            return name
    raise ValueError


def _in_seconds(value: object) -> object:
    """A duration as the JSON mapping has it; it also comes as `90m`, `12h`, `180d` or `26w`."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    return f"{int(match[1]) * _UNITS_S[match[2]]}s" if match else value


def _wanted(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        return f"one of {', '.join(value.name for value in field.enum_type.values if value.number)}"
    if field.message_type is not None:
        return "a duration such as `90s`, `15m`, `12h`, `180d` or `26w`"
    return {
        FieldDescriptor.TYPE_BOOL: "`true` or `false`",
        FieldDescriptor.TYPE_STRING: "text, in quotes if need be,",
    }.get(field.type, "another type")


def _shown(node: Node) -> str:
    if isinstance(node, MappingNode):
        return "fields"
    if isinstance(node, SequenceNode):
        return "a list"
    return f"`{_cut(node.value)}`" if node.value else "nothing"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _hint(name: str, known: Iterable[str]) -> str:
    similar = difflib.get_close_matches(name[:_SHOWN_CHARS], known, n=1)
    return f"; is it `{similar[0]}`?" if similar else ""


def _readable(value: Any) -> Any:
    """Lists of texts stand on one line: `actions: [read, write]`."""
    if isinstance(value, dict):
        return {key: _readable(item) for key, item in value.items()}
    if not isinstance(value, list):
        return value
    items = CommentedSeq(_readable(item) for item in value)
    # On one line, ruamel.yaml leaves out the quotes around what starts like these.
    if all(isinstance(item, str) and not item.startswith(("?", ":")) for item in value):
        items.fa.set_flow_style()
    return items
