"""Templates: a machine frozen with its memory, devices and disk, and the clones made of it."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Self

from pydantic import Field, field_validator, model_validator

from hanok.model.base import NAME_PATTERN, Frozen, Name
from hanok.model.vm import CloneKind, Evidence, Mode, Publish, VmSpec

_NUMBER = "{n}"


class TemplateOwner(StrEnum):
    """Who a template was made for, and so who removes it."""

    USER = "user"
    WARM = "warm"
    STACK = "stack"


class TemplateState(StrEnum):
    """Whether a template can be cloned yet."""

    MAKING = "making"
    READY = "ready"


class TemplateRecord(Frozen):
    """What the store keeps of a template. Its files are in a folder named by ``id``.

    ``spec`` is the definition of the VM that was frozen; ``instance_id`` what its seed called it,
    so that cloud-init in a clone that boots again knows the machine as set up. ``fingerprint``
    names what the frozen memory depends on: it is resumed only where that is the same.
    """

    id: str
    name: Name
    owner: TemplateOwner = TemplateOwner.USER
    stack: str | None = None
    state: TemplateState = TemplateState.MAKING
    source: str = Field(description="uuid of the VM that was frozen")
    spec: VmSpec
    mode: Mode
    hypervisor: str
    image_id: str
    machine_type: str | None = None
    instance_id: str
    macs: tuple[str, ...] = Field(default=(), description="of its network cards, in order")
    fingerprint: str = ""
    evidence: Evidence | None = None
    memory_used: int = Field(default=0, description="bytes of RAM that are not zero")
    size: int = Field(default=0, description="bytes on disk")
    checksums: dict[str, str] = Field(default_factory=dict, description="sha256 by file name")
    created: float = Field(description="seconds since the epoch")
    used: float = Field(default=0, description="when it was last cloned, seconds since the epoch")


class TemplateRequest(Frozen):
    """A template to make of a VM that is ready."""

    name: Name
    source: Name = Field(description="name of the VM")


class CloneRequest(Frozen):
    """VMs to make of a template: ``count`` of them, ``{n}`` in the name counts from ``first``."""

    template: Name
    name: str = Field(max_length=80, description="a name, with {n} for a number")
    count: int = Field(default=1, ge=1, le=2000)
    first: int = Field(default=1, ge=0, le=100_000)
    kind: CloneKind = CloneKind.INSTANT
    networks: tuple[Name, ...] | None = Field(
        default=None, max_length=8, description="none: the networks of the template"
    )
    publish: tuple[Publish, ...] = Field(default=(), max_length=64)

    @field_validator("name")
    @classmethod
    def _is_pattern(cls, value: str) -> str:
        if re.fullmatch(NAME_PATTERN, value.replace(_NUMBER, "1")) is None:
            raise ValueError("expected lower-case letters, digits and '-', such as web-{n}")
        return value

    @model_validator(mode="after")
    def _counts(self) -> Self:
        if self.count > 1 and _NUMBER not in self.name:
            raise ValueError(f"{self.count} clones need {_NUMBER} in the name, such as web-{{n}}")
        if self.count > 1 and self.publish:
            raise ValueError("several clones cannot all be published at the same port")
        return self

    def names(self) -> tuple[str, ...]:
        """Return the names of the clones."""
        numbers = range(self.first, self.first + self.count)
        return tuple(self.name.replace(_NUMBER, str(number)) for number in numbers)
