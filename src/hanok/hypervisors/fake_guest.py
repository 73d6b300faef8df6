"""The guest of the fake hypervisor: a console that echoes, and an agent that knows a few commands.

The agent speaks the protocol of the QEMU guest agent (QEMU, docs/interop/qemu-ga-ref). Nothing
that it is told to run runs on the host: it knows ``echo``, ``true``, ``false``, ``cat``, ``sleep``,
and of ``sh`` the scripts that Hanok itself sends and simple lines of those commands. It has the
helper that takes an identity (guest/identity.py says what it is told, and how it answers).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import shlex
import struct
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hanok.model.vm import Mode

_KERNEL = "0.0.0-fake"
_HELPER = {"/run/hanok/ready": b"identity 2 fake\n"}
# Where things are in a message that gives an identity (guest/identity.py): behind what is before
# them all lengths are fixed.
_HEAD, _TIME = struct.Struct("<4sI"), b"HKT2"
_NONCE, _MACHINE_ID, _NAME_LENGTH = slice(8, 40), slice(164, 196), 264

_EVIDENCE = {
    Mode.FULL: "disk ahci\nnic e1000e\n",
    Mode.PARA: "virtio virtio0 virtio_blk\nvirtio virtio1 virtio_net\n"
    "disk virtio_blk\nnic virtio_net\n",
    Mode.HYBRID: "xenbus vbd-51712 vbd\nxenbus vif-0 vif\ndisk vbd\nnic vif\n",
}


class AgentError(Exception):
    """What the agent answers to a command that it cannot do: ``kind`` is QMP's error class."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


@dataclass(frozen=True)
class Ran:
    """What a command gave, and when it ends (by time.monotonic)."""

    status: int
    out: bytes = b""
    err: bytes = b""
    ends: float = 0.0


@dataclass
class GuestFile:
    """An open file: where it stands in the content of ``path``."""

    path: str
    position: int = 0


