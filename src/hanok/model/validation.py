"""From pydantic's complaints to errors that a person can act on."""

from __future__ import annotations

import difflib
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from hanok.errors import InvalidInput
from hanok.model.base import NAME_PATTERN, Size
from hanok.units import format_size

T = TypeVar("T", bound=BaseModel)

_SIZE_MARK = get_args(Size)[1]
_SHOWN = 40
_OTHERS_NAMED = 3

_PLAIN = {
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "model_attributes_type": "a mapping",
    "tuple_type": "a list",
    "list_type": "a list",
    "string_type": "text",
    "string_unicode": "text in Unicode",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
}
_PATTERNS = {
    NAME_PATTERN: "a name of at most 63 lower-case letters, digits and '-', starting with a letter",
}
_BY_NAME = {
    "image": "an image such as micro or debian:12",
    "packages": "the name of a Debian package, such as nginx",
    "url": "a URL that starts with http://",
    "subnet": "a private IPv4 network from /16 to /28, such as 10.20.0.0/24",
    "address": "an IPv4 address of this host, such as 127.0.0.1",
    "vms": "a mapping from the VMs' names to what each is",
}


def validated(model: type[T], data: object, prefix: str = "") -> T:
    """Return ``data`` as a ``model``.

    Raises InvalidInput: its field is the dotted path (``vms.web.memory``, below ``prefix``), its
    expected text says what would have been right, its hint names the nearest known key of an
    unknown one. Of several errors the first is told, with the number and the fields of the others.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _translate(model, error, prefix) from None


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of ``known`` that ``word`` was probably meant to be, or None."""
    found = difflib.get_close_matches(word.lower(), sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """Return a hint that names the nearest of ``known``, or None when none is near."""
    close = nearest(word, known)
    return f"did you mean {close!r}?" if close is not None else None


def shown(value: object) -> str:
    """Return ``value`` for an error message: one line, at most 40 characters."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple | set):
        return "a list"
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return "nothing"
    try:
        text = repr(value)
    except ValueError:  # an integer of more digits than Python agrees to print
        return "that number"
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


@dataclass(frozen=True)
class _Place:
    """Where in a model an error is: the type there, its constraints, and the owning field."""

    kind: Any
    metadata: tuple[object, ...]
    owner: FieldInfo | None

    @property
    def is_secret(self) -> bool:
        return self.owner is not None and not self.owner.repr

    @property
    def is_size(self) -> bool:
        return _SIZE_MARK in self.metadata


def _translate(model: type[BaseModel], error: ValidationError, prefix: str) -> InvalidInput:
    # The plain input of the first unknown key explains more than what is missing because of it.
    details = sorted(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    first = details[0]
    message, expected, hint = _explain(model, first)
    if len(details) > 1:
        others = list(dict.fromkeys(_path(found["loc"], prefix) for found in details[1:]))
        named = ", ".join(others[:_OTHERS_NAMED]) + (", …" if len(others) > _OTHERS_NAMED else "")
        noun = "error" if len(details) == 2 else "errors"
        message += f" (and {len(details) - 1} more {noun}: {named})"
    return InvalidInput(
        message, field=_path(first["loc"], prefix) or None, expected=expected, hint=hint
    )


def _path(loc: Sequence[int | str], prefix: str) -> str:
    parts = [_one_line(str(part)) for part in loc if part != "[key]"]
    return ".".join([prefix, *parts] if prefix else parts)


def _one_line(key: str) -> str:
    """Return a key of a user's as it is, or quoted where a terminal would make more of it."""
    return key if key.isprintable() else shown(key)


def _explain(model: type[BaseModel], error: ErrorDetails) -> tuple[str, str | None, str | None]:
    """Return message, expected text and hint of one error."""
    loc, kind = error["loc"], error["type"]
    if kind == "extra_forbidden":
        return _explain_unknown(model, loc)
    if kind == "missing":
        return f"{loc[-1]} is missing", _named(loc), None
    place = _find(model, loc)
    value = "what it holds" if place.is_secret else shown(error["input"])
    if kind in ("value_error", "assertion_error"):
        message, expected, hint = _explain_value_error(error, value)
        return message, expected or _named(loc), hint
    expected = _expected(error, place)
    hint = None
    if kind == "enum" and isinstance(error["input"], str):
        hint = did_you_mean(error["input"], [member.value for member in place.kind])
    return f"{value} is not right here", expected, hint


def _explain_unknown(
    model: type[BaseModel], loc: Sequence[int | str]
) -> tuple[str, str | None, str | None]:
    key = str(loc[-1])
    kind = _find(model, loc[:-1]).kind
    fields = kind.model_fields.items() if _is_model(kind) else ()
    known = [name for name, info in fields if not info.exclude]
    expected = f"one of {', '.join(known)}" if known else None
    return f"the key {shown(key)} is unknown", expected, did_you_mean(key, known)


def _explain_value_error(error: ErrorDetails, value: str) -> tuple[str, str | None, str | None]:
    """Split what a validator of ours said: ``… ; expected …`` or ``expected …``."""
    said = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    problem, found, expected = said.partition("expected ")
    problem = problem.rstrip("; ")
    if not found:
        return f"{value} is not right here: {said}", None, None
    return problem or f"{value} is not right here", expected, None


def _expected(error: ErrorDetails, place: _Place) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind in _PLAIN:
        return "a size such as 512M or 4G" if place.is_size else _PLAIN[kind]
    if kind == "string_pattern_mismatch":
        return _expected_pattern(error, context)
    for name, text in (("ge", "at least"), ("gt", "more than"), ("le", "at most")):
        if name in context:
            limit = context[name]
            return f"{text} {format_size(limit) if place.is_size else format(limit, 'g')}"
    if "max_length" in context:
        unit = "characters" if kind.startswith("string") else "entries"
        return f"at most {context['max_length']} {unit}"
    if "min_length" in context:
        unit = "character" if kind.startswith("string") else "entry"
        return f"at least {context['min_length']} {unit}"
    if kind == "enum":
        return "one of " + ", ".join(str(member.value) for member in place.kind)
    return error["msg"].removeprefix("Input should be ")


def _expected_pattern(error: ErrorDetails, context: Mapping[str, Any]) -> str:
    pattern = str(context["pattern"])
    if pattern in _PATTERNS:
        return _PATTERNS[pattern]
    named = _named(error["loc"])
    if named is not None:
        return named
    return f"text that matches {pattern}"


def _named(loc: Sequence[int | str]) -> str | None:
    """Return what the innermost field of ``loc`` is expected to be, where its name tells."""
    name = next((part for part in reversed(loc) if isinstance(part, str)), None)
    return _BY_NAME.get(name) if name is not None else None


def _find(model: type[BaseModel], loc: Sequence[int | str]) -> _Place:
    """Walk ``loc`` down from ``model``; an unknown step ends at ``object``."""
    holder = place = _Place(model, (), None)
    for part in loc:
        if part == "[key]":
            return _Place(_key_kind(holder), (), place.owner)
        holder, place = place, _step(place, part)
    return place


def _key_kind(mapping: _Place) -> Any:
    """Return the type of the keys of ``mapping``."""
    arguments = get_args(mapping.kind)
    return _unwrap(arguments[0])[0] if get_origin(mapping.kind) is dict else str


def _step(place: _Place, part: int | str) -> _Place:
    if _is_model(place.kind):
        info = cast(type[BaseModel], place.kind).model_fields.get(str(part))
        if info is None:
            return _Place(object, (), None)
        kind, metadata = _unwrap(info.annotation)
        return _Place(kind, (*metadata, *info.metadata), info)
    arguments = get_args(place.kind)
    origin = get_origin(place.kind)
    if not arguments or origin not in (dict, tuple):
        return _Place(object, (), place.owner)
    kind, metadata = _unwrap(arguments[-1] if origin is dict else arguments[0])
    return _Place(kind, metadata, place.owner)


def _unwrap(annotation: Any) -> tuple[Any, tuple[object, ...]]:
    """Return the type inside Annotated and ``| None``, with Annotated's metadata."""
    metadata: tuple[object, ...] = ()
    while True:
        origin = get_origin(annotation)
        if origin is Annotated:
            annotation, *found = get_args(annotation)
            metadata += tuple(found)
        elif origin in (types.UnionType, Union):
            rest = [kind for kind in get_args(annotation) if kind is not type(None)]
            if len(rest) != 1:
                return object, metadata
            annotation = rest[0]
        else:
            return annotation, metadata


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
