"""Client of the QEMU guest agent: commands, files, clock and power of a guest.

Source: QEMU, docs/interop/qemu-ga-ref. Answers stay below 500 KB, except what a command prints:
more was seen to get lost on some channels (Xen's).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenacity import AsyncRetrying, retry_if_result, wait_exponential

from hanok.errors import GuestError, InvalidInput, TimedOut
from hanok.guest.channel import AgentChannel, expect
from hanok.guest.text import printable
from hanok.guest.wire import LINE_LIMIT, OUTPUT_LIMIT
from hanok.units import KIB, MIB

# Payload of one file request. An emulated serial port was seen to take 36 KB a second: a piece
# has to fit the time limit of a call there too, on a busy host.
PIECE = 64 * KIB
INPUT_LIMIT = 4 * MIB
_SILENCE = 30.0
_CLEAN_UP = 5.0
# Seconds, at most, before it is asked for the first time whether a program has ended.
_FIRST_LOOK = 0.1
_FILE_LIMIT = 256 * MIB
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_READ_LATER = "a background process that keeps the output open counts: redirect its output"

# Ends a process and all that it started: stopped first, so that it starts no more.
_KILL_TREE = """
end() {
  kill -STOP "$1"
  for child in $(cat /proc/"$1"/task/*/children); do end "$child"; done
  kill -KILL "$1"
}
end "$1" 2>/dev/null
"""

# New files of the agent are readable by all until their mode is set. So the data goes into a
# file of mode 0600 beside the target, which then takes the target's name, mode and owner.
_BEGIN_WRITE = """
set -e
target=$(readlink -f -- "$1") || { echo "no such folder" >&2; exit 1; }
if [ -d "$target" ]; then echo "it is a directory" >&2; exit 1; fi
if [ -e "$target" ] && [ ! -f "$target" ]; then echo "it is not a regular file" >&2; exit 1; fi
mktemp "${target%/*}/.hanok-XXXXXX"
printf '%s\\n' "$target"
"""
_END_WRITE = """
set -e
if [ -n "$3" ]; then mode=$3; else mode=644; fi
if [ -e "$2" ]; then
  chown "$(stat -c %u:%g "$2")" "$1"
  if [ -z "$3" ]; then mode=$(stat -c %a "$2"); fi
fi
chmod "$mode" "$1"
mv -f "$1" "$2"
"""


@dataclass(frozen=True)
class ExecResult:
    """What a command in a guest gave: status (128 + n after signal n) and both streams.

    The agent keeps 16 MiB of each stream; ``truncated`` says that there was more.
    """

    exit_status: int
    stdout: bytes
    stderr: bytes
    truncated: bool = False


class AgentConnection(AgentChannel):
    """A guest's agent: see AgentChannel for how it stays in step."""

    async def exec(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60,
        env: Mapping[str, str] | None = None,
        much: bool = False,
    ) -> ExecResult:
        """Run a command in the guest to its end; no shell takes part.

        With ``env``, these variables and a default PATH are its whole environment, else it has the
        agent's. It may print all that an agent keeps if a user wants ``much``, else about 1.5 MiB:
        nothing that we run for ourselves prints as much.

        Raises InvalidInput (no command, a NUL, too much input), GuestError (it cannot be started),
        AgentRefused, AgentUnavailable, and TimedOut: the command and what it started are then
        killed as far as the guest lets us, as they are when the caller is cancelled.
        """
        arguments = _exec_arguments(argv, input, env)
        pid: int | None = None
        now = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(timeout):
                began = now()
                answer = await self._request(
                    "guest-exec", arguments, timeout=timeout + 1, idle=_SILENCE
                )
                pid = expect(int, expect(dict, answer, "guest-exec").get("pid"), "guest-exec")
                longest = OUTPUT_LIMIT if much else LINE_LIMIT
                # A guest that was slow to start a program is so to run it: each question costs it.
                await asyncio.sleep(min((now() - began) / 2, _FIRST_LOOK))
                return _exec_result(await self._wait_exited(pid, timeout + 1, longest))
        except (TimeoutError, asyncio.CancelledError) as error:
            if pid is not None:
                await self._kill_tree(pid)
            if isinstance(error, asyncio.CancelledError):
                raise
            raise TimedOut(
                f"{printable(argv[0], 80)} did not end in the guest within {timeout:g} s",
                hint=f"give it more time, or start it in the background ({_READ_LATER})",
            ) from None

    async def read_file(self, path: str, *, limit: int = _FILE_LIMIT) -> bytes:
        """Return a file's content. Raises GuestError (not readable, longer than ``limit``)."""
        content = bytearray()
        async with contextlib.aclosing(self.read_pieces(path)) as pieces:
            async for piece in pieces:
                content += piece
                if len(content) > limit:
                    raise GuestError(f"{path} in the guest is longer than {limit} bytes")
        return bytes(content)

    async def read_pieces(self, path: str) -> AsyncGenerator[bytes, None]:
        """Yield a file's content in pieces of at most 64 KiB; raises as read_file does.

        Close it (``contextlib.aclosing``) when not reading to the end.
        """
        handle = await self._open(path, "r")
        try:
            while True:
                answer = await self.call("guest-file-read", {"handle": handle, "count": PIECE})
                found = expect(dict, answer, "guest-file-read")
                piece = _decoded(found.get("buf-b64"), "guest-file-read")
                if len(piece) > PIECE:
                    raise GuestError("the guest agent's answer to guest-file-read is too long")
                if piece:
                    yield piece
                if found.get("eof") is True or not piece:
                    return
        finally:
            await self._close_handle(handle)

    async def write_file(
        self, path: str, data: bytes | AsyncIterator[bytes], mode: int | None = None
    ) -> None:
        """Write a file whole or not at all; it is never readable by more than ``mode`` says.

        An existing file keeps its owner, and its mode when ``mode`` is None (new files: 0644).
        Needs a shell in the guest. Raises GuestError: no such folder, not a regular file, disk
        full; nothing is left behind then.
        """
        begun = await self._script(_BEGIN_WRITE, [path], f"{path} in the guest cannot be written")
        lines = begun.stdout.decode("utf-8", "surrogateescape").splitlines()
        if len(lines) != 2:
            raise GuestError(f"{path} in the guest cannot be written: its name is not one line")
        scratch, target = lines
        try:
            await self._fill(scratch, data)
            wanted = "" if mode is None else f"{mode & 0o7777:o}"
            failure = f"{path} in the guest cannot be written"
            await self._script(_END_WRITE, [scratch, target, wanted], failure)
        except BaseException:
            with contextlib.suppress(GuestError, TimedOut):
                await self.exec(["rm", "-f", "--", scratch], timeout=_CLEAN_UP)
            raise

    async def write_into(self, path: str, data: bytes | AsyncIterator[bytes]) -> None:
        """Write to what is at ``path``, such as a pipe, as it is: no shell, no second name.

        A file there is cut before; one that is not there is made. Raises GuestError.
        """
        await self._fill(path, data)

    async def _fill(self, scratch: str, data: bytes | AsyncIterator[bytes]) -> None:
        handle = await self._open(scratch, "w")
        try:
            async for piece in _in_pieces(data):
                encoded = base64.b64encode(piece).decode("ascii")
                answer = await self.call("guest-file-write", {"handle": handle, "buf-b64": encoded})
                found = expect(dict, answer, "guest-file-write")
                if found.get("count") != len(piece):
                    raise GuestError("the guest wrote less than it was sent: is its disk full?")
            await self.call("guest-file-flush", {"handle": handle})
        finally:
            await self._close_handle(handle)

    async def _open(self, path: str, how: str) -> int:
        if "\0" in path:
            raise InvalidInput("a path has no NUL", field="path", expected="a path in the guest")
        answer = await self.call("guest-file-open", {"path": path, "mode": how})
        handle: int = expect(int, answer, "guest-file-open")
        return handle

    async def _close_handle(self, handle: int) -> None:
        """Close a file of the agent's, best effort: the content's fate was decided before."""
        if not self.closed:
            with contextlib.suppress(GuestError):
                await self.call("guest-file-close", {"handle": handle}, timeout=_CLEAN_UP)

    async def _script(self, script: str, arguments: Sequence[str], failure: str) -> ExecResult:
        done = await self.exec(["/bin/sh", "-c", script, "sh", *arguments], timeout=60)
        if done.exit_status != 0:
            raise GuestError(f"{failure}: {printable(done.stderr) or 'no reason given'}")
        return done

    async def _wait_exited(
        self, pid: int, timeout: float, longest: int = LINE_LIMIT
    ) -> dict[str, Any]:
        """Poll, seldom and seldom again, until the process ``pid`` of the agent's has ended."""
        retrying = AsyncRetrying(
            wait=wait_exponential(multiplier=0.005, exp_base=1.5, max=0.25),
            retry=retry_if_result(lambda status: status.get("exited") is not True),
        )

        async def ask() -> dict[str, Any]:
            answer = await self._request(
                "guest-exec-status",
                {"pid": pid},
                timeout=timeout,
                idle=_SILENCE,
                longest=longest,
            )
            status: dict[str, Any] = expect(dict, answer, "guest-exec-status")
            return status

        return await retrying(ask)

    async def _kill_tree(self, pid: int) -> None:
        """Kill the process ``pid`` and what it started; let the agent forget it. Best effort."""
        with contextlib.suppress(GuestError, TimeoutError):
            async with asyncio.timeout(_CLEAN_UP):
                arguments = _exec_arguments(["/bin/sh", "-c", _KILL_TREE, "sh", str(pid)])
                answer = await self._request("guest-exec", arguments, timeout=_CLEAN_UP)
                killer = expect(dict, answer, "guest-exec").get("pid")
                await self._wait_exited(expect(int, killer, "guest-exec"), _CLEAN_UP)
                await self._wait_exited(pid, _CLEAN_UP)


def _exec_arguments(
    argv: Sequence[str], input: bytes | None = None, env: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the arguments of guest-exec. Raises InvalidInput for what the agent cannot take."""
    if not argv or not argv[0]:
        raise InvalidInput("there is no command", field="command", expected="a program to run")
    variables = {"PATH": _PATH} | dict(env) if env is not None else {}
    texts = [*argv, *variables, *variables.values()]
    if any("\0" in text or not _is_utf8(text) for text in texts):
        raise InvalidInput(
            "a word of the command is not text",
            field="command",
            expected="UTF-8 text without a NUL",
        )
    if input is not None and len(input) > INPUT_LIMIT:
        raise InvalidInput(
            f"the input is {len(input)} bytes long",
            field="input",
            expected=f"at most {INPUT_LIMIT} bytes",
            hint="copy it into the guest first: hanok cp",
        )
    arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
    if input is not None:
        arguments["input-data"] = base64.b64encode(input).decode("ascii")
    if env is not None:
        arguments["env"] = [f"{name}={value}" for name, value in variables.items()]
    return arguments


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _exec_result(status: Mapping[str, Any]) -> ExecResult:
    """Return what the final answer of guest-exec-status says."""
    if "signal" in status:
        exit_status = 128 + expect(int, status["signal"], "guest-exec-status")
    else:
        exit_status = expect(int, status.get("exitcode"), "guest-exec-status")
    return ExecResult(
        exit_status,
        _decoded(status.get("out-data", ""), "guest-exec-status"),
        _decoded(status.get("err-data", ""), "guest-exec-status"),
        status.get("out-truncated") is True or status.get("err-truncated") is True,
    )


def _decoded(value: object, command: str) -> bytes:
    text = expect(str, value, command)
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise GuestError(f"the guest agent's answer to {command} is not base64") from None


async def _in_pieces(data: bytes | AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield ``data`` in pieces of at most PIECE bytes."""
    if isinstance(data, bytes):
        for start in range(0, len(data), PIECE):
            yield data[start : start + PIECE]
        return
    async for chunk in data:
        for start in range(0, len(chunk), PIECE):
            yield chunk[start : start + PIECE]
