"""What an image is made of: pure functions from what a user asks for to a recipe with an id."""

from __future__ import annotations

import difflib
import functools
import hashlib
import json
import re
from dataclasses import dataclass
from importlib import resources

from hanok.errors import InvalidInput, Unsupported
from hanok.images.payload import payload_digest

# Raised whenever the builder makes something else of the same recipe and guest files.
BUILDER_REVISION = 1

MICRO = "micro"
# A host for VMs in a VM: the system LAB_SYSTEM, and on a disk of its own this very Hanok.
LAB = "lab"
LAB_SYSTEM = "lab-system"
_DEBIAN_SUITES = {"11": "bullseye", "12": "bookworm", "13": "trixie"}
_ALIASES = {"debian": "debian:12"}

# Debian policy 5.6.1, without a last "-": for apt that would mean "remove this package".
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,126}[a-z0-9+.]", re.A)

_KERNELS = ("linux-image-cloud-amd64", "linux-image-amd64")
_MICRO_PACKAGES = (
    *_KERNELS,
    "busybox-static",
    "e2fsprogs",
    "perl-base",
    "qemu-guest-agent",
    "xenstore-utils",
)
_DEBIAN_PACKAGES = (
    *_KERNELS,
    "busybox-static",
    "ca-certificates",
    "cloud-init",
    "dbus",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "netbase",
    "openssh-server",
    "procps",
    "qemu-guest-agent",
    "sudo",
    "systemd-sysv",
    "udev",
    "xenstore-utils",
)
_LAB_PACKAGES = (
    "linux-image-cloud-amd64",
    "busybox-static",
    "ca-certificates",
    "dbus",
    "dnsmasq-base",
    "e2fsprogs",
    "iproute2",
    "iputils-ping",
    "kmod",
    "netbase",
    "nftables",
    "openssh-client",
    "passt",
    "procps",
    "python3",
    "qemu-guest-agent",
    "qemu-system-x86",
    "qemu-utils",
    "systemd-resolved",
    "systemd-sysv",
    "udev",
    "zstd",
)
# Guest files that kinds have besides their own.
_SHARED_FILES = {LAB_SYSTEM: ("debian",)}


@dataclass(frozen=True)
class Recipe:
    """How to build one image. ``base_packages`` make every image of its kind, ``packages`` are
    what the user adds."""

    ref: str
    os: str
    suite: str
    packages: tuple[str, ...]
    base_packages: tuple[str, ...]
    stands_on: Recipe | None = None
    payload: str = ""

    @property
    def kind(self) -> str:
        """Which family of guest files and steps it uses: such as ``micro`` or ``debian``."""
        return self.ref.partition(":")[0]

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits: a hash of everything that the content depends on."""
        content: dict[str, object] = {
            "builder": BUILDER_REVISION,
            "ref": self.ref,
            "suite": self.suite,
            "packages": [*self.base_packages, "+", *self.packages],
            "files": {
                name: hashlib.sha256(data).hexdigest()
                for name, data in guest_files(self.kind).items()
            },
        }
        if self.stands_on is not None:
            content["payload"] = [self.stands_on.id, self.payload]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def known_refs() -> tuple[str, ...]:
    """Return the images that Hanok builds itself."""
    return (MICRO, *(f"debian:{release}" for release in _DEBIAN_SUITES), LAB)


def resolve(ref: str, packages: tuple[str, ...] = ()) -> Recipe:
    """Return the recipe of image ``ref`` with ``packages`` added.

    Raises InvalidInput: field ``image`` when the image is not known (the nearest is named), field
    ``packages`` when a name is no Debian package name or the image takes no packages.
    """
    ref = _ALIASES.get(ref, ref)
    if ref not in (*known_refs(), LAB_SYSTEM):
        raise _unknown(ref)
    for package in packages:
        if _PACKAGE.fullmatch(package) is None:
            raise InvalidInput(
                f"{package[:60]!r} is not the name of a Debian package",
                field="packages",
                expected="lower-case letters, digits, '+', '-' and '.', such as nginx",
            )
    if ref in (MICRO, LAB, LAB_SYSTEM):
        return _whole(ref, packages)
    release = ref.partition(":")[2]
    added = tuple(sorted(set(packages) - set(_DEBIAN_PACKAGES)))
    base = _DEBIAN_PACKAGES if release == "11" else (*_DEBIAN_PACKAGES, "systemd-resolved")
    return Recipe(ref, f"Debian {release}", _DEBIAN_SUITES[release], added, tuple(sorted(base)))


def _whole(ref: str, packages: tuple[str, ...]) -> Recipe:
    """Return the recipe of an image that is always the same."""
    if packages:
        raise Unsupported(
            "the image micro has no package manager"
            if ref == MICRO
            else "the image lab has what a host needs, and nothing else",
            field="packages",
            expected="no packages",
            hint="use debian:12 for a guest with packages",
        )
    suite = _DEBIAN_SUITES["12"]
    micro = Recipe(MICRO, "Hanok micro", suite, (), _MICRO_PACKAGES)
    if ref == MICRO:
        return micro
    system = Recipe(LAB_SYSTEM, "Debian 12 for Hanok", suite, (), _LAB_PACKAGES, micro)
    if ref == LAB_SYSTEM:
        return system
    return Recipe(LAB, "Debian 12 with Hanok", suite, (), (), system, payload_digest())


def _unknown(ref: str) -> InvalidInput:
    known = ", ".join(known_refs())
    nearest = difflib.get_close_matches(ref, (*known_refs(), *_ALIASES), n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else f"use one of {known}"
    return InvalidInput(
        f"there is no image {ref[:60]!r}", field="image", expected=f"one of {known}", hint=hint
    )


@functools.cache
def guest_files(kind: str) -> dict[str, bytes]:
    """Return the files that go into, or make, images of ``kind``, by name.

    Those at the top of the folder are common to all kinds; a kind's own count before shared ones.
    """
    top = resources.files("hanok.images") / "files"
    found: dict[str, bytes] = {}
    for folder in (top, *(top / shared for shared in _SHARED_FILES.get(kind, ())), top / kind):
        for entry in folder.iterdir() if folder.is_dir() else ():
            if entry.is_file() and not entry.name.startswith("."):
                found[entry.name] = entry.read_bytes()
    return found
