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
from hanok.model.architecture import Arch, host_arch

# Raised whenever the builder makes something else of the same recipe and guest files.
BUILDER_REVISION = 3

MICRO = "micro"
MICRO_ARM64 = "micro:arm64"
# A host for VMs in a VM: the system LAB_SYSTEM, and on a disk of its own this very Hanok.
LAB = "lab"
LAB_SYSTEM = "lab-system"
# A kernel with its initrd, and a disk with its modules: for images that lack them.
KERNEL = "kernel"
KERNEL_PACKAGE = "linux-image-amd64"
# Images that were made of others or imported, by the name that the user gave: no recipe.
OWN = "own"
# The same below Xen, on top of LAB_XEN_SYSTEM.
LAB_XEN = "lab-xen"
LAB_XEN_SYSTEM = "lab-xen-system"
_DEBIAN_SUITES = {"11": "bullseye", "12": "bookworm", "13": "trixie"}
_ALIASES = {"debian": "debian:12", f"{MICRO}:{Arch.AMD64}": MICRO}

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
_MICRO_ARM64_PACKAGES = (
    "linux-image-cloud-arm64",
    "busybox-static",
    "e2fsprogs",
    "perl-base",
    "qemu-guest-agent",
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
_KERNEL_TOOLS = ("busybox-static", "kmod")
_KERNEL_REFS = tuple(f"{KERNEL}:{release}" for release in _DEBIAN_SUITES)
# Dom0 needs the full kernel. ovmf, grub-xen-host and isolinux are what Xen's guests can boot by.
_LAB_XEN_PACKAGES = (
    "linux-image-amd64",
    *(name for name in _LAB_PACKAGES if name not in _KERNELS),
    "grub-xen-host",
    "isolinux",
    "ovmf",
    "qemu-system-xen",
    "seabios",
    "syslinux-common",
    "xen-hypervisor-4.17-amd64",
    "xen-utils-4.17",
    "xenstore-utils",
)
# Guest files that kinds have besides their own; the later ones count.
_SHARED_FILES = {
    "micro-arm64": (MICRO,),
    LAB_SYSTEM: ("debian",),
    LAB_XEN_SYSTEM: ("debian", LAB_SYSTEM),
}
_SYSTEMS = {LAB: LAB_SYSTEM, LAB_XEN: LAB_XEN_SYSTEM}
LABS = tuple(_SYSTEMS)


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
    architecture: Arch = Arch.AMD64

    @property
    def files_kind(self) -> str:
        """Which folder of guest files is its own."""
        is_usual = self.architecture is Arch.AMD64
        return self.kind if is_usual else f"{self.kind}-{self.architecture}"

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
                for name, data in guest_files(self.files_kind).items()
            },
        }
        if self.stands_on is not None:
            content["payload"] = [self.stands_on.id, self.payload]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def known_refs() -> tuple[str, ...]:
    """Return the images that Hanok builds itself."""
    return (MICRO, *(f"debian:{release}" for release in _DEBIAN_SUITES), *LABS, MICRO_ARM64)


def resolve(ref: str, packages: tuple[str, ...] = ()) -> Recipe:
    """Return the recipe of image ``ref`` with ``packages`` added.

    Raises InvalidInput: field ``image`` when the image is not known (the nearest is named), field
    ``packages`` when a name is no Debian package name or the image takes no packages.
    """
    ref = _canonical(ref)
    if is_own(ref):
        raise InvalidInput(
            f"the image {ref} was imported or made of another one: it cannot be built",
            field="image",
            hint="'hanok image import' and 'hanok image paravirtualize' make such images",
        )
    if ref not in (*known_refs(), *_SYSTEMS.values(), *_KERNEL_REFS):
        raise _unknown(ref)
    for package in packages:
        if _PACKAGE.fullmatch(package) is None:
            raise InvalidInput(
                f"{package[:60]!r} is not the name of a Debian package",
                field="packages",
                expected="lower-case letters, digits, '+', '-' and '.', such as nginx",
            )
    if ref in (MICRO, MICRO_ARM64, *_SYSTEMS, *_SYSTEMS.values()):
        return _whole(ref, packages)
    release = ref.partition(":")[2]
    if ref in _KERNEL_REFS:
        return _kernel(ref, release, packages)
    added = tuple(sorted(set(packages) - set(_DEBIAN_PACKAGES)))
    base = _DEBIAN_PACKAGES if release == "11" else (*_DEBIAN_PACKAGES, "systemd-resolved")
    return Recipe(ref, f"Debian {release}", _DEBIAN_SUITES[release], added, tuple(sorted(base)))


def _canonical(ref: str) -> str:
    """Return the full name of an image: micro is that of this host's architecture."""
    if ref == MICRO and host_arch() is Arch.ARM64:
        return MICRO_ARM64
    return _ALIASES.get(ref, ref)


def is_own(ref: str) -> bool:
    """Whether ``ref`` is an image that was imported, or made of another one, on this host."""
    return ref.startswith(f"{OWN}:")


def kernel_ref(ref: str) -> str:
    """Return the image with kernels that suit the guest ``ref``: those of its own Debian."""
    wanted = f"{KERNEL}:{ref.partition(':')[2]}"
    return wanted if ref.startswith("debian:") and wanted in _KERNEL_REFS else _KERNEL_REFS[1]


def _kernel(ref: str, release: str, packages: tuple[str, ...]) -> Recipe:
    if len(packages) != 1 or not packages[0].startswith("linux-image-"):
        raise InvalidInput(
            f"{' '.join(packages)[:60] or 'nothing'} is not one kernel",
            field="kernel_package",
            expected=f"one package whose name begins with linux-image-, such as {KERNEL_PACKAGE}",
        )
    name = f"A kernel of Debian {release}"
    return Recipe(ref, name, _DEBIAN_SUITES[release], packages, _KERNEL_TOOLS)


def _whole(ref: str, packages: tuple[str, ...]) -> Recipe:
    """Return the recipe of an image that is always the same."""
    if packages:
        raise Unsupported(
            "the image micro has no package manager"
            if ref in (MICRO, MICRO_ARM64)
            else f"the image {ref} has what a host needs, and nothing else",
            field="packages",
            expected="no packages",
            hint="use debian:12 for a guest with packages",
        )
    suite = _DEBIAN_SUITES["12"]
    micro = Recipe(MICRO, "Hanok micro", suite, (), _MICRO_PACKAGES)
    if ref == MICRO:
        return micro
    if ref == MICRO_ARM64:
        name = "Hanok micro for arm64"
        arch = Arch.ARM64
        return Recipe(ref, name, suite, (), _MICRO_ARM64_PACKAGES, architecture=arch)
    is_xen = ref in (LAB_XEN, LAB_XEN_SYSTEM)
    packages, below = (_LAB_XEN_PACKAGES, " and Xen") if is_xen else (_LAB_PACKAGES, "")
    kind = LAB_XEN_SYSTEM if is_xen else LAB_SYSTEM
    system = Recipe(kind, f"Debian 12{below} for Hanok", suite, (), packages, micro)
    if ref == kind:
        return system
    return Recipe(
        ref, f"Debian 12 with{below and ' Xen and'} Hanok", suite, (), (), system, payload_digest()
    )


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
