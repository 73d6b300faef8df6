"""Freezing a machine and going on from what was frozen.

A machine's RAM is private to its process, and a clone needs it as a file, with the devices' state
of exactly that moment. So the machine is sent to a second process, the *loader*, by QEMU's
migration over a socket pair: the same machine, whose RAM is a memfd. Once all is there the source
goes on, and the loader, whose vCPUs never run, writes its devices' state without the RAM
(capability x-ignore-shared) and is ended. This works for sources of every kind, clones too.

A clone maps the memfd private, so that what it writes is its own, and reads the devices' state.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import os
import socket
from collections.abc import Awaitable, Callable

from hanok.errors import HypervisorError
from hanok.hypervisors.base import Frozen, Machine
from hanok.hypervisors.finish import to_its_end
from hanok.hypervisors.qemu.argv import ram_size
from hanok.hypervisors.qemu.process import QemuProcess
from hanok.model.vm import Mode

LOADER_KIND = "loader"
# What the descriptors are called in QEMU: it takes no numbers for what it sends to.
_SENDER = "hanok-freeze"
_STATE = "hanok-state"
# Bytes that are looked at together. RAM is whole MiB.
_PIECE = 16 * 1024

StartLoader = Callable[[int], Awaitable[QemuProcess]]
WhilePaused = Callable[[], Awaitable[None]]


def freeze_obstacle(machine: Machine) -> str | None:
    """Return why machines like this cannot be frozen; None when they can."""
    if machine.boot is not None:
        return "its disk has a boot loader of its own, and nothing that gives a clone its identity"
    if machine.mode is not Mode.PARA:
        return (
            f"it runs in mode {machine.mode}, whose only way into the guest is a slow serial "
            "line; clones need mode para"
        )
    if machine.screen:
        return "it has a screen, which would be frozen with it; clones need display none"
    if not machine.agent:
        return "it has no channel for a guest agent, which gives each clone its own identity"
    if machine.memory != ram_size(machine.memory):
        return "its memory is not a whole number of MiB"
    return None


async def freeze_process(
    source: QemuProcess, start_loader: StartLoader, state: int, while_paused: WhilePaused
) -> None:
    """Send ``source`` to a loader, which writes the devices to descriptor ``state``.

    ``start_loader`` gets the descriptor that the loader inherits and reads the source from.
    Raises HypervisorError; then and when cancelled the source goes on and the loader is gone.
    """
    async with source.freezing, contextlib.AsyncExitStack() as undo:
        sender, receiver = socket.socketpair()
        undo.callback(sender.close)
        undo.callback(receiver.close)
        number = receiver.fileno()
        loader = await start_loader(number)
        undo.push_async_callback(_end, loader)
        # The ends are theirs alone: then each sees when the other is gone.
        receiver.close()
        await loader.migration.prepare(devices_only=False)
        await loader.migration.take(f"fd:{number}")
        await _open_agent_port(source, undo)
        await source.migration.prepare(devices_only=False)
        await source.give(_SENDER, sender.fileno())
        sender.close()
        await _send(source, loader, while_paused)
        await loader.or_its_end(loader.migration.completed())
        await loader.migration.prepare(devices_only=True)
        await loader.give(_STATE, state)
        await loader.or_its_end(loader.migration.send(f"fd:{_STATE}"))


async def _end(loader: QemuProcess) -> None:
    await to_its_end(loader.kill())


async def _open_agent_port(source: QemuProcess, undo: contextlib.AsyncExitStack) -> None:
    """Let the agent's port be open when it is frozen, as it is for a clone.

    A difference between the two is told to the guest, whose agent then takes a pause.
    """
    if not await source.has_agent_client():
        stream = await source.open_agent()
        undo.callback(stream.writer.close)


async def _send(source: QemuProcess, loader: QemuProcess, while_paused: WhilePaused) -> None:
    """Send the source while its vCPUs are held."""
    async with source.held(), contextlib.AsyncExitStack() as undo:
        beside = asyncio.ensure_future(while_paused())
        undo.push_async_callback(_cancel, beside)
        try:
            await source.or_its_end(source.migration.send(f"fd:{_SENDER}"))
        except HypervisorError:
            # What the loader could not take is the cause; the source only saw it go.
            await loader.check_alive()
            raise
        await beside


async def _cancel(task: asyncio.Future[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def load_frozen(process: QemuProcess, frozen: Frozen) -> None:
    """Load the devices into a process that waits for them; it is paused then.

    Raises HypervisorError, with QEMU's words when it could not load them.
    """
    await asyncio.gather(process.keep_channels(), process.migration.prepare(devices_only=True))
    await process.migration.take(f"fd:{frozen.state}")
    await process.or_its_end(process.migration.completed())


def drop_zeros(memory: int) -> None:
    """Free what is all zero in a memfd of ours (blocks): to load a page there is to allocate it.

    Raises OSError.
    """
    zeros = bytes(_PIECE)
    with mmap.mmap(memory, os.fstat(memory).st_size) as ram:
        start: int | None = None
        for offset in range(0, len(ram) + 1, _PIECE):
            if ram[offset : offset + _PIECE] == zeros:
                start = offset if start is None else start
            elif start is not None:
                ram.madvise(mmap.MADV_REMOVE, start, offset - start)
                start = None
