"""The only place that starts processes.

Two kinds: a *command* runs to its end within a time limit and its output is bounded; a *detached*
process (a hypervisor, a network keeper) is its own session, outlives the daemon and is found again
by the mark in its environment. Tests replace ``SystemRunner`` by a runner of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from hanok import shortage
from hanok.errors import CommandFailed, HostError, TimedOut

OWNER_VARIABLE = "HANOK_OWNER"
_OUTPUT_LIMIT = 16 * 1024 * 1024
_TAIL = 2000
_LACKS = (errno.ENOMEM, errno.EAGAIN)


@dataclass(frozen=True)
class Account:
    """An unprivileged uid and gid to run as; supplementary groups are always dropped."""

    uid: int
    gid: int


@dataclass(frozen=True)
class Limits:
    """Resource limits of a command: CPU seconds, bytes of address space and of each file."""

    cpu_seconds: int | None = None
    memory: int | None = None
    file_size: int | None = None


@dataclass(frozen=True)
class Completed:
    """A command that ended: its exit status and both streams (bounded)."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True)
class Owner:
    """Whose a detached process is: data directory, what it is (``vm``, ``keeper``), for what."""

    home: str
    kind: str
    ident: str

    def mark(self) -> str:
        """Return the value of the environment variable that marks the process."""
        return f"{self.kind}:{self.ident}:{self.home}"

    @classmethod
    def parse(cls, mark: str) -> Owner | None:
        """Return the owner that ``mark`` names, or None when it is not such a mark."""
        parts = mark.split(":", 2)
        return cls(home=parts[2], kind=parts[0], ident=parts[1]) if len(parts) == 3 else None


@dataclass(frozen=True)
class OwnedProcess:
    """A live detached process of ours."""

    pid: int
    owner: Owner


def boot_id() -> str:
    """Return the random UUID that this start of the kernel has (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


class Runner(Protocol):
    """What starts processes."""

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
        limits: Limits | None = None,
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command to its end.

        ``env`` is added to a minimal environment; ``on_line`` sees each line of either stream.
        Raises HostError (program missing), CommandFailed (``check`` and a status other than 0) and
        TimedOut (the process group is killed).
        """
        ...

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        owner: Owner,
        output: Path | int | None = None,
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
        pass_fds: Sequence[int] = (),
        umask: int = 0o077,
    ) -> int:
        """Start a detached process and return its pid; both streams go to ``output``.

        That is a file that is added to, or a descriptor. Raises HostError when the process cannot
        be started.
        """
        ...


