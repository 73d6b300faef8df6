"""The definition of a VM and what is kept of it."""

from __future__ import annotations

import ipaddress
from enum import StrEnum
from typing import Annotated, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from hanok.model.architecture import Arch
from hanok.model.base import Frozen, Name, Size
from hanok.model.hardware import DataDisk, Pending
from hanok.model.hardware import NicRecord as NicRecord
from hanok.model.keeping import Autostart, Health, HealthSeen, Restart, RestartsSeen, Watchdog
from hanok.units import GIB, MIB


class Mode(StrEnum):
    """How a guest is virtualized."""

    FULL = "full"
    PARA = "para"
    HYBRID = "hybrid"
    AUTO = "auto"


class Firmware(StrEnum):
    """What boots a disk that brings its own boot loader."""

    BIOS = "bios"
    UEFI = "uefi"


class Display(StrEnum):
    """The screen of a VM."""

    NONE = "none"
    VGA = "vga"


class Wanted(StrEnum):
    """What the user last asked a VM to be."""

    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    ABSENT = "absent"


class VmState(StrEnum):
    """What a VM is seen to be."""

    CREATING = "creating"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    WAITING = "waiting"  # it has ended, and its restart policy starts it again


class Publish(Frozen):
    """A guest's TCP port published on the host."""

    host_port: int = Field(ge=1, le=65535)
    guest_port: int = Field(ge=1, le=65535)
    address: str = "127.0.0.1"

    @field_validator("address")
    @classmethod
    def _is_address(cls, value: str) -> str:
        return str(ipaddress.IPv4Address(value))

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Accept ``8080:80`` and ``0.0.0.0:8080:80``."""
        if not isinstance(value, str):
            return value
        parts = value.split(":")
        if len(parts) not in (2, 3) or not all(part.isdecimal() for part in parts[-2:]):
            raise ValueError("expected HOST:GUEST or ADDRESS:HOST:GUEST, such as 8080:80")
        found: dict[str, object] = {"host_port": int(parts[-2]), "guest_port": int(parts[-1])}
        if len(parts) == 3:
            found["address"] = parts[0]
        return found


READY_TEXTS = "tcp:PORT, console:TEXT or a URL that starts with http://"


class Ready(Frozen):
    """What must hold before a VM counts as ready; none given: its agent answers."""

    port: int | None = Field(default=None, ge=1, le=65535)
    url: str | None = Field(default=None, max_length=2048, pattern=r"^http://[^\s]*$")
    command: str | None = Field(default=None, max_length=4096, min_length=1)
    console: str | None = Field(
        default=None, max_length=256, min_length=1, description="text that the console must show"
    )
    timeout: float = Field(default=300, gt=0, le=3600, description="seconds from start")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Accept ``tcp:22``, ``console:login:`` and ``http://HOST/``."""
        if not isinstance(value, str):
            return value
        kind, _, rest = value.partition(":")
        if kind == "tcp" and rest.isascii() and rest.isdecimal():
            return {"port": int(rest)}
        if kind == "console" and rest:
            return {"console": rest}
        if kind == "http":
            return {"url": value}
        raise ValueError(f"expected {READY_TEXTS}")

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if sum(check is not None for check in self._checks()) > 1:
            raise ValueError("expected one of port, url, command and console")
        return self

    def _checks(self) -> tuple[object, ...]:
        return (self.port, self.url, self.command, self.console)

    @property
    def by_agent(self) -> bool:
        """Whether the agent's answer is all that is waited for."""
        return all(check is None for check in self._checks())


ImageRef = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]*(:[a-zA-Z0-9._-]+)?$", max_length=128)
]
Package = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9+.-]{0,127}$")]


