"""``hanok image inspect``: an image or a kernel's file, and the modes that it can run in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from hanok.cli.base import Example, Session, common_options, complete_image, pass_session
from hanok.cli.listing import when
from hanok.cli.output import Cell
from hanok.errors import InvalidInput
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.client.wire import ImageKernelsWire, KernelReportWire

_HYPERVISORS = {"qemu": "QEMU", "xen": "Xen"}
_STYLES = {"yes": "green", "no": "red", "unknown": "yellow"}


@click.command(
    "inspect",
    cls=Example,
    examples=(
        "hanok image inspect debian:12",
        "hanok image inspect ./vmlinuz --initrd ./initrd.img",
    ),
)
@click.argument("image", metavar="IMAGE|FILE", shell_complete=complete_image)
@click.option("--initrd", help="The initrd that belongs to a kernel's FILE.")
@common_options
@pass_session
def inspect(session: Session, image: str, initrd: str | None) -> None:
    """Show everything about IMAGE, a reference or an id, and what its kernels can do.

    With a slash in it, it is a kernel's FILE on this machine: a bzImage or an ELF file. It is read
    here and only read.
    """
    if "/" in image:
        _inspect_file(session, image, initrd)
        return
    if initrd is not None:
        raise InvalidInput(
            "an image has initrds of its own", field="initrd", hint="give it with a kernel's FILE"
        )
    found = session.client.image(image)
    kernels = session.client.image_kernels(found["id"])
    if session.out.as_json:
        session.out.json({**found, "inspected": kernels})
        return
    _show_image(session, found)
    _show_kernels(session, kernels)


def _inspect_file(session: Session, kernel: str, initrd: str | None) -> None:
    from pathlib import Path
    from typing import cast

    from hanok.kernels.inspect import inspect_files

    path = Path(kernel)
    found = inspect_files(path.name, path, None if initrd is None else Path(initrd))
    shown = cast("KernelReportWire", found.model_dump(mode="json"))
    if session.out.as_json:
        session.out.json(shown)
    else:
        _show_kernel(session, shown)


def _origin(imported: dict[str, Any] | None) -> str | None:
    """Return the file that an image was made of, and what is known of it."""
    if imported is None:
        return None
    return f"{imported['file']} ({imported['format']}), sha256 {imported['sha256']}"


def _show_image(session: Session, found: dict[str, Any]) -> None:
    kernels = [f"{one['name']} ({', '.join(one['modes'])})" for one in found["kernels"]]
    session.out.pairs(
        [
            ("image", found["ref"]),
            ("id", found["id"]),
            ("system", found["os"]),
            ("packages", " ".join(found["packages"]) or None),
            ("kernels", "\n".join(kernels) or "none: its firmware boots the disk"),
            ("firmware", ", ".join(found.get("firmware", ())) or None),
            ("imported from", _origin(found.get("imported"))),
            ("disk", f"{found['disk_format']}, {format_size(found['disk_size'])}"),
            ("on disk", format_size(found["size"])),
            ("needs memory", format_size(found["minimum_memory"])),
            ("guest agent", "yes" if found["agent"] else "no"),
            ("ssh user", found["ssh_user"]),
            ("built", when(found["created"])),
        ]
    )


def _show_kernels(session: Session, kernels: ImageKernelsWire) -> None:
    for one in kernels["kernels"]:
        session.out.line()
        _show_kernel(session, one)
    for failure in kernels["failures"]:
        session.out.line()
        session.out.line(f"The kernel {failure['name']} could not be read: {failure['why']}")


def _show_kernel(session: Session, found: KernelReportWire) -> None:
    kernel, initrd = found["kernel"], found["initrd"]
    session.out.pairs(
        [
            ("kernel", found["name"]),
            ("version", kernel["version"] or "not said"),
            ("format", _format(kernel)),
            ("Xen entries", _entries(kernel["xen"])),
            ("initrd", "none given" if initrd is None else _initrd(initrd)),
            ("drivers", _drivers(found["drivers"])),
        ]
    )
    rows = [
        (
            _HYPERVISORS[one["hypervisor"]],
            one["mode"],
            Cell(one["can"], _STYLES[one["can"]]),
            "; ".join([*one["lacks"], *one["notes"]]),
        )
        for one in found["modes"]
    ]
    session.out.table(("HYPERVISOR", "MODE", "CAN", "WHY NOT, AND WHAT TO KNOW"), rows)


def _format(kernel: dict[str, Any]) -> str:
    parts = [f"{kernel['format']} for {kernel['arch']}", format_size(kernel["size"])]
    if kernel["boot_protocol"]:
        parts += [f"boot protocol {kernel['boot_protocol']}", f"{kernel['compression']} inside"]
    return ", ".join(parts)


def _entries(xen: dict[str, Any] | None) -> str:
    if xen is None:
        return "none"
    found = [
        name for name, key in (("PV", "pv_entry"), ("PVH", "pvh_entry")) if xen[key] is not None
    ]
    return ", ".join(found) or "none"


def _initrd(initrd: dict[str, Any]) -> str:
    how = " + ".join("not compressed" if one == "none" else one for one in initrd["archives"])
    releases = ", ".join(initrd["releases"]) or "no kernel"
    return f"{how}; {initrd['entries']} files, {len(initrd['modules'])} modules for {releases}"


def _drivers(drivers: Sequence[dict[str, Any]]) -> str:
    there = [
        f"{one['name']} ({one['found']})"
        for one in drivers
        if one["found"] in ("built-in", "initrd")
    ]
    return ", ".join(there) or "none that a mode asks for, as far as is known"
