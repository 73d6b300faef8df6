"""Settings of the daemon: frozen, built once, passed in. Nothing else reads the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hanok.errors import InvalidInput

if TYPE_CHECKING:
    from hanok.model.host import CapacityPolicy

_POLICY_VARIABLES = {
    "HANOK_CPU_RATIO": "cpu_ratio",
    "HANOK_RESERVE_MEMORY": "reserve_memory",
    "HANOK_RESERVE_DISK": "reserve_disk",
    "HANOK_MEMORY_POLICY": "memory_policy",
    "HANOK_MEMORY_FACTOR": "memory_factor",
    "HANOK_SHARED_RESERVE": "shared_reserve",
}
# sun_path holds 107 characters; the longest socket of ours adds /vms/<uuid>/m/console.sock.
_LONGEST_HOME = 48


def _default_policy() -> CapacityPolicy:
    # Imported here: the command line needs find_home, and must not wait for the model library.
    from hanok.model.host import CapacityPolicy

    return CapacityPolicy()


@dataclass(frozen=True)
class Listen:
    """A TCP address to listen at; port 0: any that is free."""

    address: str
    port: int

    def __str__(self) -> str:
        """Return it as it is written: ``10.0.0.1:7443``, ``[::1]:7443``."""
        return (
            f"[{self.address}]:{self.port}"
            if ":" in self.address
            else f"{self.address}:{self.port}"
        )


@dataclass(frozen=True)
class Settings:
    """Where things are and how the daemon behaves.

    ``uid_base``: as root, VM number n runs as uid_base + n and network number n as
    uid_base + 60000 + n. ``policy``: how much of the host may be given away, by HANOK_CPU_RATIO,
    HANOK_RESERVE_MEMORY and HANOK_RESERVE_DISK; how memory is, by HANOK_MEMORY_POLICY (guaranteed
    or shared), HANOK_MEMORY_FACTOR and HANOK_SHARED_RESERVE.
    ``stop_timeout``: seconds that a guest has to power itself off.
    ``idle_exit``: seconds without a VM and a request after which a daemon that a command started
    ends itself. ``failpoint``: the step at which the daemon kills itself (tests only).
    ``shared_images``: a folder of images that several data directories share.
    ``warm_limit``: how many warm templates ``run`` may keep, by HANOK_WARM; 0: none are made.
    ``kvm_limit``: seconds that a guest may take to boot when KVM is measured, by HANOK_KVM_LIMIT
    (None: as long as the driver finds right).
    ``listen``: where to answer over the network, by HANOK_LISTEN; None: nowhere.
    ``welcome``: a pipe at which whoever rules the host may give the daemon a certificate and a
    token, by HANOK_WELCOME (see api/welcome.py); None: there is none.
    ``catalog``: a file of cloud images besides Hanok's own catalog, by HANOK_CATALOG.
    ``network``: what networks are made of, by HANOK_NETWORK: auto, namespace or user.
    ``on_stop``: what ``systemctl stop`` does to the VMs, by HANOK_ON_STOP: leave or shutdown.
    """

    home: Path
    hypervisor: str = "auto"
    uid_base: int = 1_700_000_000
    policy: CapacityPolicy = field(default_factory=_default_policy)
    stop_timeout: float = 30
    idle_exit: float | None = None
    failpoint: str | None = None
    shared_images: Path | None = None
    warm_limit: int = 4
    kvm_limit: float | None = None
    listen: Listen | None = None
    on_stop: str = "leave"
    welcome: Path | None = None
    catalog: Path | None = None
    network: str = "auto"

    @property
    def socket(self) -> Path:
        """The daemon's API socket."""
        return self.home / "hanokd.sock"

    @property
    def lock(self) -> Path:
        """Held by the one daemon of this data directory."""
        return self.home / "hanokd.lock"

    @property
    def log(self) -> Path:
        """The daemon's own log."""
        return self.home / "hanokd.log"

    @property
    def database(self) -> Path:
        """The SQLite database."""
        return self.home / "state.db"

    @property
    def images(self) -> Path:
        """Built and imported images, a folder each."""
        return self.shared_images or self.home / "images"

    @property
    def vms(self) -> Path:
        """A folder a VM: disks, seed, sockets, console log."""
        return self.home / "vms"

    @property
    def templates(self) -> Path:
        """A folder a template: its memory, devices and disk."""
        return self.home / "templates"

    @property
    def uploads(self) -> Path:
        """Files that are being imported; each goes when its operation ends."""
        return self.home / "uploads"

    @property
    def exports(self) -> Path:
        """Disks that were exported; each goes when it was fetched."""
        return self.home / "exports"

    @property
    def networks(self) -> Path:
        """A folder a network: the keeper's socket, leases and log."""
        return self.home / "networks"

    @property
    def certificates(self) -> Path:
        """The certificate, and its key, that is shown over the network."""
        return self.home / "keys"

    @property
    def keys(self) -> Path:
        """The SSH key pair that Hanok injects into guests."""
        return self.home / "ssh"


