"""The contract of every store: what is committed is durable when ``commit`` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from hanok.model.network import NetworkRecord
from hanok.model.operation import Event, Operation
from hanok.model.template import TemplateRecord
from hanok.model.token import TokenRecord
from hanok.model.vm import VmRecord


@dataclass(frozen=True)
class PutVm:
    """Insert or replace a VM by uuid. Commit raises Conflict when another has its name."""

    record: VmRecord


@dataclass(frozen=True)
class DeleteVm:
    """Forget a VM."""

    uuid: str


@dataclass(frozen=True)
class PutTemplate:
    """Insert or replace a template by id. Commit raises Conflict when another has its name."""

    record: TemplateRecord


@dataclass(frozen=True)
class DeleteTemplate:
    """Forget a template."""

    ident: str


@dataclass(frozen=True)
class PutNetwork:
    """Insert or replace a network by name."""

    record: NetworkRecord


@dataclass(frozen=True)
class DeleteNetwork:
    """Forget a network."""

    name: str


@dataclass(frozen=True)
class PutOperation:
    """Insert or replace an operation by id."""

    operation: Operation


@dataclass(frozen=True)
class AddEvent:
    """Append an event; the store numbers it, its own number is ignored."""

    event: Event


@dataclass(frozen=True)
class AddToken:
    """Insert a token. Commit raises Conflict when another has its name."""

    record: TokenRecord


@dataclass(frozen=True)
class TouchToken:
    """Note when a token was used; nothing happens to one that is gone."""

    ident: str
    used: float


@dataclass(frozen=True)
class DeleteToken:
    """Forget a token."""

    ident: str


Change = (
    PutVm
    | DeleteVm
    | PutTemplate
    | DeleteTemplate
    | PutNetwork
    | DeleteNetwork
    | PutOperation
    | AddToken
    | TouchToken
    | DeleteToken
    | AddEvent
)


class Store(Protocol):
    """Keeps records. One daemon writes; reads see every commit before them."""

    async def commit(self, *changes: Change) -> list[Event]:
        """Make all ``changes`` durable, or none; returns the events added, with their numbers.

        Raises Conflict when a name is taken, HostError when the disk refuses.
        """
        ...

    async def vms(self) -> list[VmRecord]:
        """Return every VM, by name."""
        ...

    async def find_vm(self, name_or_uuid: str) -> VmRecord | None:
        """Return a VM by its name or its uuid."""
        ...

    async def templates(self) -> list[TemplateRecord]:
        """Return every template, by name."""
        ...

    async def networks(self) -> list[NetworkRecord]:
        """Return every network, by name."""
        ...

    async def tokens(self) -> list[TokenRecord]:
        """Return every token, by name."""
        ...

    async def operations(self, *, unfinished: bool = False, limit: int = 200) -> list[Operation]:
        """Return operations, the newest first; ``unfinished``: the oldest first."""
        ...

    async def find_operation(self, ident: str) -> Operation | None:
        """Return one operation."""
        ...

    async def events(self, since: int = 0, limit: int = 1000) -> Sequence[Event]:
        """Return the last ``limit`` events with a number above ``since``, the oldest first."""
        ...

    async def close(self) -> None:
        """Close the store."""
        ...
