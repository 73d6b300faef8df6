"""Reads stack files: YAML to plain data, with the line of every key for error messages.

Read by YAML 1.2's core rules and not by PyYAML's 1.1 defaults, which turn ``2222:22`` into the
number 133342, ``on`` and ``no`` into booleans, and ``2024-01-01`` into a date.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from hanok.errors import HanokError, InvalidInput

LARGEST = 1024 * 1024
_MOST_NODES = 100_000
_DEEPEST = 32


@dataclass(frozen=True)
class FileKind:
    """What a YAML file is, for errors, and how large it may be."""

    what: str
    keys: str
    hint: str
    argument: str = "FILE"
    largest: int = LARGEST
    most_nodes: int = _MOST_NODES


STACK = FileKind(
    "a stack file",
    "name and vms",
    "name one: hanok up FILE (without it hanok.yaml of the current folder is used)",
)

_TAG = "tag:yaml.org,2002:"
_PLAIN = {"", "~", "null", "Null", "NULL"}


class _Loader(yaml.SafeLoader):
    """SafeLoader whose plain scalars resolve by YAML 1.2's core schema."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  as yaml.Resolver declares it


def _resolve(tag: str, pattern: str, first: str) -> None:
    import re

    _Loader.add_implicit_resolver(_TAG + tag, re.compile(pattern), list(first))


_resolve("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF")
_resolve("int", r"^[-+]?[0-9]{1,18}$|^0x[0-9a-fA-F]{1,16}$|^0o[0-7]{1,20}$", "-+0123456789")
_resolve("float", r"^[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]{1,3})?$", "-+.0123456789")
_resolve("null", r"^(?:~|null|Null|NULL|)$", "~nN\0")
_resolve("merge", r"^<<$", "<")
# An empty plain scalar has no first character; PyYAML looks it up below the empty text.
_Loader.yaml_implicit_resolvers.setdefault("", []).extend(
    _Loader.yaml_implicit_resolvers.get("\0", [])
)


@dataclass(frozen=True)
class StackFile:
    """A stack file: its content, and the line of each key by its dotted path."""

    path: Path
    content: dict[str, object]
    lines: dict[str, int] = field(repr=False)

    @property
    def name(self) -> str:
        """The stack's name. Raises InvalidInput when the file has none."""
        name = self.content.get("name")
        if not isinstance(name, str) or not name:
            raise InvalidInput(
                f"{self.path} has no name" if name is None else f"{name!r} is no name of a stack",
                field="name",
                expected="a name of lower-case letters, digits and '-', such as name: shop",
            )
        return name

    def place_of(self, error: HanokError) -> str | None:
        """Return ``FILE:LINE`` of the key that ``error`` is about, or of the nearest above it."""
        if error.field is None:
            return None
        line = line_of(self.lines, error.field)
        if line is not None:
            return f"{self.path}:{line}"
        is_ours = error.field.split(".")[0] in ("name", "vms", "networks")
        return f"{self.path}:1" if is_ours else None


def line_of(lines: dict[str, int], field: str) -> int | None:
    """Return the line of ``field``, a dotted path, or of the nearest one above it in the file."""
    parts = field.split(".")
    for length in range(len(parts), 0, -1):
        line = lines.get(".".join(parts[:length]))
        if line is not None:
            return line
    return None


def read_stack_file(path: Path) -> StackFile:
    """Read the stack file ``path``. Raises InvalidInput as ``read_yaml_file`` does."""
    return StackFile(path, *read_yaml_file(path, STACK))


