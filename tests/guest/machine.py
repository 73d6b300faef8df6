"""A guest of plain QEMU, with the channels that Hanok gives its guests, for the tests here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hanok.guest.agent import AgentConnection
from hanok.guest.console import ConsoleHub
from hanok.guest.identity import Identity, give_identity
from hanok.model.image import Image, Kernel
from hanok.model.vm import Mode
from tests.unix import connect_to_new

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]

IDENTITY_PORT = "-device virtserialport,chardev=identity,name=hanok.identity.0"
_DEVICES = {
    Mode.PARA: [
        "-device virtio-blk-pci,drive=root",
        "-device virtio-net-pci,romfile=",
        "-device virtio-serial-pci",
        "-device virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
        IDENTITY_PORT,
    ],
    Mode.FULL: [
        "-device ide-hd,drive=root,bus=ide.0",
        "-device e1000e,romfile=",
        "-device isa-serial,chardev=agent,index=1",
    ],
}


@dataclass
class Guest:
    """A running guest: its agent's connection, its console, and QEMU itself."""

    agent: AgentConnection
    console: ConsoleHub
    process: asyncio.subprocess.Process
    agent_socket: Path
    identity: Stream

    async def become(self, identity: Identity, limit: float = 30) -> None:
        """Give the guest another identity."""
        await give_identity(*self.identity, identity, timeout=limit)

    def reconnect(self, agent: AgentConnection) -> None:
        """Use another connection to the agent from now on."""
        self.agent = agent


def _kernel_for(image: Image, mode: Mode) -> Kernel:
    return next(kernel for kernel in image.kernels if mode in kernel.modes)


def _seed_words(mode: Mode, seed: Path) -> list[str]:
    device = "ide-hd,bus=ide.1" if mode is Mode.FULL else "virtio-blk-pci"
    drive = f"file={seed},format=raw,if=none,id=seed,snapshot=on"
    return [f"-drive {drive}", f"-device {device},drive=seed"]


def _devices(mode: Mode, network: str | None) -> list[str]:
    if network is None:
        return _DEVICES[mode]
    wired = [word.replace("romfile=", "romfile=,netdev=net") for word in _DEVICES[mode]]
    return [f"-netdev user,id=net,{network}", *wired]


def _argv(
    image: Image, folder: Path, mode: Mode, work: Path, memory: int, network: str | None
) -> list[str]:
    """Return QEMU's arguments; the disks are never written, the NIC leads nowhere outside."""
    kernel = _kernel_for(image, mode)
    drive = f"file={folder / image.disk},format={image.disk_format},if=none,id=root,snapshot=on"
    words = [
        "qemu-system-x86_64 -M q35 -accel tcg,tb-size=64 -nodefaults -display none -nic none",
        f"-m {memory} -drive {drive}",
        f"-kernel {folder / kernel.vmlinuz} -initrd {folder / kernel.initrd}",
        f"-chardev socket,id=agent,path={work / 'agent'},server=on,wait=off",
        f"-chardev socket,id=identity,path={work / 'identity'},server=on,wait=off",
        f"-chardev socket,id=console,path={work / 'console'},server=on,wait=on",
        "-device isa-serial,chardev=console,index=0",
        *_devices(mode, network),
        *(_seed_words(mode, work / "seed") if (work / "seed").exists() else []),
    ]
    return [*" ".join(words).split(), "-append", kernel.cmdline]


@contextlib.asynccontextmanager
async def boot(
    image: Image,
    folder: Path,
    mode: Mode,
    work: Path,
    *,
    seed: bytes | None = None,
    memory: int = 256,
    network: str | None = None,
    more: Sequence[str] = (),
) -> AsyncIterator[Guest]:
    """Boot ``image``, with a seed if there is one, and yield the guest; QEMU has ended afterwards.

    ``work`` is an empty folder with a short path, for sockets, the seed and the console's log.
    ``network``: options of QEMU's own network, which serves DHCP; QEMU is then in a network
    namespace of its own, so that it leads nowhere (needs root). None: nothing is at the NIC.
    ``more`` are further arguments of QEMU.
    """
    if seed is not None:
        (work / "seed").write_bytes(seed)
    async with contextlib.AsyncExitStack() as stack:
        process = await asyncio.create_subprocess_exec(
            *([] if network is None else ["unshare", "--net"]),
            *_argv(image, folder, mode, work, memory, network),
            *more,
            cwd=work,
        )
        stack.push_async_callback(_end, process)
        reader, writer = await _open(work / "console", process)
        hub = ConsoleHub(reader, writer, work / "console.log")
        await hub.start()
        stack.push_async_callback(hub.close)
        agent = AgentConnection(*await _open(work / "agent", process))
        identity = await _open(work / "identity", process)
        stack.callback(identity[1].close)
        guest = Guest(agent, hub, process, work / "agent", identity)
        stack.push_async_callback(lambda: guest.agent.close())
        yield guest


async def _open(
    path: Path, process: asyncio.subprocess.Process
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await connect_to_new(path, lambda: process.returncode)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()
