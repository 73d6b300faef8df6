"""The QEMU Machine Protocol: one bounded, time-limited, self-mending connection a machine.

Built on the QEMU project's own library. What it lacks is added: a limit for every command, events
that are handed on instead of kept for ever, and a check that the process which listens on the
socket is the one that is meant.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from qemu.qmp import (
    ConnectError,
    EventListener,
    ExecInterruptedError,
    ExecuteError,
    Message,
    QMPClient,
    QMPError,
    Runstate,
    StateError,
)

from hanok.errors import HypervisorError

EventHandler = Callable[[str, Mapping[str, object]], None]

# Answers that Hanok asks for are a few KiB; a hostile emulator must not fill the daemon's memory.
_LONGEST_MESSAGE = 1024 * 1024
EXECUTE_LIMIT = 10.0
_PEER = struct.Struct("3i")


async def connect_to(path: Path, pid: int) -> socket.socket:
    """Return a socket connected to ``path``, on which process ``pid`` listens.

    The folder belongs to the emulator's account, so that the name alone proves nothing: the
    kernel says who listens (SO_PEERCRED). Raises OSError.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connection, str(path))
        peer = _PEER.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
        )
        if peer[0] != pid:  # 0: not connected, since too many others wait
            raise ConnectionRefusedError(f"{path.name} is not answered by process {pid}")
    except BaseException:
        connection.close()
        raise
    return connection


class _Forwarder(EventListener):
    """Hands events on and keeps none: the library's own listener keeps all there ever were."""

    def __init__(self, handler: EventHandler) -> None:
        super().__init__()
        self._handler = handler

    async def put(self, event: Message) -> None:
        data = event.get("data")
        self._handler(str(event.get("event")), data if isinstance(data, Mapping) else {})


class QmpConnection:
    """The connection to the QMP socket of process ``pid``; mends itself when it is lost.

    ``on_event`` gets each event's name and data, on the event loop, and must not block.
    """

    def __init__(self, path: Path, pid: int, on_event: EventHandler) -> None:
        self._path = path
        self._pid = pid
        self._on_event = on_event
        self._client: QMPClient | None = None
        self._connecting = asyncio.Lock()

    async def connect(self) -> None:
        """Connect once. Raises OSError, QMPError; the caller sets the time limit."""
        async with self._connecting:
            if self._client is not None and self._client.runstate is Runstate.RUNNING:
                return
            await self.close()
            client = QMPClient(readbuflen=_LONGEST_MESSAGE)
            client.events.event_filter = _refuse
            client.register_listener(_Forwarder(self._on_event))
            connection = await connect_to(self._path, self._pid)
            try:
                await client.connect(connection)
            except BaseException:
                connection.close()
                raise
            self._client = client

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        timeout: float = EXECUTE_LIMIT,
    ) -> object:
        """Return what ``command`` answers, asked again once if the connection breaks meanwhile.

        So a command must be one that may be repeated. Raises HypervisorError when QEMU refuses it
        or does not answer within ``timeout`` seconds.
        """
        with _explained(command, timeout):
            async with asyncio.timeout(timeout):
                try:
                    return await self._execute_once(command, arguments)
                except (ExecInterruptedError, StateError, ConnectError, OSError):
                    return await self._execute_once(command, arguments)

    async def give(self, name: str, descriptor: int) -> None:
        """Hand a copy of ``descriptor`` to QEMU, which knows it as ``name`` then.

        Raises HypervisorError.
        """
        await self.execute_with(descriptor, "getfd", {"fdname": name})

    async def execute_with(
        self, descriptor: int, command: str, arguments: Mapping[str, object] | None = None
    ) -> object:
        """Return what ``command`` answers, which takes a copy of ``descriptor``.

        Asked only once: a descriptor that was lost with its connection is not sent again.
        Raises HypervisorError.
        """
        with _explained(command, EXECUTE_LIMIT):
            async with asyncio.timeout(EXECUTE_LIMIT):
                await self.connect()
                if self._client is not None:
                    self._client.send_fd_scm(descriptor)
                return await self._execute_once(command, arguments)

    async def _execute_once(self, command: str, arguments: Mapping[str, object] | None) -> object:
        await self.connect()
        client = self._client
        if client is None:
            raise HypervisorError(f"the connection was closed before {command}")
        return await client.execute(command, arguments)

    async def drain(self, timeout: float = 1.0) -> None:
        """Wait until all that a process which has ended still said has been handed on."""
        client = self._client
        if client is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while client.runstate is Runstate.RUNNING:
                    await client.runstate_changed()

    async def close(self) -> None:
        """Let go of the socket; QEMU then listens for the next connection."""
        client, self._client = self._client, None
        if client is not None:
            # Why the connection ended is told by execute() or by the process's end.
            with contextlib.suppress(QMPError, OSError, EOFError):
                await client.disconnect()


@contextlib.contextmanager
def _explained(command: str, timeout: float) -> Iterator[None]:
    """Turn what can go wrong with a command into HypervisorError."""
    try:
        yield
    except ExecuteError as error:
        raise HypervisorError(f"QEMU refused {command}: {error}") from error
    except TimeoutError:
        raise HypervisorError(
            f"QEMU did not answer {command} within {timeout:g} s",
            hint="it hangs, or another program holds its QMP socket",
        ) from None
    except (QMPError, OSError, EOFError) as error:
        raise HypervisorError(f"QEMU cannot be reached for {command}: {error}") from error


def _refuse(_event: Message) -> bool:
    return False
