"""Long work: an operation has progress, can be followed, listed and cancelled."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field, FieldSerializationInfo, field_serializer

from hanok.model.base import Frozen

KEPT = {"kept": True}  # the context in which arguments are written whole: for the store alone
_NOT_SHOWN = "user_data"
_REDACTED = "(redacted)"


class OperationState(StrEnum):
    """Where an operation stands."""

    PENDING = "pending"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to it."""
        return self in (OperationState.DONE, OperationState.FAILED, OperationState.CANCELLED)


class Problem(Frozen):
    """An error on the wire, by RFC 9457 (application/problem+json) with Hanok's members."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    field: str | None = None
    expected: str | None = None
    hint: str | None = None


class Operation(Frozen):
    """One piece of long work, as the store keeps it and the API shows it."""

    id: str
    kind: str
    target: str
    state: OperationState = OperationState.PENDING
    message: str = ""
    fraction: float | None = Field(default=None, ge=0, le=1)
    error: Problem | None = None
    result: dict[str, Any] | None = None
    arguments: dict[str, Any] = Field(default_factory=dict, repr=False, exclude=False)
    created: float = 0
    finished: float | None = None

    @field_serializer("arguments")
    def _without_secrets(self, value: dict[str, Any], info: FieldSerializationInfo) -> Any:
        """Leave out what only the operation's own handler may see: a viewer may list them all."""
        return value if info.context == KEPT else _redacted(value)


def _redacted(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: _REDACTED if key == _NOT_SHOWN and one else _redacted(one)
            for key, one in value.items()
        }
    return [_redacted(one) for one in value] if isinstance(value, list) else value


class Event(Frozen):
    """Something that happened, for ``hanok events`` and for whoever follows."""

    number: int
    time: float
    kind: str = Field(description="vm, network, image, operation or daemon")
    target: str
    name: str = Field(description="created, starting, running, ready, stopped, failed, ...")
    message: str = ""
