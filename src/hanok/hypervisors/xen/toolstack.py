"""What is asked of Xen: by ``xl``, each call a process, and of xenstore."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from hanok.errors import HostError, HypervisorError
from hanok.hypervisors.xen.parse import (
    DomainState,
    XenInfo,
    parse_configs,
    parse_domains,
    parse_info,
    parse_store,
)
from hanok.hypervisors.xen.xenstore import SOCKET, XenStore
from hanok.proc import OWNER_VARIABLE, Owner, Runner

_CAPABILITIES = Path("/proc/xen/capabilities")
# A whole domain's start: a kernel and an initrd are read, memory is scrubbed, and the host may be
# an emulated one that is busy.
_CREATE_LIMIT = 300.0
_LIMIT = 60.0
_DOMAINS = "/local/domain"
_TYPES = ("pv", "pvh", "hvm")
# What libxl says when nobody makes a new domain's console.
_NO_CONSOLE = "console tty: timed out"
# Lines of xl that say nothing of why it failed. The second is the drop of the channel that is
# there to be dropped (see config.py).
_NOISE = re.compile(
    r"^(Parsing config from|got a tsc mode string|.*Primary console has invalid configuration)"
)


def is_dom0(capabilities: Path = _CAPABILITIES) -> bool:
    """Whether this system is the management domain of a Xen host (xenfs of Linux)."""
    try:
        return "control_d" in capabilities.read_text()
    except OSError:
        return False


class Toolstack:
    """What can be asked of Xen. Each method raises HypervisorError with what was said to it,
    and HostError when a program is missing or does not end. ``xenstore``: its daemon's socket."""

    def __init__(self, runner: Runner, xenstore: Path = SOCKET) -> None:
        self._runner = runner
        self._store = XenStore(xenstore)
        self._listing: asyncio.Task[list[DomainState]] | None = None

    async def info(self) -> XenInfo:
        """Return what the host and its hypervisor are."""
        return parse_info(await self._xl("info"))

    async def domains(self) -> list[DomainState]:
        """Return all domains as they are after this call; those who ask at once share a look."""
        waiting = self._listing
        if waiting is None or waiting.done():
            waiting = self._listing = asyncio.create_task(self._list())
        return await asyncio.shield(waiting)

    async def _list(self) -> list[DomainState]:
        await asyncio.sleep(0)  # those who ask in the same round come in
        self._listing, text = None, await self._xl("list", "-v")
        return parse_domains(text)

    async def find(self, uuid: str) -> DomainState | None:
        """Return the domain with this uuid, one that is going away included."""
        found = [domain for domain in await self.domains() if domain.uuid == uuid.lower()]
        return found[0] if found else None

    async def domid_of(self, uuid: str) -> int | None:
        """Return the number of the domain with this uuid, None when xenstore has no such domain.

        It knows those that are alive only, and nothing of how they are: see ``find``.
        """
        try:
            numbers = [int(n) for n in await self._store.children(_DOMAINS) if n.isdigit()]
        except HypervisorError:  # so many that their numbers do not fit into an answer
            seen = await self.find(uuid)
            return seen.domid if seen is not None else None
        for number in sorted(numbers, reverse=True):  # the last one made is asked for
            if await self._store.read(f"{_DOMAINS}/{number}/vm") == f"/vm/{uuid.lower()}":
                return number
        return None

    async def domain_type(self, domid: int) -> str:
        """Return pv, pvh or hvm, as Xen runs this domain. Raises HypervisorError without it.

        Libxl notes it where only Dom0 sees it. Where it did not, xl tells, which takes Dom0 longer.
        """
        noted = await self._store.read(f"/libxl/{domid}/type")
        if noted in _TYPES:
            return noted
        found = parse_configs(await self._xl("list", "-l", str(domid)))
        for config in found:
            if config.domid == domid:
                return config.type
        raise HypervisorError(f"'xl list -l' does not tell of domain {domid}")

    async def create(
        self, config: str, owner: Owner, pass_fds: Sequence[int] = (), *, paused: bool
    ) -> None:
        """Create a domain of an xl.cfg, ``paused`` or running; nobody but us watches over it.

        Its device model inherits ``pass_fds`` and the mark of ``owner``. The text is a file of
        memory: xl reads no pipe, and on disk it would have to be removed again. Raises
        HypervisorError, and HostError where Xen's consoles are not served.
        """
        text = os.memfd_create("xl.cfg", os.MFD_CLOEXEC)
        try:
            os.write(text, config.encode())
            await self._run(
                *("xl", "create", "-e", *(["-p"] if paused else []), f"/proc/self/fd/{text}"),
                timeout=_CREATE_LIMIT,
                env={OWNER_VARIABLE: owner.mark()},
                pass_fds=(*pass_fds, text),
            )
        except HypervisorError as error:
            if _NO_CONSOLE not in error.message:
                raise
            raise HostError(
                "no domain can start: xenconsoled, which has Xen's consoles, does not run",
                hint="'systemctl restart xen' in Dom0 starts it; domains that run go on",
            ) from error
        finally:
            os.close(text)

    async def destroy(self, domid: int) -> None:
        """End a domain now; nothing happens when it is gone."""
        try:
            await self._xl("destroy", str(domid))
        except HypervisorError:
            if any(domain.domid == domid for domain in await self.domains()):
                raise

    async def pause(self, domid: int) -> None:
        """Stop a domain's vCPUs."""
        await self._xl("pause", str(domid))

    async def unpause(self, domid: int) -> None:
        """Let a domain's vCPUs go on."""
        await self._xl("unpause", str(domid))

    async def shut_down(self, domid: int) -> None:
        """Ask a guest with PV drivers to power itself off, by xenstore."""
        await self._xl("shutdown", str(domid))

    async def press_power(self, domid: int) -> None:
        """Press the ACPI power button of an HVM guest."""
        await self._xl("trigger", str(domid), "power")

    async def set_vcpus(self, domid: int, count: int) -> None:
        """Let a domain use so many of its vCPUs."""
        await self._xl("vcpu-set", str(domid), str(count))

    async def set_memory(self, domid: int, mebibytes: int) -> None:
        """Set how much memory a domain's balloon leaves it."""
        await self._xl("mem-set", str(domid), f"{mebibytes}m")

    async def attach_block(self, domid: int, text: str) -> None:
        """Attach a disk, said as in an xl.cfg."""
        await self._xl("block-attach", str(domid), text)

    async def detach_block(self, domid: int, vdev: str) -> None:
        """Detach a disk, once the guest lets it go."""
        await self._xl("block-detach", str(domid), vdev)

    async def attach_network(self, domid: int, text: str) -> None:
        """Attach a card, said as in an xl.cfg."""
        await self._xl("network-attach", str(domid), *text.split(","))

    async def detach_network(self, domid: int, number: int) -> None:
        """Detach a card by its number."""
        await self._xl("network-detach", str(domid), str(number))

    async def log(self) -> str:
        """Return what Xen has said since its start, as far as it keeps that."""
        return await self._xl("dmesg")

    async def read(self, path: str) -> str | None:
        """Return a value of xenstore, None when there is no such node."""
        return await self._store.read(path)

    async def write(self, path: str, value: str) -> None:
        """Write a value into xenstore."""
        await self._store.write(path, value)

    async def tree(self, path: str) -> dict[str, str]:
        """Return the nodes of xenstore below ``path``; none when there is no such node."""
        try:
            return parse_store(await self._run("xenstore-ls", "-f", path))
        except HypervisorError:
            return {}

    async def watch_ends(self, seen: Callable[[], None]) -> None:
        """Call ``seen`` once at the start, and whenever a domain has ended or shut down.

        Returns when xenstore's daemon has hung up, at once when there is none.
        """
        await self._store.watch("@releaseDomain", seen)

    def close(self) -> None:
        """Let go of xenstore."""
        self._store.close()

    async def _xl(self, *arguments: str) -> str:
        return await self._run("xl", *arguments)

    async def _run(
        self,
        *argv: str,
        timeout: float = _LIMIT,
        env: dict[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> str:
        done = await self._runner.run(
            argv, timeout=timeout, check=False, env=env, pass_fds=pass_fds
        )
        if done.returncode != 0:
            raise HypervisorError(f"'{' '.join(argv[:2])}' failed: {reason_of(done.stderr)}")
        return done.stdout.decode("utf-8", "replace")


def reason_of(stderr: bytes) -> str:
    """Return the last of what xl complained about, in one line without its usual noise."""
    lines = [line.strip() for line in stderr.decode("utf-8", "replace").splitlines()]
    told = [line for line in lines if line and not _NOISE.match(line)]
    return "; ".join(told[-4:])[-1000:] or "it did not say why"
