"""What lab hosts are to be: their names, shapes, templates and ports. Pure."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hanok.errors import Conflict, InvalidInput, NotFound

if TYPE_CHECKING:
    from hanok.model.views import TemplateView, VmView

IMAGE = "lab"
HYPERVISORS = ("tcg", "kvm")
# Where the daemon listens in a lab host (see the image's hanokd.service).
PORT = 7443
_FIRST_PORT = 7444
_LAST_PORT = 7999
_MOST = 64


@dataclass(frozen=True)
class Shape:
    """What a lab host is like. ``kvm`` in it needs a CPU that can virtualize; ``tcg`` has none."""

    hypervisor: str = "tcg"
    cpus: int = 2
    memory: str = "2G"
    disk: str = "8G"

    def spec(self) -> dict[str, object]:
        """Return it as fields of a VM's definition."""
        return {
            "image": IMAGE,
            "cpus": self.cpus,
            "memory": self.memory,
            "disk": self.disk,
            "mode": "para",
            "nested": self.hypervisor == "kvm",
        }


def checked_shape(shape: Shape) -> Shape:
    """Return ``shape``. Raises InvalidInput; sizes are the daemon's to check."""
    if shape.hypervisor not in HYPERVISORS:
        raise InvalidInput(
            f"a lab host cannot have the hypervisor {shape.hypervisor!r}",
            field="--hypervisor",
            expected=" or ".join(HYPERVISORS),
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
    content = f"{shape.hypervisor} {shape.cpus} {shape.memory.upper()} {shape.disk.upper()}"
    digest = hashlib.sha256(content.encode()).hexdigest()
    return f"{IMAGE}-{image_id[:8]}-{digest[:6]}"


def is_lab_template(template: TemplateView) -> bool:
    """Whether the lab made it."""
    name = re.fullmatch(rf"{IMAGE}-[0-9a-f]{{8}}-[0-9a-f]{{6}}", template["name"])
    return template["image"] == IMAGE and name is not None


def stale_templates(templates: Iterable[TemplateView], image_id: str) -> list[str]:
    """Return the names of lab templates that no host stands on, of other images than this."""
    current = f"{IMAGE}-{image_id[:8]}-"
    return [
        one["name"]
        for one in templates
        if is_lab_template(one) and not one["clones"] and not one["name"].startswith(current)
    ]


def lab_hosts(vms: Iterable[VmView]) -> list[VmView]:
    """Return those VMs that are lab hosts."""
    return [vm for vm in vms if vm["image"] == IMAGE]


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