def _minimal_environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    keep = ("PATH", "HOME", "TMPDIR", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE")
    env = {name: os.environ[name] for name in keep if name in os.environ}
    env.setdefault("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    for folder in ("/usr/sbin", "/sbin"):
        if folder not in env["PATH"].split(":"):
            env["PATH"] += f":{folder}"
    env["LC_ALL"] = "C.UTF-8"
    env.update(extra or {})
    return env


def find_program(name: str) -> str | None:
    """Return the path of program ``name``, looking into the sbin folders too, or None."""
    return shutil.which(name, path=_minimal_environment(None)["PATH"])


def require_program(name: str, package: str) -> str:
    """Return the path of program ``name``; raises HostError that names its Debian ``package``."""
    path = find_program(name)
    if path is None:
        raise HostError(
            f"the program {name} is not installed",
            hint=f"apt-get install {package}, or run 'make setup'",
        )
    return path


def _within(limits: Limits | None, account: Account | None) -> list[str]:
    """Return what is put before a program: it sets the limits and the account, then becomes it.

    Python could do both between fork and exec. But then it forks: all of the daemon's page tables
    are copied, which costs milliseconds (in a paravirtual Dom0 many, each page is asked of Xen),
    and code of ours would run in a copy whose other threads hold locks for ever. Without either it
    borrows the memory until exec (vfork).
    """
    before: list[str] = []
    if limits is not None:
        told = {"cpu": limits.cpu_seconds, "as": limits.memory, "fsize": limits.file_size}
        options = [f"--{name}={value}" for name, value in told.items() if value is not None]
        if options:  # without any it would print those that hold
            before += [require_program("prlimit", "util-linux"), *options]
    if account is not None and os.geteuid() == 0:
        ids = [f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
        before += [require_program("setpriv", "util-linux"), *ids]
    return before


class SystemRunner:
    """Starts real processes. ``on_spawn`` is told of each detached one, once it runs."""

    def __init__(self) -> None:
        self.on_spawn: Callable[[Owner, int], None] | None = None

    async def run(
        self,
        argv: Sequence[str],
        *,
        input: bytes | None = None,
        timeout: float = 60,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        account: Account | None = None,
        limits: Limits | None = None,
        pass_fds: Sequence[int] = (),
        on_line: Callable[[str], None] | None = None,
    ) -> Completed:
        """See Runner.run."""
        environment = _minimal_environment(env)
        program = shutil.which(argv[0], path=environment["PATH"])
        if program is None:
            raise HostError(f"the program {argv[0]} is not installed", hint="run 'make setup'")
        before = shortage.mark()
        try:
            process = await asyncio.create_subprocess_exec(
                *_within(limits, account),
                program,
                *argv[1:],
                stdin=subprocess.PIPE if input is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=cwd,
                start_new_session=True,
                pass_fds=tuple(pass_fds),
            )
        except OSError as error:
            raise not_started(program, error) from error
        try:
            async with asyncio.timeout(timeout):
                stdout, stderr = await _communicate(process, input, on_line)
        except TimeoutError:
            raise TimedOut(f"{Path(program).name} did not end within {timeout:g} s") from None
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        returncode = process.returncode if process.returncode is not None else -signal.SIGKILL
        done = Completed(tuple(argv), returncode, stdout, stderr)
        if check and done.returncode != 0:
            raise CommandFailed(_failure_text(done) + await _why_ended(process.pid, done, before))
        return done

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        owner: Owner,
        output: Path | int | None = None,
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
        pass_fds: Sequence[int] = (),
        umask: int = 0o077,
    ) -> int:
        """See Runner.spawn."""
        environment = _minimal_environment(env)
        environment[OWNER_VARIABLE] = owner.mark()
        program = shutil.which(argv[0], path=environment["PATH"])
        if program is None:
            raise HostError(f"the program {argv[0]} is not installed", hint="run 'make setup'")

        def start() -> int:
            with contextlib.ExitStack() as stack:
                sink = subprocess.DEVNULL
                if isinstance(output, int):
                    sink = output
                elif output is not None:
                    sink = stack.enter_context(open(output, "ab")).fileno()
                process = subprocess.Popen(
                    [*_within(None, account), program, *argv[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=sink,
                    stderr=sink,
                    env=environment,
                    cwd="/",
                    start_new_session=True,
                    pass_fds=tuple(pass_fds),
                    umask=umask,
                )
            # The pid is watched by wait_for_exit, not by this object.
            process.returncode = 0
            return process.pid

        starting = asyncio.ensure_future(asyncio.to_thread(start))
        try:
            pid = await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The thread goes on: nobody would know of the process that it is about to start.
            with contextlib.suppress(OSError):
                await kill_and_wait(await starting)
            raise
        except OSError as error:
            raise not_started(program, error) from error
        if self.on_spawn is not None:
            self.on_spawn(owner, pid)
        return pid


async def _communicate(
    process: asyncio.subprocess.Process,
    data: bytes | None,
    on_line: Callable[[str], None] | None,
) -> tuple[bytes, bytes]:
    async def feed() -> None:
        if process.stdin is not None and data is not None:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                process.stdin.write(data)
                await process.stdin.drain()
            process.stdin.close()

    async def drain(stream: asyncio.StreamReader | None) -> bytes:
        kept = bytearray()
        line = b""
        while stream is not None and (chunk := await stream.read(65536)):
            kept += chunk[: max(0, _OUTPUT_LIMIT - len(kept))]
            if on_line is not None:
                *lines, line = (line + chunk).split(b"\n")
                line = line[-65536:]
                for text in lines:
                    on_line(text.decode("utf-8", "replace"))
        return bytes(kept)

    _, stdout, stderr = await asyncio.gather(feed(), drain(process.stdout), drain(process.stderr))
    await process.wait()
    return stdout, stderr


def _failure_text(done: Completed) -> str:
    text = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-_TAIL:]
    how = f"status {done.returncode}" if done.returncode >= 0 else f"signal {-done.returncode}"
    return f"{Path(done.argv[0]).name} ended with {how}: {text or 'no message'}"


async def _why_ended(pid: int, done: Completed, since: shortage.Mark) -> str:
    """Return what the kernel says of a command that it has ended, to be added to its failure."""
    if done.returncode != -signal.SIGKILL:
        return ""
    # The process itself, or one that it had started and whose end it passed on.
    why = await asyncio.to_thread(shortage.why_killed, pid, since, "")
    return f"; {why}" if why else ""


def not_started(program: str, error: OSError) -> HostError:
    """Return the error that a program could not be started, such as for want of memory."""
    hint = "'hanok host show' tells what uses the memory" if error.errno in _LACKS else None
    return HostError(f"{Path(program).name} could not be started: {error.strerror}", hint=hint)


async def wait_for_exit(pid: int) -> int | None:
    """Wait until process ``pid`` has ended (at once if it is gone); reaps a child of ours.

    Returns its exit status, below zero the signal that ended it; None when it was no child of ours.
    """
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    loop = asyncio.get_running_loop()
    ended = loop.create_future()

    def readable() -> None:
        if not ended.done():
            ended.set_result(None)

    try:
        loop.add_reader(pidfd, readable)
        await ended
    finally:
        loop.remove_reader(pidfd)
        os.close(pidfd)
    return reap(pid)


def reap(pid: int) -> int | None:
    """Collect the exit status of ``pid`` if it is a child of ours that has ended; else None."""
    with contextlib.suppress(ChildProcessError):
        found, status = os.waitpid(pid, os.WNOHANG)
        if found == pid:
            return os.waitstatus_to_exitcode(status)
    return None


def is_alive(pid: int) -> bool:
    """Return whether process ``pid`` runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def send_signal(pid: int, number: int) -> None:
    """Send signal ``number`` to ``pid``; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


async def kill_and_wait(pid: int, *, timeout: float = 10) -> None:
    """Kill ``pid`` and wait until it is gone. Raises TimedOut when the kernel does not end it."""
    send_signal(pid, signal.SIGKILL)
    try:
        async with asyncio.timeout(timeout):
            await wait_for_exit(pid)
    except TimeoutError:
        raise TimedOut(f"process {pid} did not end within {timeout:g} s of SIGKILL") from None


def owner_of(pid: int) -> Owner | None:
    """Return whose detached process ``pid`` is; None when it is gone or carries no mark."""
    prefix = f"{OWNER_VARIABLE}=".encode()
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None  # it ended, or belongs to another user
    for variable in environment.split(b"\0"):
        if variable.startswith(prefix):
            return Owner.parse(variable[len(prefix) :].decode("utf-8", "replace"))
    return None


def find_owned(home: Path, kind: str | None = None) -> Iterator[OwnedProcess]:
    """Yield the live detached processes that belong to the data directory ``home``."""
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        owner = owner_of(int(entry.name))
        if owner is not None and owner.home == str(home) and kind in (None, owner.kind):
            yield OwnedProcess(int(entry.name), owner)