def find_home(environ: Mapping[str, str]) -> Path:
    """Return the data directory: HANOK_HOME, else /var/lib/hanok for root, else by XDG.

    Raises InvalidInput when it is relative or too long for unix sockets below it.
    """
    home = _choose_home(environ)
    if not home.is_absolute():
        raise InvalidInput(
            f"the data directory is {str(home)!r}", field="HANOK_HOME", expected="an absolute path"
        )
    if len(str(home)) > _LONGEST_HOME:
        raise InvalidInput(
            f"the data directory {home} is too long for the unix sockets below it",
            field="HANOK_HOME",
            expected=f"at most {_LONGEST_HOME} characters",
            hint="set HANOK_HOME to a shorter one, such as a symbolic link to this",
        )
    return home


def _choose_home(environ: Mapping[str, str]) -> Path:
    if chosen := environ.get("HANOK_HOME"):
        return Path(chosen)
    if os.geteuid() == 0:
        return Path("/var/lib/hanok")
    base = environ.get("XDG_DATA_HOME") or str(Path.home() / ".local/share")
    return Path(base) / "hanok"


def load_settings(environ: Mapping[str, str]) -> Settings:
    """Return the settings that the environment asks for.

    Raises InvalidInput when HANOK_HOME is relative or too long for unix sockets below it.
    """
    return Settings(
        home=find_home(environ),
        policy=_policy(environ),
        hypervisor=environ.get("HANOK_HYPERVISOR", "auto"),
        failpoint=environ.get("HANOK_FAILPOINT"),
        idle_exit=_seconds(environ, "HANOK_IDLE_EXIT"),
        warm_limit=_count(environ, "HANOK_WARM", 4),
        kvm_limit=_seconds(environ, "HANOK_KVM_LIMIT"),
        listen=_listen(environ),
        on_stop=_on_stop(environ),
        network=environ.get("HANOK_NETWORK") or "auto",
        catalog=Path(file) if (file := environ.get("HANOK_CATALOG")) else None,
        welcome=Path(pipe) if (pipe := environ.get("HANOK_WELCOME")) else None,
        shared_images=Path(images) if (images := environ.get("HANOK_IMAGES")) else None,
    )


def _policy(environ: Mapping[str, str]) -> CapacityPolicy:
    """Return how much of the host may be given away, as the administrator's environment says."""
    from hanok.model.host import CapacityPolicy  # pydantic: the command line has no need of it
    from hanok.model.validation import validated

    chosen = {
        field: environ[name] for name, field in _POLICY_VARIABLES.items() if environ.get(name)
    }
    return validated(CapacityPolicy, chosen)


def _listen(environ: Mapping[str, str]) -> Listen | None:
    import ipaddress  # the command line has no need of it

    text = environ.get("HANOK_LISTEN")
    if not text:
        return None
    host, _, port = text.rpartition(":")
    try:
        address = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
        is_right = (address.version == 6) == host.startswith("[") == host.endswith("]")
        if not (is_right and port.isascii() and port.isdecimal() and int(port) <= 65535):
            raise ValueError
    except ValueError:
        raise InvalidInput(
            f"HANOK_LISTEN is {text!r}",
            field="HANOK_LISTEN",
            expected="ADDRESS:PORT, such as 0.0.0.0:7443 or [::]:7443",
        ) from None
    return Listen(str(address), int(port))


def _on_stop(environ: Mapping[str, str]) -> str:
    text = environ.get("HANOK_ON_STOP") or "leave"
    if text not in ("leave", "shutdown"):
        raise InvalidInput(
            f"HANOK_ON_STOP is {text!r}", field="HANOK_ON_STOP", expected="leave or shutdown"
        )
    return text


def _seconds(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name)
    if not text:
        return None
    if not text.isdecimal():
        raise InvalidInput(f"{name} is {text!r}", field=name, expected="whole seconds")
    return float(text)


def _count(environ: Mapping[str, str], name: str, default: int) -> int:
    text = environ.get(name)
    if not text:
        return default
    if not text.isdecimal() or int(text) > 64:
        raise InvalidInput(f"{name} is {text!r}", field=name, expected="a number from 0 to 64")
    return int(text)