class VmSpec(Frozen):
    """One VM as a user defines it, for every hypervisor."""

    name: Name
    image: ImageRef
    cpus: int = Field(default=1, ge=1, le=256)
    memory: Size = Field(default=512 * MIB, ge=64 * MIB, le=4096 * GIB, description="bytes")
    disk: Size = Field(default=4 * GIB, ge=64 * MIB, description="bytes, virtual size")
    data_disks: int = Field(
        default=0, ge=0, description="bytes of the image's further disks; it tells them itself"
    )
    architecture: Arch | None = Field(
        default=None, description="of its processor, by Debian's name; null: as its image is"
    )
    mode: Mode = Mode.AUTO
    firmware: Firmware | None = Field(
        default=None, description="what boots the disk of an imported image; null: as it says"
    )
    secure_boot: bool = Field(
        default=False, description="UEFI starts only what is signed; for imported images"
    )
    tpm: bool = Field(default=False, description="it has a TPM 2.0; for imported images")
    display: Display | None = Field(
        default=None, description="its screen; null: vga in mode full on QEMU, else none"
    )
    networks: tuple[Name, ...] = Field(default=("default",), max_length=8)
    publish: tuple[Publish, ...] = Field(default=(), max_length=64)
    packages: tuple[Package, ...] = Field(default=(), max_length=256)
    user_data: str | None = Field(default=None, max_length=128 * 1024, repr=False)
    ready: Ready = Ready()
    tcg_buffer: Size | None = Field(default=None, ge=8 * MIB, le=2 * GIB, description="bytes")
    nested: bool = Field(
        default=True, description="it may run VMs with KVM itself, where the host's CPU allows it"
    )
    cold: bool = Field(default=False, description="boot, even where a warm template is at hand")
    restart: Restart = Restart()
    health: Health | None = Field(default=None, description="null: nobody looks after it")
    autostart: Autostart = Autostart()
    watchdog: Watchdog = Watchdog()

    @model_validator(mode="before")
    @classmethod
    def _named_by_architecture(cls, value: object) -> object:
        """Take ``micro`` of another architecture for the image that is called ``micro:arm64``."""
        if not isinstance(value, dict) or not value.get("architecture"):
            return value
        image, arch = value.get("image"), str(value["architecture"])
        if not isinstance(image, str) or ":" in image or arch not in tuple(Arch):
            return value
        return {**value, "image": f"{image}:{arch}"}

    @field_validator("user_data")
    @classmethod
    def _known_user_data(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("#!", "#cloud-config")):
            raise ValueError("expected text that starts with #!/bin/sh or #cloud-config")
        return value


class Evidence(Frozen):
    """How a guest really runs, as read inside it.

    On Xen also: ``guest_type`` and ``boot_log``, what it was found to run on by its kernel and when
    that booted (PV, PVH; nothing where it found no Xen), and ``domain_type``, what Xen's own tools
    say that it is (pv, pvh, hvm).
    """

    mode: Mode
    virtio: tuple[str, ...] = ()
    xenbus: tuple[str, ...] = ()
    disk_driver: str | None = None
    nic_driver: str | None = None
    kernel: str | None = None
    clocksource: str | None = None
    guest_type: str | None = None
    boot_log: str | None = None
    domain_type: str | None = None
    contradiction: str | None = None


class CloneKind(StrEnum):
    """How much a clone shares with its template."""

    INSTANT = "instant"
    LINKED = "linked"
    FULL = "full"


class Clone(Frozen):
    """What makes a VM a clone.

    instant: it goes on from the template's memory; its disk stands on the template's. linked: it
    boots, its disk stands on the template's. full: it boots from a disk of its own.
    ``fresh`` until it was ready for the first time.
    """

    template: str = Field(description="id of the template")
    kind: CloneKind
    fresh: bool = True


class VmRecord(Frozen):
    """What the store keeps of a VM: definition, wanted state, and what was last seen."""

    uuid: str
    spec: VmSpec
    wanted: Wanted
    created: float = Field(description="seconds since the epoch")
    uid: int = Field(description="the uid its hypervisor process runs as when the daemon is root")
    mode: Mode = Field(description="the mode that auto became")
    hypervisor: str
    image_id: str | None = None
    machine_type: str | None = None
    nics: tuple[NicRecord, ...] = ()
    stack: str | None = None
    state: VmState = VmState.CREATING
    reason: str | None = None
    panicked: bool = Field(default=False, description="its console showed it: it is there, dead")
    started: float | None = Field(default=None, description="seconds since the epoch")
    ready_seconds: float | None = None
    evidence: Evidence | None = None
    clone: Clone | None = None
    instance_id: str | None = Field(default=None, description="in its seed; none: its uuid")
    internal: bool = Field(default=False, description="made by Hanok for itself: in no list")
    boot: str | None = Field(default=None, description="how it last came up, for people")
    starved: bool = Field(
        default=False, description="paused: its disk met a full file system of the host"
    )
    restarts: RestartsSeen = RestartsSeen()
    health: HealthSeen | None = None
    disks: tuple[DataDisk, ...] = ()
    cpus_changed: bool = Field(default=False, description="vCPUs came or went since it started")
    pending: Pending | None = Field(default=None, description="only while it is up")
    generation: int = Field(default=0, description="how often it was changed")
