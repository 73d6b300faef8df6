"""What the installed QEMU is and offers, asked of the program itself."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass

from hanok.errors import HostError
from hanok.hypervisors.qemu.arch import Architecture
from hanok.hypervisors.qemu.argv import SANDBOX, VNC
from hanok.proc import Runner, require_program

_LIMIT = 20.0
_VERSION = re.compile(r"version (?P<version>\d+\.\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class QemuBuild:
    """An installed QEMU: ``version`` is 7.2.22, ``text`` its whole first line, ``digest`` the
    program's sha256."""

    version: str
    text: str
    machine_type: str
    sandbox: bool
    digest: str = ""
    vnc: bool = False


async def read_build(runner: Runner, emulator: str, architecture: Architecture) -> QemuBuild:
    """Return what the program ``emulator`` is.

    Raises HostError when it is missing or has no versioned machine type of this architecture.
    """
    program = require_program(emulator, architecture.package)
    version, machines, sandbox, vnc, digest = await asyncio.gather(
        runner.run([program, "--version"], timeout=_LIMIT),
        runner.run([program, "-machine", "help"], timeout=_LIMIT),
        # Options are read in order: an unknown -sandbox ends QEMU before --version does.
        runner.run([program, "-sandbox", SANDBOX, "--version"], timeout=_LIMIT, check=False),
        runner.run([program, "-vnc", VNC, "--version"], timeout=_LIMIT, check=False),
        asyncio.to_thread(_digest, program),
    )
    text = version.stdout.decode("utf-8", "replace").partition("\n")[0].strip()
    match = _VERSION.search(text)
    return QemuBuild(
        version=match["version"] if match is not None else text,
        text=text,
        machine_type=newest_machine_type(
            machines.stdout.decode("utf-8", "replace"), architecture.machine_prefix
        ),
        sandbox=sandbox.returncode == 0,
        digest=digest,
        vnc=vnc.returncode == 0,
    )


def _digest(program: str) -> str:
    try:
        with open(program, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise HostError(f"{program} cannot be read: {error.strerror}") from error


def newest_machine_type(listing: str, prefix: str) -> str:
    """Return the newest versioned machine type in the output of ``-machine help``.

    Raises HostError when there is none. An unversioned type would change with the next QEMU.
    """
    name = re.compile(rf"^{re.escape(prefix)}(\d+(?:\.\d+)+)$")
    found: list[tuple[tuple[int, ...], str]] = []
    for line in listing.splitlines():
        words = line.split()
        match = name.match(words[0]) if words else None
        if match is not None:
            found.append((tuple(int(part) for part in match[1].split(".")), words[0]))
    if not found:
        raise HostError(
            f"this QEMU offers no machine of type {prefix}*",
            hint="install a QEMU of version 6 or newer",
        )
    return max(found)[1]
