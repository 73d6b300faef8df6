"""What a VM has plugged in, and what it is to get at its next start."""

from __future__ import annotations

from pydantic import Field

from hanok.model.base import Frozen, Name, Size
from hanok.units import MIB

MOST_DISKS = 6


class NicRecord(Frozen):
    """A VM's port on one network: its addresses never change while the VM exists.

    ``port``: the hot-plug port that the card is in; none: one of the places that a VM starts with.
    """

    network: Name
    mac: str
    address: str
    port: int | None = None


class DataDisk(Frozen):
    """A disk beside those of the image: empty at first, kept with the VM.

    ``port``: the hot-plug port that it is in. One that is not ``attached`` is only a file.
    """

    name: Name
    size: Size = Field(ge=64 * MIB, description="bytes, virtual size")
    port: int | None = None
    attached: bool = True


class Pending(Frozen):
    """What a running VM was asked to be and is not yet; what is None is as it was asked.

    ``why``: by field, what stands in the way and what it takes.
    """

    cpus: int | None = None
    memory: int | None = None
    disk: int | None = None
    nics: tuple[NicRecord, ...] | None = None
    disks: tuple[DataDisk, ...] | None = None
    why: dict[str, str] = Field(default_factory=dict)

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of what is pending."""
        names = ("cpus", "memory", "disk", "nics", "disks")
        return tuple(name for name in names if getattr(self, name) is not None)