def read_yaml_file(path: Path, kind: FileKind) -> tuple[dict[str, object], dict[str, int]]:
    """Return the content of the file ``path`` and the line of each key by its dotted path.

    Raises InvalidInput, with the line, when it is missing, too large, no YAML, or no mapping, when
    a key is there twice, and when aliases make it huge.
    """
    text = _read(path, kind)
    try:
        node = yaml.compose(text, Loader=_Loader)
        reader = _Reader(path, kind.most_nodes)
        content = reader.value(node, "") if node is not None else None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{path}:{mark.line + 1}" if mark is not None else str(path)
        raise InvalidInput(
            f"{place}: not YAML: {error.problem or error.context}",
            expected=f"{kind.what} in YAML",
            hint="look at that line's indentation, colons and quotes",
        ) from None
    except (yaml.YAMLError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InvalidInput(f"{path}: not YAML: {reason}") from None
    if not isinstance(content, dict):
        raise InvalidInput(
            f"{path} holds no mapping", expected=f"{kind.what} with the keys {kind.keys}"
        )
    return content, reader.lines


def _read(path: Path, kind: FileKind) -> str:
    field = kind.argument
    try:
        with open(path, "rb") as file:
            data = file.read(kind.largest + 1)
    except FileNotFoundError:
        raise InvalidInput(
            f"there is no file {path}", field=field, expected=kind.what, hint=kind.hint
        ) from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}", field=field) from None
    if len(data) > kind.largest:
        most = f"at most {kind.largest // 2**20} MiB"
        raise InvalidInput(f"{path} is too large", field=field, expected=most)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not text", field=field, expected="UTF-8") from None


class _Reader:
    """Turns nodes into plain data, noting the line of each key."""

    def __init__(self, path: Path, most_nodes: int) -> None:
        self.lines: dict[str, int] = {}
        self._path = path
        self._nodes = 0
        self._most_nodes = most_nodes

    def value(self, node: Node, at: str, depth: int = 0) -> object:
        """Return what ``node`` stands for; ``at`` is its dotted path."""
        self._nodes += 1
        if self._nodes > self._most_nodes:
            raise self._bad(node, "too much content (aliases count each time they are used)")
        if depth > _DEEPEST:
            raise self._bad(node, "it is nested too deeply")
        self.lines.setdefault(at, _line(node))
        if isinstance(node, MappingNode):
            return self._mapping(node, at, depth)
        if isinstance(node, SequenceNode):
            self._only(node, "seq")
            return [
                self.value(entry, _join(at, str(number)), depth + 1)
                for number, entry in enumerate(node.value)
            ]
        return self._scalar(node)

    def _mapping(self, node: MappingNode, at: str, depth: int) -> dict[str, object]:
        self._only(node, "map")
        merged: dict[str, object] = {}
        own: dict[str, object] = {}
        for key_node, value_node in node.value:
            if key_node.tag == _TAG + "merge":
                merged.update(self._merge(value_node, at, depth))
                continue
            key = self._key(key_node)
            if key in own:
                raise self._bad(key_node, f"the key {key!r} is there twice")
            self.lines[_join(at, key)] = _line(key_node)
            own[key] = self.value(value_node, _join(at, key), depth + 1)
        return {**merged, **own}

    def _merge(self, node: Node, at: str, depth: int) -> dict[str, object]:
        """Return the content of ``<<``: of several mappings the first wins."""
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, object] = {}
        for entry in reversed(nodes):
            found = self.value(entry, at, depth + 1)
            if not isinstance(found, dict):
                raise self._bad(entry, "<< takes a mapping")
            merged.update(found)
        return merged

    def _key(self, node: Node) -> str:
        if not isinstance(node, ScalarNode):
            raise self._bad(node, "a key must be text")
        # 80 and true are texts where a key is wanted, as they are in JSON.
        return str(node.value)

    def _scalar(self, node: Node) -> object:
        text = str(node.value)
        match node.tag.removeprefix(_TAG):
            case "str":
                return text
            case "int":
                return int(text, 0 if text[:2] in ("0x", "0o") else 10)
            case "float":
                return float(text)
            case "bool":
                return text.lower() == "true"
            case "null":
                return None
            case other:
                raise self._bad(node, f"the tag {other!r} is not known here")

    def _only(self, node: Node, kind: str) -> None:
        if node.tag != _TAG + kind:
            raise self._bad(node, f"the tag {node.tag!r} is not known here")

    def _bad(self, node: Node, problem: str) -> InvalidInput:
        return InvalidInput(f"{self._path}:{_line(node)}: {problem}")


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _join(at: str, key: str) -> str:
    return f"{at}.{key}" if at else key
