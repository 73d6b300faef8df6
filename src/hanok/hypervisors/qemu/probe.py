"""Acceleration, measured: KVM is used once a real guest has booted with it on this host.

``/dev/kvm`` may exist, open and create machines, and still not run an unmodified guest (nested or
paravirtual KVM): only a guest's own word counts. Its verdict is kept in a file, by kernel, QEMU
build and device; a failure is forgotten after a week, since firmware and modules change.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import grp
import json
import os
import pwd
import socket
import stat
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ValidationError

from hanok.durable import give_file
from hanok.errors import HanokError
from hanok.hypervisors.qemu.arch import Architecture
from hanok.hypervisors.qemu.argv import Platform, build_probe_argv
from hanok.hypervisors.qemu.build import QemuBuild
from hanok.hypervisors.qemu.log import summary
from hanok.proc import Account, Completed, Runner
from hanok.units import MIB

BOOT_LIMIT = 10.0
_FAILURE_LIFETIME = 7 * 24 * 3600.0
_PROBE_MEMORY = 256 * MIB
_CONSOLE_KEPT = 64 * 1024
# The probe guest ends even if the daemon is killed meanwhile: coreutils' timeout sees to it, this
# many seconds after the limit.
_BACKSTOP = 10.0


@dataclass(frozen=True)
class ProbeGuest:
    """A guest that writes ``expected`` to its serial console when it is up (ttyS0).

    Its files must be readable by every user: the guest runs without root's rights.
    """

    kernel: Path
    initrd: Path
    cmdline: str
    expected: bytes

    @classmethod
    def with_shell(cls, kernel: Path, initrd: Path) -> ProbeGuest:
        """Return a guest of a Linux kernel and any initrd that has ``/bin/sh``.

        No disk is needed: the shell is the first program (kernel-parameters: ``rdinit``, and
        ``--`` before init's own arguments) and says that programs run. The quotes keep a kernel
        that prints its command line from saying the same.
        """
        shell = """rdinit=/bin/sh -- -c "echo hanok-probe: ''up\""""
        return cls(kernel, initrd, f"console=ttyS0,115200 quiet {shell}", b"hanok-probe: up")


GuestProvider = Callable[[], Awaitable[ProbeGuest | None]]


@dataclass(frozen=True)
class Verdict:
    """Which accelerator and why.

    ``final``: it need not be asked again. ``pending``: a guest is missing to measure it.
    """

    accelerator: str
    reason: str
    final: bool
    pending: bool = False


class _Record(BaseModel):
    """The cache file."""

    key: str
    accelerator: str
    reason: str
    measured: float


class AccelerationProbe:
    """Decides between KVM and TCG.

    ``device`` is the KVM device; ``account`` the unprivileged account that the guest runs as when
    the daemon is root.
    """

    def __init__(
        self,
        runner: Runner,
        emulator: str,
        guest: GuestProvider,
        cache: Path,
        *,
        device: Path,
        account: Account | None,
        boot_limit: float = BOOT_LIMIT,
    ) -> None:
        self._boot_limit = boot_limit
        self._runner = runner
        self._emulator = emulator
        self._guest = guest
        self._cache = cache
        self._device = device
        self._account = account

    async def decide(self, build: QemuBuild, architecture: Architecture) -> Verdict:
        """Return the verdict for this host, measuring it when that has not been done."""
        if not self._device.exists():
            return Verdict("tcg", f"there is no {self._device} on this host", False)
        if not self.reaches(self._account):
            return Verdict("tcg", self._unreachable(), False)
        key = self._key(build)
        if (known := self._known(key)) is not None:
            return known
        guest = await self._guest()
        if guest is None:
            return Verdict("tcg", "KVM is not measured yet: its guest is not built", False, True)
        try:
            verdict = await self._measure(build, architecture, guest)
        except HanokError as error:  # our fault or the host's, not KVM's: not for the file
            return Verdict("tcg", f"KVM could not be tried: {error.message}", True)
        self._remember(key, verdict)
        return verdict

    def forget(self) -> None:
        """Forget what was measured."""
        self._cache.unlink(missing_ok=True)

    def reaches(self, account: Account | None) -> bool:
        """Whether QEMU as ``account`` (None: as this process) may open the device."""
        return (
            account_with_kvm(self._device, account) is not None
            if account is not None
            else (os.access(self._device, os.R_OK | os.W_OK))
        )

    def _unreachable(self) -> str:
        facts = self._device.stat()
        mode = stat.S_IMODE(facts.st_mode)
        group = _group_name(facts.st_gid)
        owner = f"{_user_name(facts.st_uid)}:{group}"
        if self._account is None:
            user = _user_name(os.getuid())
            opens = f"'usermod --append --groups kvm {user}' and a new login opens it"
            if mode & 0o060 != 0o060 or group != "kvm":
                opens = (
                    f"'chgrp kvm {self._device}; chmod 0660 {self._device}' as root, then {opens}"
                )
            return f"{self._device} ({owner}, mode {mode:04o}) is closed to {user}; {opens}"
        return (
            f"{self._device} ({owner}, mode {mode:04o}) is closed to the unprivileged account that "
            f"QEMU runs as; 'chgrp kvm {self._device}; chmod 0660 {self._device}' opens it"
        )

    def _key(self, build: QemuBuild) -> str:
        facts, kernel = self._device.stat(), os.uname()
        device = f"{facts.st_rdev}:{facts.st_uid}:{facts.st_gid}:{stat.S_IMODE(facts.st_mode):o}"
        return "|".join((kernel.release, kernel.version, build.text, device))

    def _known(self, key: str) -> Verdict | None:
        try:
            record = _Record.model_validate_json(self._cache.read_bytes())
        except (OSError, ValidationError):
            return None
        failed = record.accelerator != "kvm"
        age = time.time() - record.measured
        if record.key != key or (failed and not 0 <= age < _FAILURE_LIFETIME):
            return None
        return Verdict(record.accelerator, record.reason, True)

    def _remember(self, key: str, verdict: Verdict) -> None:
        record = _Record(
            key=key,
            accelerator=verdict.accelerator,
            reason=verdict.reason,
            measured=time.time(),
        )
        self._cache.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record.model_dump(), indent=2) + "\n"
        give_file(self._cache, text.encode(), None)

    # --- the measurement --------------------------------------------------------------------

    async def _measure(
        self, build: QemuBuild, architecture: Architecture, guest: ProbeGuest
    ) -> Verdict:
        began = time.monotonic()
        booted, words = await self._boot(build, architecture, guest)
        took = time.monotonic() - began
        if booted:
            return Verdict("kvm", f"a guest booted with KVM in {took:.1f} s", True)
        return Verdict("tcg", f"no guest boots with KVM here: {words}", True)

    async def _boot(
        self, build: QemuBuild, architecture: Architecture, guest: ProbeGuest
    ) -> tuple[bool, str]:
        """Boot ``guest`` with KVM; return whether it came up, and if not, what was seen."""
        platform = Platform(architecture, "kvm", build.machine_type, build.sandbox)
        async with contextlib.AsyncExitStack() as undo:
            ours, theirs = socket.socketpair()
            undo.callback(theirs.close)
            reader, writer = await asyncio.open_unix_connection(sock=ours)
            undo.callback(writer.close)
            argv = build_probe_argv(
                platform,
                self._emulator,
                kernel=guest.kernel,
                initrd=guest.initrd,
                cmdline=guest.cmdline,
                memory=_PROBE_MEMORY,
                console=theirs.fileno(),
            )
            emulator = asyncio.ensure_future(
                self._runner.run(
                    ("timeout", "--signal=KILL", f"{self._boot_limit + _BACKSTOP:g}", *argv),
                    timeout=self._boot_limit + 5,
                    check=False,
                    account=self._kvm_account(),
                    pass_fds=(theirs.fileno(),),
                )
            )
            console = asyncio.ensure_future(_read_until(reader, guest.expected))
            try:
                await asyncio.wait(
                    {emulator, console},
                    timeout=self._boot_limit,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                return _outcome(emulator, console, self._boot_limit)
            finally:
                for task in (emulator, console):
                    task.cancel()
                await asyncio.gather(emulator, console, return_exceptions=True)

    def _kvm_account(self) -> Account | None:
        return account_with_kvm(self._device, self._account) if self._account is not None else None


def account_with_kvm(device: Path, account: Account) -> Account | None:
    """Return ``account`` so that it may open ``device``, or None when there is no way.

    The device's group becomes the process's group: on most systems that is ``kvm``, mode 0660.
    Root's group is not given away.
    """
    facts = device.stat()
    mode = stat.S_IMODE(facts.st_mode)
    if mode & 0o006 == 0o006 or (facts.st_uid == account.uid and mode & 0o600 == 0o600):
        return account
    if mode & 0o060 == 0o060 and facts.st_gid != 0:
        return dataclasses.replace(account, gid=facts.st_gid)
    return None


def _outcome(
    emulator: asyncio.Future[Completed], console: asyncio.Future[bool], limit: float
) -> tuple[bool, str]:
    if console.done() and console.exception() is None and console.result():
        return True, ""
    if not emulator.done():
        return False, (
            f"it did not finish booting within {limit:g} s (HANOK_KVM_LIMIT gives it longer)"
        )
    return False, f"QEMU ended: {summary(emulator.result().stderr)[:300]}"


async def _read_until(reader: asyncio.StreamReader, expected: bytes) -> bool:
    """Read until ``expected`` was seen; then True. Waits for ever on a stream that has ended:
    how QEMU ended says more."""
    seen = b""
    while chunk := await reader.read(4096):
        seen = (seen + chunk)[-_CONSOLE_KEPT:]
        if expected in seen:
            return True
    await asyncio.Event().wait()
    return False


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
