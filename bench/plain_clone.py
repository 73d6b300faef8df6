"""Plain QEMU that clones a guest by sharing its memory: what Hanok's clones are compared with.

The recipe and nothing of Hanok: RAM in a memfd that is mapped shared while the guest boots; the
devices are saved without the RAM (capability x-ignore-shared); each clone maps the same RAM
private, loads the devices (``-incoming defer``, ``migrate-incoming``) and goes on (``cont``). A
clone keeps the name, the addresses and the keys of its template.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.machine import cpu_seconds
from bench.plain import Guest, connect, plain_argv, scratch_folder, wait_for_agent, wait_for_answer

_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_LIMIT = 60.0
_IGNORE = {"capability": "x-ignore-shared", "state": True}
_EVENTS = {"capability": "events", "state": True}


@dataclass(frozen=True)
class CloneTime:
    """How long a clone took from its process's start to its agent's ping; its CPU with that."""

    seconds: float
    cpu: float


@dataclass(frozen=True)
class PlainTemplate:
    """A frozen guest: its argument list but for RAM and disk, and where its parts are."""

    guest: Guest
    accelerator: str
    machine: str
    scratch: Path
    memory: int

    def clone(self) -> CloneTime:
        """Run a clone until its agent answers, and end it."""
        with scratch_folder() as scratch:
            disk = make_overlay(self.scratch / "disk.qcow2", scratch)
            state = os.open(self.scratch / "state", os.O_RDONLY)
            argv = [*_argv(self, scratch, disk, share="off"), "-S", "-incoming", "defer"]
            started = time.perf_counter()
            process = subprocess.Popen(argv, pass_fds=(self.memory, state))
            try:
                with _Monitor(scratch / "qmp.sock", process) as monitor:
                    monitor.ask("migrate-set-capabilities", capabilities=[_IGNORE, _EVENTS])
                    monitor.ask("migrate-incoming", uri=f"fd:{state}")
                    monitor.wait_migrated()
                    with connect(scratch / "agent.sock", process) as agent:
                        monitor.ask("cont")
                        wait_for_answer(agent)
                        seconds = time.perf_counter() - started
                        return CloneTime(seconds, cpu_seconds(process.pid))
            finally:
                process.kill()
                process.wait()
                os.close(state)


@contextlib.contextmanager
def plain_template(guest: Guest, accelerator: str, machine: str) -> Iterator[PlainTemplate]:
    """Boot ``guest``, freeze it, and give what clones of it need."""
    with scratch_folder() as scratch, contextlib.ExitStack() as closing:
        memory = os.memfd_create("plain-clone", os.MFD_ALLOW_SEALING)
        closing.callback(os.close, memory)
        os.ftruncate(memory, guest.memory * 1024 * 1024)
        template = PlainTemplate(guest, accelerator, machine, scratch, memory)
        disk = make_overlay(guest.folder / guest.disk, scratch)
        argv = _argv(template, scratch, disk, share="on")
        process = subprocess.Popen(argv, pass_fds=(memory,))
        try:
            # The agent's port stays open while the guest is frozen: a clone's agent takes a pause
            # when it is told of a change.
            with (
                wait_for_agent(scratch / "agent.sock", process),
                _Monitor(scratch / "qmp.sock", process) as monitor,
            ):
                monitor.ask("stop")
                monitor.ask("migrate-set-capabilities", capabilities=[_IGNORE, _EVENTS])
                monitor.ask("migrate", uri=f"exec:cat >{scratch}/state")
                monitor.wait_migrated()
        finally:
            process.kill()
            process.wait()
        # Else a clone's balloon would punch holes in what all share.
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
        yield template


def make_overlay(base: Path, scratch: Path) -> Path:
    """Return a new empty overlay on ``base``."""
    path = scratch / "disk.qcow2"
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", str(base)]
    subprocess.run([*create, str(path)], check=True)
    return path


def _argv(template: PlainTemplate, scratch: Path, disk: Path, *, share: str) -> list[str]:
    guest = template.guest
    argv = plain_argv(
        guest, disk, scratch, template.accelerator, f"{template.machine},memory-backend=ram"
    )
    file = f"/proc/self/fd/{template.memory}"
    ram = f"memory-backend-file,id=ram,size={guest.memory}M,mem-path={file},share={share}"
    monitor = f"socket,id=qmp,path={scratch}/qmp.sock,server=on,wait=off"
    return [*argv, "-object", ram, "-chardev", monitor, "-mon", "chardev=qmp,mode=control"]


@dataclass
class _Monitor:
    """QEMU's monitor (QMP), as little of it as this needs."""

    path: Path
    process: subprocess.Popen[bytes]
    migrated: bool = False
    _closing: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> _Monitor:
        self._socket: socket.socket = self._closing.enter_context(connect(self.path, self.process))
        self._socket.settimeout(_LIMIT)
        self._lines = self._closing.enter_context(self._socket.makefile("rb"))
        self._receive()
        self.ask("qmp_capabilities")
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def ask(self, command: str, **arguments: object) -> Any:
        """Return what a command answers. Raises RuntimeError with QEMU's reason."""
        request = {"execute": command, "arguments": arguments}
        self._socket.sendall(json.dumps(request).encode() + b"\n")
        while True:
            message = self._receive()
            if "error" in message:
                raise RuntimeError(f"{command}: {message['error']['desc']}")
            if "return" in message:
                return message["return"]

    def wait_migrated(self) -> None:
        """Wait until the state has been written or read."""
        while not self.migrated:
            self._receive()

    def _receive(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise RuntimeError("QEMU ended while it was asked")
        message: dict[str, Any] = json.loads(line)
        if message.get("event") == "MIGRATION":
            status = message["data"]["status"]
            if status == "failed":
                raise RuntimeError("QEMU could not migrate")
            self.migrated = status == "completed"
        return message
