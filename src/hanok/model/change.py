"""What a user asks to change of a VM."""

from __future__ import annotations

from pydantic import Field

from hanok.model.base import Frozen, Name, Size
from hanok.model.keeping import Autostart, Health, Restart
from hanok.model.vm import Publish
from hanok.units import GIB, MIB


class VmChange(Frozen):
    """The new values of a VM; what is left out stays as it is.

    ``generation``: the VM's, as the caller has seen it; one that was changed since is left alone.
    """

    generation: int | None = Field(default=None, ge=0)
    name: Name | None = None
    cpus: int | None = Field(default=None, ge=1, le=256)
    memory: Size | None = Field(default=None, ge=64 * MIB, le=4096 * GIB, description="bytes")
    disk: Size | None = Field(default=None, ge=64 * MIB, description="bytes, virtual size")
    networks: tuple[Name, ...] | None = Field(
        default=None, max_length=8, description="all that it is to be on"
    )
    publish: tuple[Publish, ...] | None = Field(
        default=None, max_length=64, description="all that is to be published"
    )
    restart: Restart | None = Field(default=None, description="the whole policy")
    health: Health | None = Field(
        default=None, description="the whole check; null: nobody looks after it"
    )
    autostart: Autostart | None = None


class DiskRequest(Frozen):
    """A data disk to attach: a new one of ``size``, or, without it, one that was detached."""

    name: Name
    size: Size | None = Field(default=None, ge=64 * MIB, description="bytes, virtual size")
