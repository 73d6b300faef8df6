"""``hanok image paravirtualize``: an image that suits mode para, of one that does not."""

from __future__ import annotations

import click

from hanok.cli.base import Example, Session, common_options, complete_image, pass_session
from hanok.cli.progress import follow

_HYPERVISORS = ("qemu", "xen")


@click.command(
    "paravirtualize",
    cls=Example,
    examples=(
        "hanok image paravirtualize debian:12",
        "hanok image paravirtualize debian:12 --for qemu --name web "
        "--kernel-package linux-image-cloud-amd64",
    ),
)
@click.argument("image", shell_complete=complete_image)
@click.option(
    "--for",
    "hypervisor",
    type=click.Choice(_HYPERVISORS),
    help="Whose paravirtualization it must suit (default: both).",
)
@click.option("--kernel-package", help="Debian's package of the kernel (linux-image-amd64).")
@click.option("--name", help="Call the new image own:NAME (default: by the old one's name).")
@common_options
@pass_session
def paravirtualize(
    session: Session,
    image: str,
    hypervisor: str | None,
    kernel_package: str | None,
    name: str | None,
) -> None:
    """Make a new image of IMAGE, with a kernel that knows of hypervisors.

    The kernel and its drivers are put onto a copy of the disk, in a small VM of its own, and an
    initrd with the drivers for virtio and Xen is made. IMAGE itself stays as it is. The kernel
    comes as files: the guest's package manager does not know of it.
    """
    given = {"hypervisor": hypervisor, "kernel_package": kernel_package, "name": name}
    wanted = {key: value for key, value in given.items() if value is not None}
    final = follow(session, session.client.paravirtualize(image, wanted))
    result = final["result"] or {}
    if session.out.as_json:
        session.out.json(result or final)
    else:
        modes = ", ".join(result.get("modes", ()))
        session.out.line(f"{result.get('ref', image)} is made; it runs in mode {modes}")
