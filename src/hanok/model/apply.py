"""What ``hanok apply`` reads beside a plan, and what it keeps of what was done."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from hanok.model.base import Frozen, Name, Size
from hanok.model.fleet import MOST_SERVERS, Label
from hanok.model.vm import ImageRef, Package

Remote = Annotated[str, Field(min_length=1, max_length=253)]
Packages = Annotated[tuple[Package, ...], Field(max_length=256)]


class MapVm(Frozen):
    """What one VM is made of; what is None is that of all, or the plan's. ``disk`` is in bytes."""

    image: ImageRef | None = None
    packages: Packages | None = None
    disk: Size | None = None


class ApplyMap(Frozen):
    """A map of a plan: where its hosts are, and what its VMs are made of.

    hosts: {old-1: local, small-1: rack7}   # HOST of the plan: remote, or local for this machine
    image: debian:12
    packages: [nginx]
    disk: 20G                               # of every VM, whatever the plan says
    vms: {db-1: {image: debian:13, packages: [postgresql], disk: 200G}}
    """

    format: Literal[1] = 1
    hosts: dict[Label, Remote] = Field(default_factory=dict, max_length=200_000)
    image: ImageRef | None = None
    packages: Packages = ()
    disk: Size | None = None
    vms: dict[Label, MapVm] = Field(default_factory=dict, max_length=MOST_SERVERS)


class Applied(Frozen):
    """A VM of a plan that was begun or is done: what it is called, and where it is.

    ``uuid`` is None until the daemon there has answered. ``at``: when this was noted.
    """

    step: Literal["started", "done"]
    name: Name
    host: Label
    remote: Remote
    uuid: str | None = None
    at: AwareDatetime


class ApplyFile(Frozen):
    """apply.json: what of the plan with this digest (SHA-256) was done, by the plan's names."""

    format: Literal[1] = 1
    digest: str
    vms: dict[Label, Applied] = Field(default_factory=dict, max_length=MOST_SERVERS)
