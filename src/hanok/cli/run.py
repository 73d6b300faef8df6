"""``hanok run``: one VM from options."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import click

from hanok.cli.base import (
    Example,
    Session,
    common_options,
    complete_image,
    complete_network,
    pass_session,
)
from hanok.cli.listing import print_vms, seconds
from hanok.cli.progress import follow
from hanok.errors import InvalidInput

_LARGEST_USER_DATA = 128 * 1024


@click.command(
    "run",
    cls=Example,
    examples=(
        "hanok run micro --name first",
        "hanok run debian:12 --name web --memory 512M --package nginx --publish 8080:80",
        "hanok run debian:12 --name db --user-data setup.sh --ready-port 5432",
    ),
)
@click.argument("image", shell_complete=complete_image)
@click.option("--name", required=True, help="Its name, also its host name on its networks.")
@click.option("--cpus", type=int, help="Virtual CPUs (default 1).")
@click.option("--memory", metavar="SIZE", help="Memory, such as 512M (the default) or 2G.")
@click.option("--disk", metavar="SIZE", help="Disk, such as 4G (the default).")
@click.option("--mode", metavar="MODE", help="full, para, hybrid or auto (the default).")
@click.option(
    "--network",
    "networks",
    multiple=True,
    metavar="NAME",
    shell_complete=complete_network,
    help="A network that it is on (default: default). Repeatable.",
)
@click.option(
    "--publish",
    multiple=True,
    metavar="[ADDRESS:]HOST:GUEST",
    help="Reach the guest's TCP port at a port of this host. Repeatable.",
)
@click.option(
    "--package", "packages", multiple=True, help="A package that its image has. Repeatable."
)
@click.option(
    "--user-data",
    type=click.File("rb"),
    help="A cloud-init file (#cloud-config or a script); - is standard input.",
)
@click.option("--ready-port", type=int, metavar="PORT", help="Ready when this port answers.")
@click.option("--ready-url", metavar="URL", help="Ready when this URL of the guest answers.")
@click.option("--ready-command", metavar="CMD", help="Ready when this succeeds in the guest.")
@click.option(
    "--ready-timeout", type=float, metavar="SECONDS", help="Failed when not ready by then."
)
@click.option("--cold", is_flag=True, help="Boot it, even where a warm template is at hand.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
@common_options
@pass_session
def run(
    session: Session,
    image: str,
    name: str,
    cpus: int | None,
    memory: str | None,
    disk: str | None,
    mode: str | None,
    networks: Sequence[str],
    publish: Sequence[str],
    packages: Sequence[str],
    user_data: BinaryIO | None,
    ready_port: int | None,
    ready_url: str | None,
    ready_command: str | None,
    ready_timeout: float | None,
    cold: bool,
    no_wait: bool,
) -> None:
    """Create a VM from IMAGE, start it, and wait until it is ready.

    The first run of an image and shape leaves a warm template behind; later ones go on from it
    instead of booting, where they can. "hanok show" tells how a VM came up.
    """
    ready = {
        "port": ready_port,
        "url": ready_url,
        "command": ready_command,
        "timeout": ready_timeout,
    }
    fields: dict[str, object] = {
        "cpus": cpus,
        "memory": memory,
        "disk": disk,
        "mode": mode,
        "networks": list(networks) or None,
        "publish": list(publish) or None,
        "packages": list(packages) or None,
        "user_data": None if user_data is None else read_user_data(user_data),
        "ready": {key: value for key, value in ready.items() if value is not None} or None,
        "cold": cold or None,
    }
    spec = {key: value for key, value in fields.items() if value is not None}
    operation = session.client.run({"name": name, "image": image, **spec})
    if no_wait:
        if session.out.as_json:
            session.out.json(operation)
        session.out.line(f"Operation {operation['id']} goes on in the daemon.")
        return
    follow(session, operation)
    vm = session.client.vm(name)
    if session.out.as_json:
        session.out.json(vm)
        return
    print_vms(session.out, [vm])
    took = seconds(vm["ready_seconds"])
    session.out.line()
    session.out.line(f"{name} is {vm['state']}" + (f" after {took}." if took else "."))
    session.out.line(f"Try: {session.program} exec {name} -- uname -a")


def read_user_data(source: BinaryIO) -> str:
    """Return the text of a cloud-init file. Raises InvalidInput: too large, or not UTF-8."""
    label = "standard input" if source is sys.stdin.buffer else Path(source.name).name
    data = source.read(_LARGEST_USER_DATA + 1)
    if len(data) > _LARGEST_USER_DATA:
        raise InvalidInput(f"{label} is too large", field="--user-data", expected="at most 128 KiB")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InvalidInput(
            f"{label} is not text", field="--user-data", expected="text in UTF-8"
        ) from None
