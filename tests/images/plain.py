"""Plain QEMU, started by hand, and the guest agent's protocol over its socket."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from hanok.model.image import Image
from hanok.model.vm import Mode
from hanok.proc import SystemRunner
from tests.unix import connect_to_new

_BOOT_LIMIT = 120


class PlainGuest:
    """A guest that booted: its agent answers."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    def send(self, command: str, **arguments: object) -> None:
        """Send a command without waiting for an answer."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._writer.write(json.dumps(request).encode() + b"\n")

    async def answer(self, timeout: float) -> dict[str, Any]:
        """Return the next answer; a serial port may first echo what is no answer."""
        async with asyncio.timeout(timeout):
            while line := await self._reader.readline():
                with contextlib.suppress(ValueError):
                    found = json.loads(line.strip(b"\xff\r\n"))
                    if isinstance(found, dict) and "execute" not in found:
                        return found
        raise ConnectionError("QEMU has ended")

    async def ask(self, command: str, **arguments: object) -> Any:
        """Send a command and return what it returns."""
        self.send(command, **arguments)
        answer = await self.answer(30)
        assert "return" in answer, answer
        return answer["return"]

    async def wait_ready(self) -> None:
        """Return when the agent answers to a number that was just sent."""
        number = 0
        async with asyncio.timeout(_BOOT_LIMIT):
            while True:
                number += 1
                self.send("guest-sync", id=number)
                with contextlib.suppress(TimeoutError):
                    while (await self.answer(0.5)).get("return") != number:
                        pass
                    return

    async def _wait_exit(self, pid: int) -> Any:
        while True:
            status = await self.ask("guest-exec-status", pid=pid)
            if status["exited"]:
                return status
            await asyncio.sleep(0.05)

    async def shell(self, script: str) -> str:
        """Run ``script`` in the guest and return what it prints; asserts that it succeeds."""
        started = await self.ask(
            "guest-exec", path="/bin/sh", arg=["-c", script], **{"capture-output": True}
        )
        async with asyncio.timeout(60):
            status = await self._wait_exit(started["pid"])
        output = base64.b64decode(status.get("out-data", "")).decode()
        assert status["exitcode"] == 0, (
            output + base64.b64decode(status.get("err-data", "")).decode()
        )
        return output


def _argv(
    image: Image, folder: Path, mode: Mode, disk: Path, seed: Path, sockets: Path, memory: int
) -> list[str]:
    kernel = next(kernel for kernel in image.kernels if mode in kernel.modes)
    common = [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-M", "q35", "-accel", "tcg,tb-size=64", "-m", f"{memory}M"),
        *("-kernel", str(folder / kernel.vmlinuz), "-initrd", str(folder / kernel.initrd)),
        *("-append", kernel.cmdline, "-serial", f"file:{sockets / 'console'}"),
        *("-drive", f"if=none,id=disk,file={disk},format=qcow2"),
        *("-drive", f"if=none,id=seed,file={seed},format=raw,readonly=on"),
        *("-netdev", "user,id=net,restrict=on"),
        *("-chardev", f"socket,id=agent,path={sockets / 'agent'},server=on,wait=off"),
        *("-qmp", f"unix:{sockets / 'qmp'},server=on,wait=off"),
    ]
    if mode is Mode.FULL:
        return [
            *common,
            *("-device", "ide-hd,drive=disk,bus=ide.0", "-device", "ide-cd,drive=seed,bus=ide.1"),
            *("-device", "e1000e,netdev=net,romfile=", "-device", "isa-serial,chardev=agent"),
        ]
    return [
        *common,
        *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-blk-pci,drive=seed"),
        *("-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
    ]


async def press_power_button(sockets: Path) -> None:
    """Ask the guest to end, as the ACPI power button does."""
    reader, writer = await asyncio.open_unix_connection(sockets / "qmp")
    await reader.readline()  # the greeting
    for command in ("qmp_capabilities", "system_powerdown"):
        writer.write(json.dumps({"execute": command}).encode() + b"\n")
        await writer.drain()
        await reader.readline()
    writer.close()


@contextlib.asynccontextmanager
async def boot(
    image: Image, folder: Path, mode: Mode, disk: Path, seed: Path, sockets: Path, memory: int
) -> AsyncIterator[tuple[PlainGuest, asyncio.Task[object]]]:
    """Boot ``image`` on ``disk``; yields the guest and the task that ends with QEMU."""
    argv = _argv(image, folder, mode, disk, seed, sockets, memory)
    for name in ("agent", "qmp"):
        (sockets / name).unlink(missing_ok=True)
    running: asyncio.Task[object] = asyncio.create_task(SystemRunner().run(argv, timeout=300))
    try:
        reader, writer = await connect_to_new(
            sockets / "agent", lambda: (running.exception() or "well") if running.done() else None
        )
        guest = PlainGuest(reader, writer)
        await guest.wait_ready()
        yield guest, running
        writer.close()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):  # its end is the test's matter
            await running