@dataclass
class FakeGuest:
    """One guest; ``shut_down`` is called when it powers itself off, ``die`` when it takes its
    machine with it: by the commands ``poweroff`` and ``die``, which real guests have and have not.

    ``refusal`` says why it does not take an identity, None when it does.
    """

    name: str
    mode: Mode
    shut_down: Callable[[], Awaitable[None]]
    die: Callable[[], Awaitable[None]]
    files: dict[str, bytes] = field(default_factory=_HELPER.copy)
    refusal: Callable[[], str | None] = lambda: None
    _open: dict[int, GuestFile] = field(default_factory=dict)
    _ran: dict[int, Ran] = field(default_factory=dict)
    _handles: int = 1000
    _off: bool = False

    async def serve_console(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Greet and echo until the other side hangs up."""
        writer.write(f"\r\n{self.name}: a guest of the fake hypervisor\r\n# ".encode())
        while data := await reader.read(4096):
            writer.write(data.replace(b"\r", b"\r\n# "))
            await writer.drain()

    async def serve_agent(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests until the other side hangs up."""
        while not self._off and (line := await reader.readline()):
            answer = await self._answer(line)
            if answer is not None:
                writer.write(answer)
                await writer.drain()

    async def serve_identity(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Become who the messages say, until the other side hangs up."""
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                head = await reader.readexactly(_HEAD.size)
                magic, length = _HEAD.unpack(head)
                message = head + await reader.readexactly(length - _HEAD.size)
                is_time = magic == _TIME
                writer.write(_agreed(message) if is_time else self._become(message))
                await writer.drain()

    def _become(self, message: bytes) -> bytes:
        why = self.refusal()
        if why is not None:
            return b"failed " + message[_NONCE] + f" {why}\n".encode()
        start = _NAME_LENGTH + 2
        length = int.from_bytes(message[_NAME_LENGTH:start], "big")
        self.name = message[start : start + length].decode()
        self.files["/etc/hostname"] = f"{self.name}\n".encode()
        self.files["/etc/machine-id"] = message[_MACHINE_ID] + b"\n"
        return _agreed(message)

    async def _answer(self, line: bytes) -> bytes | None:
        # 0xFF ends whatever had begun to be read: what stands before it is dropped.
        delimited = b"\xff" in line
        text = line.rpartition(b"\xff")[2].strip()
        if not text:
            return None
        try:
            request = json.loads(text)
            command, arguments = str(request["execute"]), request.get("arguments", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return _encode({"error": {"class": "GenericError", "desc": "JSON parse error"}})
        extra = {"id": request["id"]} if "id" in request else {}
        try:
            result = await self._do(command, arguments)
        except AgentError as error:
            return _encode({"error": {"class": error.kind, "desc": str(error)}, **extra})
        if command == "guest-shutdown":
            return None
        sentinel = b"\xff" if delimited and command == "guest-sync-delimited" else b""
        return sentinel + _encode({"return": result, **extra})

    async def _do(self, command: str, arguments: Mapping[str, Any]) -> Any:
        method = _COMMANDS.get(command)
        if method is None:
            raise AgentError(f"The command {command} has not been found", "CommandNotFound")
        try:
            result = method(self, arguments)
            return await result if isinstance(result, Awaitable) else result
        except (KeyError, TypeError, ValueError, binascii.Error) as error:
            raise AgentError(f"Invalid parameter: {error}") from error

    # --- commands ---------------------------------------------------------------------------

    def _sync(self, arguments: Mapping[str, Any]) -> int:
        return int(arguments["id"])

    def _nothing(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {}

    def _info(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        commands = [
            {"name": name, "enabled": True, "success-response": name != "guest-shutdown"}
            for name in _COMMANDS
        ]
        return {"version": "fake", "supported_commands": commands}

    def _os_info(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"id": "fake", "name": "Fake", "kernel-release": _KERNEL, "machine": "x86_64"}

    def _host_name(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {"host-name": self.name}

    async def _exec(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        argv = [str(arguments["path"]), *map(str, arguments.get("arg", []))]
        if argv[0] in ("poweroff", "die"):
            await (self.shut_down() if argv[0] == "poweroff" else self.die())
        given = base64.b64decode(arguments.get("input-data", ""))
        self._handles += 1
        self._ran[self._handles] = self._run(argv, given)
        return {"pid": self._handles}

    def _exec_status(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        ran = self._ran.get(int(arguments["pid"]))
        if ran is None:
            raise AgentError(f"PID {arguments['pid']} does not exist")
        if ran.ends > time.monotonic():
            return {"exited": False}
        del self._ran[int(arguments["pid"])]
        answer: dict[str, Any] = {"exited": True, "exitcode": ran.status}
        for key, data in (("out-data", ran.out), ("err-data", ran.err)):
            if data:
                answer[key] = base64.b64encode(data).decode()
        return answer

    async def _shutdown(self, arguments: Mapping[str, Any]) -> None:
        self._off = True
        await self.shut_down()

    def _file_open(self, arguments: Mapping[str, Any]) -> int:
        path, how = str(arguments["path"]), str(arguments.get("mode", "r"))
        if how.startswith("r") and path not in self.files:
            raise AgentError(f"failed to open file '{path}': No such file or directory")
        if how.startswith("w") or path not in self.files:
            self.files[path] = b""
        self._handles += 1
        position = len(self.files[path]) if how.startswith("a") else 0
        self._open[self._handles] = GuestFile(path, position)
        return self._handles

    def _file(self, arguments: Mapping[str, Any]) -> GuestFile:
        found = self._open.get(int(arguments["handle"]))
        if found is None:
            raise AgentError(f"handle '{arguments['handle']}' has not been found")
        return found

    def _file_read(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        file = self._file(arguments)
        count = int(arguments.get("count", 4096))
        content = self.files.get(file.path, b"")
        piece = content[file.position : file.position + count]
        file.position += len(piece)
        return {
            "count": len(piece),
            "buf-b64": base64.b64encode(piece).decode(),
            "eof": len(piece) < count,
        }

    def _file_write(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        file = self._file(arguments)
        data = base64.b64decode(arguments["buf-b64"])
        content = self.files.get(file.path, b"")
        self.files[file.path] = content[: file.position] + data
        file.position += len(data)
        return {"count": len(data), "eof": False}

    def _file_close(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        self._file(arguments)
        del self._open[int(arguments["handle"])]
        return {}

    # --- programs ---------------------------------------------------------------------------

    def _run(self, argv: Sequence[str], given: bytes) -> Ran:
        program, words = argv[0].rpartition("/")[2], argv[1:]
        match program:
            case "true":
                return Ran(0)
            case "false":
                return Ran(1)
            case "echo":
                return Ran(0, (" ".join(words) + "\n").encode())
            case "hostname":
                return Ran(0, f"{self.name}\n".encode())
            case "cat":
                return self._cat(words, given)
            case "rm":
                for word in words:
                    self.files.pop(word, None)
                return Ran(0)
            case "sleep" if words:
                return Ran(0, ends=time.monotonic() + float(words[0]))
            case "sh" if len(words) >= 2 and words[0] == "-c":
                return self._script(words[1], words[3:], given)
        # As the real agent: g_spawn's words for a program that is not there.
        raise AgentError(
            f'Guest agent command failed, error was "Failed to execute child process '
            f'“{argv[0]}” (No such file or directory)"'
        )

    def _cat(self, paths: Sequence[str], given: bytes) -> Ran:
        out, err = b"", b""
        for path in paths:
            if path in self.files:
                out += self.files[path]
            else:
                err += f"cat: {path}: No such file or directory\n".encode()
        return Ran(1 if err else 0, out if paths else given, err)

    def _script(self, script: str, arguments: Sequence[str], given: bytes) -> Ran:
        if "/sys/bus/virtio" in script:
            return Ran(0, (_EVIDENCE[self.mode] + f"kernel {_KERNEL}\nclocksource tsc\n").encode())
        if "mktemp" in script and arguments:  # guest/agent.py: a file is about to be written
            scratch = f"{arguments[0].rpartition('/')[0]}/.hanok-{self._handles}"
            self.files[scratch] = b""
            return Ran(0, f"{scratch}\n{arguments[0]}\n".encode())
        if "mv -f" in script and len(arguments) >= 2:  # guest/agent.py: it has been written
            self.files[arguments[1]] = self.files.pop(arguments[0])
            return Ran(0)
        return self._line(script, given)

    def _line(self, script: str, given: bytes) -> Ran:
        words = shlex.split(script)
        if not words:
            return Ran(0)
        if words[0] == "exit":
            return Ran(int(words[1]) if len(words) > 1 else 0)
        try:
            return self._run(words, given)
        except AgentError:
            return Ran(127, err=f"sh: {words[0]}: not found\n".encode())


def _agreed(message: bytes) -> bytes:
    return b"ok " + message[_NONCE] + b"\n"


def _encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"


_Command = Callable[[FakeGuest, Mapping[str, Any]], Any]
_COMMANDS: dict[str, _Command] = {
    "guest-sync-delimited": FakeGuest._sync,
    "guest-sync": FakeGuest._sync,
    "guest-ping": FakeGuest._nothing,
    "guest-info": FakeGuest._info,
    "guest-get-osinfo": FakeGuest._os_info,
    "guest-get-host-name": FakeGuest._host_name,
    "guest-set-time": FakeGuest._nothing,
    "guest-exec": FakeGuest._exec,
    "guest-exec-status": FakeGuest._exec_status,
    "guest-shutdown": FakeGuest._shutdown,
    "guest-file-open": FakeGuest._file_open,
    "guest-file-read": FakeGuest._file_read,
    "guest-file-write": FakeGuest._file_write,
    "guest-file-flush": FakeGuest._nothing,
    "guest-file-close": FakeGuest._file_close,
}
