"""Xen as the driver sees it, without Xen: a runner that keeps domains in memory, and a xenstore.

The printed forms are those recorded from Xen 4.17. A domain's device model is a real process, so
that its death can be tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hanok.errors import HostError
from hanok.proc import Account, Completed, Limits, Owner, kill_and_wait
from tests.hypervisors.xen.xlcfg import parse

HEAD = (
    "Name                                        ID   Mem VCPUs\tState\tTime(s)   UUID"
    "                            Reason-Code\tSecurity Label"
)


@dataclass
class Fake:
    """A domain: ``config`` as it was given; ``reason`` once it is shut down."""

    domid: int
    config: dict[str, str | int | list[str]]
    device_model: subprocess.Popen[bytes]
    fds: tuple[int, ...]
    env: Mapping[str, str]
    paused: bool
    seconds: float = 0.0
    reason: int | None = None

    def row(self) -> str:
        flags = f"--{'p' if self.paused else '-'}{'s' if self.reason is not None else '-'}--"
        reason = "-" if self.reason is None else f"{self.reason:x}"
        name, uuid = self.config["name"], self.config["uuid"]
        return (
            f"{name:<40} {self.domid:5} {self.config['memory']:5} {self.config['vcpus']:5}"
            f"     {flags}  {self.seconds:8.1f} {uuid} {reason:>8} {'-':>16}"
        )


@dataclass
class FakeXen:
    """A runner. ``refuse`` makes commands fail that begin with it.

    ``creates``: nothing is created before it is set. ``restless``: how many guests restart
    themselves as soon as they are let go.
    """

    domains: dict[int, Fake] = field(default_factory=dict)
    store: dict[str, str] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    refuse: tuple[str, ...] | None = None
    dmesg: str = ""
    numbers: int = 0
    restless: int = 0
    creates: asyncio.Event | None = None
    xenstored: PlayedXenstored = field(init=False)

    def __post_init__(self) -> None:
        self.xenstored = PlayedXenstored(self.store)

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
        command = tuple(argv)
        self.calls.append(command)
        if self.refuse is not None and command[: len(self.refuse)] == self.refuse:
            return Completed(command, 1, b"", b"libxl: error: it was refused\n")
        if command[:2] == ("xl", "create"):
            *fds, text = pass_fds
            assert command[-1] == f"/proc/self/fd/{text}"
            config = Path(command[-1]).read_text()
            if self.creates is not None:
                await self.creates.wait()
            self.create(config, tuple(fds), env or {}, paused="-p" in command)
            return Completed(command, 0, b"", b"")
        return await self.answer(command)

    def create(
        self, text: str, fds: tuple[int, ...], env: Mapping[str, str], *, paused: bool
    ) -> None:
        self.numbers += 1
        config = dict(parse(text))
        process = subprocess.Popen(["sleep", "1000"], env={"PATH": "/usr/bin:/bin", **env})
        self.domains[self.numbers] = Fake(self.numbers, config, process, fds, env, paused)
        path = f"/local/domain/{self.numbers}/image/device-model-pid"
        self.store[path] = str(process.pid)
        self.store[f"/local/domain/{self.numbers}/vm"] = f"/vm/{config['uuid']}"

    async def answer(self, command: tuple[str, ...]) -> Completed:  # noqa: C901
        out, status = "", 0
        match command:
            case ("xl", "list", "-v"):
                dom0 = "Domain-0 0 1280 2 r----- 280.4 00000000-0000-0000-0000-000000000000 - -"
                out = "\n".join([HEAD, dom0, *(d.row() for d in self.domains.values())]) + "\n"
            case ("qemu-img", "create", *_, path):
                Path(path).write_bytes(b"")
            case ("xl", "list", "-l", domid):
                config = self.domains[int(domid)].config
                about = {key: config[key] for key in ("name", "uuid", "type")}
                out = json.dumps([{"domid": int(domid), "config": {"c_info": about}}])
            case ("xl", "destroy", domid):
                await self.destroy(int(domid))
            case ("xl", "pause", domid):
                self.domains[int(domid)].paused = True
            case ("xl", "unpause", domid):
                domain = self.domains[int(domid)]
                domain.paused, domain.seconds = False, domain.seconds + 1
                if self.restless:
                    self.restless -= 1
                    await self.shut_down(int(domid), 1)
            case ("xl", "shutdown", domid) | ("xl", "trigger", domid, "power"):
                await self.shut_down(int(domid), 0)
            case ("xl", "dmesg"):
                out = self.dmesg
            case ("xenstore-ls", "-f", path):
                below = {p: v for p, v in self.store.items() if p.startswith(f"{path}/")}
                out = "".join(f'{p} = "{v}"\n' for p, v in below.items())
            case ("xl", "vcpu-set" | "mem-set", _, _):
                pass
            case ("xl", "block-attach", domid, text):
                vdev = text.split(",")[1].removeprefix("vdev=")
                self.store[f"/local/domain/0/backend/qdisk/{domid}/{vdev}/dev"] = vdev
            case ("xl", "block-detach", domid, vdev):
                del self.store[f"/local/domain/0/backend/qdisk/{domid}/{vdev}/dev"]
            case ("xl", "network-attach", domid, _, mac, _):
                path = f"/local/domain/0/backend/vif/{domid}/0/mac"
                self.store[path] = mac.removeprefix("mac=")
            case ("xl", "network-detach", domid, number):
                del self.store[f"/local/domain/0/backend/vif/{domid}/{number}/mac"]
            case _:
                raise AssertionError(command)
        return Completed(command, status, out.encode(), b"")

    async def destroy(self, domid: int) -> None:
        domain = self.domains.pop(domid, None)
        for path in [p for p in self.store if f"/{domid}/" in p]:
            del self.store[path]
        if domain is not None:
            domain.device_model.kill()
            with contextlib.suppress(ProcessLookupError):
                await asyncio.to_thread(domain.device_model.wait)
        self.tell()

    async def shut_down(self, domid: int, reason: int) -> None:
        self.domains[domid].reason = reason
        self.tell()

    def tell(self) -> None:
        self.xenstored.tell("@releaseDomain")

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
        raise AssertionError("the driver starts nothing but commands")

    async def close(self) -> None:
        for domid in list(self.domains):
            pid = self.domains[domid].device_model.pid
            await self.destroy(domid)
            await kill_and_wait(pid)
        await self.xenstored.stop()


HEADER = struct.Struct("=4I")  # xs_wire.h: type, request, transaction, length
DIRECTORY, READ, WATCH, WRITE, EVENT, ERROR = 1, 2, 4, 11, 15, 16


class PlayedXenstored:
    """Serves ``store`` over a socket; the bytes are those that oxenstored of Xen 4.17 was seen to
    answer with. ``refuses``: what each request is refused with."""

    def __init__(self, store: dict[str, str]) -> None:
        self.store = store
        self.refuses = b""
        self.mute = False
        self._held: list[tuple[asyncio.StreamWriter, int, str, bytes]] = []
        self.connections = 0
        self._watchers: list[tuple[asyncio.StreamWriter, bytes]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None

    async def start(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(self._serve, path)

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        self._watchers.clear()

    def speak(self) -> None:
        """Answer what was asked, while it was mute too."""
        self.mute = False
        for request in self._held:
            self._answer(*request)
        self._held.clear()

    def tell(self, path: str) -> None:
        for writer, token in self._watchers:
            _send(writer, EVENT, path.encode() + b"\0" + token + b"\0")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        with contextlib.suppress(EOFError, OSError):
            while True:
                kind, *_, length = HEADER.unpack(await reader.readexactly(HEADER.size))
                path, _, rest = (await reader.readexactly(length)).partition(b"\0")
                self._held.append((writer, kind, path.decode(), rest))
                if not self.mute:
                    self.speak()

    def _answer(self, writer: asyncio.StreamWriter, kind: int, path: str, rest: bytes) -> None:
        below = {
            p[len(path) + 1 :].partition("/")[0] for p in self.store if p.startswith(f"{path}/")
        }
        if self.refuses:
            return _send(writer, ERROR, self.refuses)
        if kind == WATCH:
            token = rest.rstrip(b"\0")
            self._watchers.append((writer, token))
            _send(writer, WATCH, b"OK\0")
            return _send(writer, EVENT, path.encode() + b"\0" + token + b"\0")
        if kind == WRITE:
            self.store[path] = rest.decode()
            return _send(writer, WRITE, b"OK\0")
        if kind == READ and path in self.store:
            return _send(writer, READ, self.store[path].encode())
        if kind == DIRECTORY and below:
            return _send(writer, DIRECTORY, b"".join(name.encode() + b"\0" for name in below))
        return _send(writer, ERROR, b"ENOENT\0")


def _send(writer: asyncio.StreamWriter, kind: int, payload: bytes) -> None:
    writer.write(HEADER.pack(kind, 0, 0, len(payload)) + payload)


@dataclass
class Wires:
    """Networks that remember what was plugged in."""

    plugged: list[tuple[str, str, str]] = field(default_factory=list)
    fails: bool = False

    async def plug_link(self, network: str, vm: str, link: str) -> None:
        if self.fails:
            raise HostError("the network is gone")
        self.plugged.append((network, vm, link))

    async def renew_tap(self, network: str, vm: str) -> int:
        self.plugged.append((network, vm, "tap"))
        return os.open(os.devnull, os.O_RDWR)
