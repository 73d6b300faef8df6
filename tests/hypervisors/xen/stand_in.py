"""Xen's programs as the driver sees them, without Xen: a runner that keeps domains in memory.

The printed forms are those recorded from Xen 4.17. A domain's device model is a real process, so
that its death can be tried.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
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
    paused: bool = True
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
    watcher: Callable[[str], None] | None = None

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
        if "xenstore-watch" in command:
            self.watcher = on_line
            self.tell()  # as xenstored does for each new watch
            await asyncio.Event().wait()
        if command[:2] == ("xl", "create"):
            *fds, text = pass_fds
            assert command[-1] == f"/proc/self/fd/{text}"
            config = Path(command[-1]).read_text()
            if self.creates is not None:
                await self.creates.wait()
            self.create(config, tuple(fds), env or {})
            return Completed(command, 0, b"", b"")
        return await self.answer(command)

    def create(self, text: str, fds: tuple[int, ...], env: Mapping[str, str]) -> None:
        self.numbers += 1
        config = dict(parse(text))
        process = subprocess.Popen(["sleep", "1000"], env={"PATH": "/usr/bin:/bin", **env})
        self.domains[self.numbers] = Fake(self.numbers, config, process, fds, env)
        path = f"/local/domain/{self.numbers}/image/device-model-pid"
        self.store[path] = str(process.pid)

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
            case ("xenstore-read", path):
                out, status = self.store.get(path, "") + "\n", int(path not in self.store)
            case ("xenstore-ls", "-f", path):
                below = {p: v for p, v in self.store.items() if p.startswith(f"{path}/")}
                out = "".join(f'{p} = "{v}"\n' for p, v in below.items())
            case ("xenstore-write", path, value):
                self.store[path] = value
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
        if self.watcher is not None:
            self.watcher("@releaseDomain")

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
