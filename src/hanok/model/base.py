"""What all validated models share."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from hanok.errors import InvalidInput
from hanok.units import parse_size

NAME_PATTERN = r"^[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?$"


class Frozen(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _size(value: object) -> object:
    try:
        return parse_size(value) if isinstance(value, str | int) else value
    except InvalidInput as error:  # pydantic adds the field's path to a ValueError only
        raise ValueError(f"{error.message}; expected {error.expected}") from error


# A host name label by RFC 1123, lower case: it becomes the guest's host name and DNS name.
Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN, max_length=63)]
# Bytes; text such as 512M is accepted.
Size = Annotated[int, BeforeValidator(_size)]
