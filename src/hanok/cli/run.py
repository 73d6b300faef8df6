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
from hanok.cli.keeping import keeping_fields, keeping_options
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
        "hanok run micro --name keep --restart on-failure:5 --health agent --on-unhealthy restart",
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
@click.option(
    "--arch",
    type=click.Choice(("amd64", "arm64")),
    help="Of its processor (default: as its image is); another than the host's is emulated.",
)
@click.option(
    "--firmware",
    type=click.Choice(("bios", "uefi")),
    help="What boots the disk of an imported image (default: as it says).",
)
@click.option(
    "--secure-boot", is_flag=True, help="UEFI starts only what is signed (imported images)."
)
@click.option(
    "--display",
    type=click.Choice(("none", "vga")),
    help="Its screen (default: vga in mode full on QEMU, else none).",
)
@click.option("--tpm", is_flag=True, help="It has a TPM 2.0 (imported images).")
@click.option(
    "--ready",
    metavar="CHECK",
    help="Ready when this holds: tcp:PORT, console:TEXT or a URL, http://...",
)
@click.option("--ready-port", type=int, metavar="PORT", help="Ready when this port answers.")
@click.option("--ready-url", metavar="URL", help="Ready when this URL of the guest answers.")
@click.option("--ready-command", metavar="CMD", help="Ready when this succeeds in the guest.")
@click.option(
    "--ready-timeout", type=float, metavar="SECONDS", help="Failed when not ready by then."
)
@keeping_options
@click.option("--cold", is_flag=True, help="Boot it, even where a warm template is at hand.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is ready.")
@common_options
@pass_session
def run(
    session: Session,
    /,
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
    arch: str | None,
    firmware: str | None,
    secure_boot: bool,
    display: str | None,
    tpm: bool,
    ready: str | None,
    ready_port: int | None,
    ready_url: str | None,
    ready_command: str | None,
    ready_timeout: float | None,
    cold: bool,
    no_wait: bool,
    **keeping: object,
) -> None:
    """Create a VM from IMAGE, start it, and wait until it is ready.

    The first run of an image and shape leaves a warm template behind; later ones go on from it
    instead of booting, where they can. "hanok show" tells how a VM came up.
    """
    checks = {
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
        "architecture": arch,
        "firmware": firmware,
        "secure_boot": secure_boot or None,
        "display": display,
        "tpm": tpm or None,
        "ready": _ready(ready, {key: one for key, one in checks.items() if one is not None}),
        "cold": cold or None,
        **keeping_fields(keeping),
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


def _ready(text: str | None, checks: dict[str, object]) -> object:
    """Return the readiness check of ``--ready`` and of ``--ready-...``."""
    if text is None:
        return checks or None
    kind, _, rest = text.partition(":")
    key = {"tcp": "port", "console": "console", "http": "url"}.get(kind)
    if key is None or not rest or (key == "port" and not rest.isdecimal()):
        raise InvalidInput(
            f"{text[:60]!r} is no readiness check",
            field="--ready",
            expected="tcp:PORT, console:TEXT or a URL that starts with http://",
        )
    return {**checks, key: int(rest) if key == "port" else text if key == "url" else rest}


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
