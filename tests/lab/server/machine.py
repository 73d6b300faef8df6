"""The server as a VM in software emulation: it boots by its own firmware and boot loader."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import AgentUnavailable, TimedOut
from hanok.guest.agent import AgentConnection
from tests.daemon.harness import wait_until
from tests.machine import patient

# Xen under emulation: with SMAP Dom0 dies in its first page fault.
_MACHINE = (
    *("-machine", "q35", "-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,-smap,-smep"),
    *("-m", "3072", "-smp", "2", "-nodefaults", "-no-user-config", "-display", "none"),
)
_OVMF = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
_OVMF_VARS = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
_BOOT_LIMIT = 240.0
# In a second: by then the agent has told that the command has ended.
REBOOT_SOON = (
    "systemd-run --quiet --on-active=1 --timer-property=AccuracySec=100ms systemctl reboot"
)


@dataclass
class ServerVm:
    """A running server. ``folder`` holds its disk, its sockets and what its serial port said."""

    folder: Path
    process: subprocess.Popen[bytes]
    boot_id: str = ""

    @property
    def console(self) -> str:
        """What the serial port said."""
        return (self.folder / "console").read_text(errors="replace")

    def sh(self, script: str, limit: float = 120) -> str:
        """Run a shell script as root, see it succeed, and return what it printed."""
        status, output = self.try_sh(script, limit)
        assert status == 0, f"{script!r} ended with {status}: {output[-3000:]}"
        return output

    def try_sh(self, script: str, limit: float = 120) -> tuple[int, str]:
        """Run a shell script as root; return its status and what it printed.

        Raises AgentUnavailable while no system is up.
        """
        return asyncio.run(self._try_sh(script, patient(limit)))

    async def _try_sh(self, script: str, limit: float) -> tuple[int, str]:
        try:
            reader, writer = await asyncio.open_unix_connection(self.folder / "agent")
        except OSError as error:
            raise AgentUnavailable(f"QEMU has no such socket: {error.strerror}") from error
        agent = AgentConnection(reader, writer)
        try:
            await agent.sync(patient(10))
            whole = f"exec 2>&1; export PATH=/usr/sbin:/usr/bin:/sbin:/bin; {script}"
            done = await agent.exec(["/bin/sh", "-c", whole], timeout=limit)
        finally:
            await agent.close()
        return done.exit_status, done.stdout.decode(errors="replace")

    def wait_up(self) -> None:
        """Wait until a system answers that was not the one of before."""
        wait_until(self._is_another, _BOOT_LIMIT, f"{self.folder.name} is up again")

    def _is_another(self) -> bool:
        assert self.process.poll() is None, self.console[-3000:]
        try:
            status, found = self.try_sh("cat /proc/sys/kernel/random/boot_id", 10)
        except (AgentUnavailable, TimedOut):
            return False
        if status != 0 or found == self.boot_id:
            return False
        self.boot_id = found
        return True

    def reboot(self) -> None:
        """Restart it as an administrator does, and wait until it is up again."""
        self.sh(REBOOT_SOON)
        self.wait_up()

    def on_xen(self) -> bool:
        """Whether it is a Dom0 now."""
        return self.try_sh("grep -q xen /sys/hypervisor/type")[0] == 0


@contextlib.contextmanager
def running(folder: Path, disk: Path, payload: Path, firmware: str) -> Iterator[ServerVm]:
    """Give the server, up, on the qcow2 ``disk``; ``payload`` is a read-only disk with Hanok."""
    argv = [
        "qemu-system-x86_64",
        *_MACHINE,
        *(_ovmf(folder) if firmware == "ovmf" else ()),
        *("-serial", f"file:{folder}/console", "-monitor", "none"),
        *_drive("root", disk, "qcow2", "off"),
        *_drive("payload", payload, "raw", "on"),
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off"),
        *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
        *("-device", "virtio-rng-pci"),
    ]
    (folder / "console").touch()
    with open(folder / "qemu.log", "wb") as log:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    vm = ServerVm(folder, process)
    try:
        vm.wait_up()
        yield vm
    finally:
        process.kill()
        process.wait()


def _drive(name: str, path: Path, kind: str, read_only: str) -> list[str]:
    drive = f"if=none,id={name},file={path},format={kind},read-only={read_only}"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name}"]


def _ovmf(folder: Path) -> list[str]:
    variables = folder / "vars.fd"
    variables.write_bytes(_OVMF_VARS.read_bytes())
    return [
        *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_OVMF}"),
        *("-drive", f"if=pflash,format=raw,unit=1,file={variables}"),
    ]


def has_ovmf() -> bool:
    """Whether this machine has EFI firmware for VMs."""
    return _OVMF.exists() and _OVMF_VARS.exists()
