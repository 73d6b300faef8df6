"""What lab hosts are to be: their names, shapes, templates and ports. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hanok.errors import Conflict, InvalidInput, NotFound
from hanok.units import GIB, format_size, parse_size

if TYPE_CHECKING:
    from hanok.model.views import TemplateView, VmView

# The image of a host by the hypervisor that its own VMs are to run on.
IMAGES = {"tcg": "lab", "kvm": "lab", "xen": "lab-xen"}
HYPERVISORS = tuple(IMAGES)
# Below Xen, Dom0 has 1 GiB of it for good; the rest is for other domains.
_MEMORY = {"tcg": "2G", "kvm": "2G", "xen": "3G"}
_LEAST_BELOW_XEN = 2 * GIB
# Where the daemon listens in a lab host (see the image's hanokd.service).
PORT = 7443
# QEMU's emulation of nested virtualization: 10.0 loses CR2, the address of a page fault, so that
# Linux ends in its first one (seen with 10.0.13; 7.2 keeps it, those between were not tried).
_LOSES_CR2 = 10
_FIRST_PORT = 7444
_LAST_PORT = 7999
_MOST = 64


@dataclass(frozen=True)
class Shape:
    """What a lab host is like: all but ``tcg`` get a CPU that can virtualize.

    ``memory``: 2G, or 3G for Xen, when nothing is said.
    """

    hypervisor: str = "tcg"
    cpus: int = 2
    memory: str | None = None
    disk: str = "8G"

    @property
    def image(self) -> str:
        """The image that it boots."""
        return IMAGES[self.hypervisor]

    @property
    def size(self) -> str:
        """Its memory."""
        return _MEMORY[self.hypervisor] if self.memory is None else self.memory

    def spec(self) -> dict[str, object]:
        """Return it as fields of a VM's definition."""
        return {
            "image": self.image,
            "cpus": self.cpus,
            "memory": self.size,
            "disk": self.disk,
            "mode": "para",
            "nested": self.hypervisor != "tcg",
        }


def loses_page_faults(accelerator: str, version: str) -> bool:
    """Return whether an emulated host's guests with hardware virtualization cannot run here."""
    major = re.match(r"\d+", version)
    return accelerator == "tcg" and major is not None and int(major[0]) >= _LOSES_CR2


def checked_shape(shape: Shape) -> Shape:
    """Return ``shape``. Raises InvalidInput; other limits of sizes are the daemon's to check."""
    if shape.hypervisor not in HYPERVISORS:
        raise InvalidInput(
            f"a lab host cannot have the hypervisor {shape.hypervisor!r}",
            field="--hypervisor",
            expected=" or ".join(HYPERVISORS),
        )
    if shape.hypervisor == "xen" and parse_size(shape.size, field="--memory") < _LEAST_BELOW_XEN:
        raise InvalidInput(
            f"{shape.size} is too little memory for a host below Xen: Dom0 alone has 1G",
            field="--memory",
            expected=f"at least {format_size(_LEAST_BELOW_XEN)}",
        )
    return shape


def host_names(name: str, count: int) -> list[str]:
    """Return the names of ``count`` lab hosts: NAME, or NAME-1, NAME-2... Raises InvalidInput."""
    if not 1 <= count <= _MOST:
        raise InvalidInput(
            f"{count} lab hosts cannot be made at once",
            field="--count",
            expected=f"1 to {_MOST}",
        )
    return [name] if count == 1 else [f"{name}-{number}" for number in range(1, count + 1)]


def template_name(image_id: str, shape: Shape) -> str:
    """Return what the template of this image and shape is called."""
    content = f"{shape.hypervisor} {shape.cpus} {shape.size.upper()} {shape.disk.upper()}"
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"{shape.image}-{image_id[:8]}-{digest[:6]}"


def is_lab_template(template: TemplateView) -> bool:
    """Whether the lab made it."""
    name = re.fullmatch(
        rf"{re.escape(template['image'])}-[0-9a-f]{{8}}-[0-9a-f]{{6}}", template["name"]
    )
    return template["image"] in IMAGES.values() and name is not None


def stale_templates(templates: Iterable[TemplateView], image: str, image_id: str) -> list[str]:
    """Return the names of lab templates that no host stands on, of earlier images than this."""
    current = f"{image}-{image_id[:8]}-"
    return [
        one["name"]
        for one in templates
        if is_lab_template(one)
        and one["image"] == image
        and not one["clones"]
        and not one["name"].startswith(current)
    ]


def lab_hosts(vms: Iterable[VmView]) -> list[VmView]:
    """Return those VMs that are lab hosts."""
    return [vm for vm in vms if vm["image"] in IMAGES.values()]


def hypervisor_of(host: VmView) -> str:
    """Return what a lab host's own VMs are to run on, by its definition: tcg, kvm or xen."""
    if host["image"] == IMAGES["xen"]:
        return "xen"
    return "kvm" if host["nested"] else "tcg"


def port_of(vm: VmView) -> int | None:
    """Return the port of this machine at which a lab host's daemon is reached."""
    return next((one["host_port"] for one in vm["ports"] if one["guest_port"] == PORT), None)


def find_hosts(wanted: Sequence[str], vms: Iterable[VmView]) -> list[VmView]:
    """Return the lab hosts that ``wanted`` names; NAME alone also means NAME-1, NAME-2 and so on.

    Raises NotFound.
    """
    hosts = {vm["name"]: vm for vm in lab_hosts(vms)}
    found: dict[str, VmView] = {}
    for name in wanted:
        numbered = re.compile(rf"{re.escape(name)}-[0-9]+")
        names = [name] if name in hosts else [one for one in hosts if numbered.fullmatch(one)]
        if not names:
            raise NotFound(
                f"there is no lab host {name}",
                field="NAME",
                hint="'hanok lab list' shows those there are",
            )
        found |= {one: hosts[one] for one in names}
    return list(found.values())


def free_ports(vms: Iterable[VmView], is_free: Callable[[int], bool]) -> Iterator[int]:
    """Yield ports for lab hosts that no VM is published at. Raises Conflict after the last."""
    taken = {port["host_port"] for vm in vms for port in vm["ports"]}
    for port in range(_FIRST_PORT, _LAST_PORT + 1):
        if port not in taken and is_free(port):
            yield port
    raise Conflict(
        f"no port of this host is free for a lab host, from {_FIRST_PORT} to {_LAST_PORT}",
        hint="'hanok lab down' removes lab hosts that are not needed",
    )
