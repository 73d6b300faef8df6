"""The screen of a machine: its picture, and viewers who come by VNC.

The VNC server of a machine listens only for the moment in which the daemon connects to it, on a
unix socket in the machine's folder; whoever looks on does so through the daemon. It wants a
password, which is told by QMP and never stands on a command line. Nobody gets in before there is
one (QEMU, ui/vnc.c: "password is not set"), or after it has expired. An empty one would be one:
QEMU would let in whoever types nothing.

Sources: QEMU, qapi/ui.json (screendump, set_password, expire_password, display-update); RFC 6143.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hanok.errors import Conflict, HypervisorError, InvalidInput, Unsupported
from hanok.hypervisors.base import Machine
from hanok.hypervisors.finish import to_its_end
from hanok.hypervisors.optional import Viewer
from hanok.hypervisors.qemu.argv import SCREEN_SOCKET
from hanok.units import MIB, format_size

if TYPE_CHECKING:
    from hanok.hypervisors.qemu.process import QemuProcess

PASSWORD_LENGTH = 8  # what the protocol's authentication looks at
_PICTURE_LIMIT = 60.0
# The card has 16 MiB: a picture is never larger, whatever an emulator that was taken over says.
_LARGEST_PICTURE = 32 * MIB
_PNG, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
_GREETING = 12
_GREETING_LIMIT = 10.0


class Screen:
    """The screen of the machine that ``process`` runs."""

    def __init__(self, process: QemuProcess, machine: Machine) -> None:
        self._process = process
        self._name = machine.name
        self._has_card = machine.screen
        self._socket = machine.folder / SCREEN_SOCKET
        self._one_at_a_time = asyncio.Lock()

    async def picture(self) -> bytes:
        """Return what it shows, a PNG.

        QEMU writes to a file without a name that it is handed: no path that it could have put a
        link at, and nothing is left. Raises Unsupported, Conflict and HypervisorError.
        """
        self._check_card()
        file = os.memfd_create("screen", os.MFD_CLOEXEC)
        try:
            async with self._one_at_a_time:
                await self._dump(file)
            return self._read(file)
        finally:
            os.close(file)

    async def _dump(self, file: int) -> None:
        # QEMU looks for a descriptor that is open for writing alone (monitor/fds.c).
        writing = os.open(f"/proc/self/fd/{file}", os.O_WRONLY | os.O_CLOEXEC)
        try:
            given = await self._process.execute_with(writing, "add-fd", {"opaque": "screen"})
        finally:
            os.close(writing)
        number = given.get("fdset-id") if isinstance(given, Mapping) else None
        where = {"filename": f"/dev/fdset/{number}", "format": "png"}
        try:
            await self._process.execute("screendump", where, _PICTURE_LIMIT)
        except HypervisorError as error:
            raise self._explain(error) from error
        finally:
            await to_its_end(self._process.execute("remove-fd", {"fdset-id": number}))

    def _explain(self, error: HypervisorError) -> HypervisorError | Conflict | Unsupported:
        if "no console" in error.message:
            return Conflict(
                f"{self._name} was started without a graphics card, by an older Hanok",
                hint=f"'hanok restart {self._name}' gives it one",
            )
        if "'format'" in error.message or "PNG" in error.message:
            return Unsupported(
                f"the QEMU of {self._name} writes no PNG",
                expected="QEMU 7.1 or newer, built with PNG",
                hint="install a newer QEMU and restart the VM",
            )
        return error

    def _read(self, file: int) -> bytes:
        size = os.fstat(file).st_size
        if size > _LARGEST_PICTURE:
            raise HypervisorError(f"the picture of {self._name} has {format_size(size)}")
        data = os.pread(file, size, 0)
        if not data.startswith(_PNG) or not data.endswith(_PNG_END):
            raise HypervisorError(f"what QEMU wrote as the picture of {self._name} is no PNG")
        return data

    async def admit(self, password: str, seconds: int) -> None:
        """Let in those who know ``password`` and come within ``seconds`` from now on.

        Earlier passwords do not count any more; who is in stays. Raises HypervisorError.
        """
        if len(password) != PASSWORD_LENGTH:
            raise InvalidInput("the password", expected=f"{PASSWORD_LENGTH} characters")
        self._check_card()
        async with self._one_at_a_time:
            await self._check_guarded()
            # First when it ends: between the two commands the old end would count for it.
            until = {"protocol": "vnc", "time": f"+{seconds}"}
            await self._process.execute("expire_password", until)
            await self._process.execute("set_password", {"protocol": "vnc", "password": password})

    async def _check_guarded(self) -> None:
        found = await self._process.execute("query-vnc-servers")
        servers = found if isinstance(found, list) else []
        if not servers:
            raise Unsupported(
                f"the QEMU of {self._name} was started without VNC",
                expected="a QEMU that is built with it",
                hint=f"'hanok screenshot {self._name} out.png' works without; a VM that an older"
                " Hanok started has VNC after a restart",
            )
        if any(server.get("auth") != "vnc" for server in servers):
            raise HypervisorError(f"the VNC server of {self._name} would ask for no password")

    async def open(self) -> Viewer:
        """Connect to it. Raises HypervisorError."""
        self._check_card()
        async with self._one_at_a_time:
            address = {"type": "unix", "path": str(self._socket)}
            try:
                await self._listen([address])
                return await self._connect()
            finally:
                await to_its_end(self._listen([]))

    async def _listen(self, addresses: list[dict[str, str]]) -> None:
        # Without addresses it stops to listen, and removes its socket.
        arguments = {"type": "vnc", "addresses": addresses}
        try:
            await self._process.execute("display-update", arguments)
        except HypervisorError as error:
            if "has not been found" in error.message:
                raise Unsupported(
                    f"the QEMU of {self._name} cannot open VNC while it runs",
                    expected="QEMU 7.1 or newer",
                    hint="install a newer QEMU and restart the VM",
                ) from error
            raise

    async def _connect(self) -> Viewer:
        """Connect, and wait until it has greeted: then it has taken the connection."""
        stream = await self._process.open_stream(SCREEN_SOCKET)
        try:
            async with asyncio.timeout(_GREETING_LIMIT):
                return Viewer(await stream.reader.readexactly(_GREETING), stream)
        except (TimeoutError, OSError, EOFError) as error:
            stream.writer.close()
            raise HypervisorError(f"the screen of {self._name} does not answer") from error
        except BaseException:
            stream.writer.close()
            raise

    def _check_card(self) -> None:
        if not self._has_card:
            raise Conflict(
                f"{self._name} has no screen",
                hint="a VM has one with '--display vga', and in mode full unless told otherwise",
            )
