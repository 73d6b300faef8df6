"""The daemon, hanokd: the composition root, the only file that names concrete backends."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from logging.handlers import RotatingFileHandler
from pathlib import Path

import uvicorn

from hanok import __version__
from hanok.api.app import Activity, access_of, create_app
from hanok.api.auth import Guard
from hanok.api.entrance import make_tls_server, renew
from hanok.api.listener import TlsServer, bind, config_of
from hanok.api.welcome import enter, welcoming
from hanok.config import Listen, Settings, load_settings
from hanok.errors import Conflict, HanokError, HostError, InvalidInput
from hanok.hypervisors.base import Hypervisor
from hanok.hypervisors.fake import FakeHypervisor
from hanok.hypervisors.qemu.arch import find_row
from hanok.hypervisors.qemu.driver import QemuHypervisor
from hanok.hypervisors.qemu.probe import ProbeGuest
from hanok.hypervisors.xen.driver import XenHypervisor
from hanok.hypervisors.xen.toolstack import is_dom0
from hanok.images.change import Emulator
from hanok.images.library import ImageLibrary
from hanok.model.architecture import Arch
from hanok.network.base import Networks
from hanok.network.choice import USER, choose_networks
from hanok.network.keepers import KeeperNetworks
from hanok.network.none import NoNetworks
from hanok.network.user import UserNetworks
from hanok.proc import Account, SystemRunner
from hanok.services.bundle import Services, make_services
from hanok.services.capacity import boot_overhead
from hanok.services.events import EventLog
from hanok.services.failpoints import Failpoints
from hanok.services.keeping import Clock
from hanok.services.machines import account_of
from hanok.services.parts import Parts, is_up
from hanok.services.shape import claimed
from hanok.store.base import Store
from hanok.store.sqlite import SqliteStore
from hanok.systemd.names import vm_limits
from hanok.systemd.scopes import Charge, NoScopes, Scopes, find_scopes

_log = logging.getLogger("hanokd")
_LOG_SIZE = 4 * 1024 * 1024
_IDLE_LOOK = 1.0
_IDLE_EXIT = 600.0
_DESCRIPTORS = 65_536
_BUILD_UID_OFFSET = 70_000


def main(arguments: list[str] | None = None) -> None:
    """Run the daemon until it is told to end (SIGTERM, SIGINT). VMs go on without it."""
    parser = argparse.ArgumentParser("hanokd", description="The daemon of Hanok.")
    parser.add_argument("--foreground", action="store_true", help="log to the terminal")
    parser.add_argument("--listen", metavar="ADDRESS:PORT", help="answer over the network as well")
    parser.add_argument("--version", action="version", version=f"hanokd {__version__}")
    options = parser.parse_args(arguments)
    try:
        listen = {} if options.listen is None else {"HANOK_LISTEN": options.listen}
        settings = load_settings({**os.environ, **listen})
        if not (options.foreground or settings.listen) and settings.idle_exit is None:
            settings = replace(settings, idle_exit=_IDLE_EXIT)
        prepare_home(settings)
        set_up_logging(settings, foreground=options.foreground)
        raise_descriptor_limit()
        with only_daemon(settings):
            asyncio.run(serve(settings))
    except HanokError as error:
        print(f"hanokd: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        sys.exit(error.exit_status)


def raise_descriptor_limit() -> None:
    """Allow the descriptors of several thousand VMs: each needs about five.

    Not more: programs that close all they might have inherited take long with a huge limit.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if most == resource.RLIM_INFINITY else min(most, _DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


def prepare_home(settings: Settings) -> None:
    """Make the data directory. Raises HostError when VMs' accounts could not reach it."""
    # VMs of an ordinary user run as himself: nobody else needs to come in.
    mode = 0o711 if os.geteuid() == 0 else 0o700
    for folder in (settings.home, settings.vms, settings.networks):
        folder.mkdir(mode=mode, parents=True, exist_ok=True)
        folder.chmod(mode)
    settings.images.mkdir(mode=0o755, parents=True, exist_ok=True)
    settings.keys.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() != 0:
        return
    for folder in settings.home.resolve().parents:
        if not folder.stat().st_mode & stat.S_IXOTH:
            raise HostError(
                f"the folder {folder} keeps other users out, so QEMU, which runs as one of its"
                f" own, cannot reach the data directory {settings.home}",
                hint=f"chmod o+x {folder}, or set HANOK_HOME to another place",
            )


def set_up_logging(settings: Settings, *, foreground: bool) -> None:
    """Log to the terminal, or to a file that is rotated."""
    handler: logging.Handler = logging.StreamHandler()
    if not foreground:
        handler = RotatingFileHandler(settings.log, maxBytes=_LOG_SIZE, backupCount=2)
    logging.basicConfig(
        level=logging.INFO,
        handlers=[handler],
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    logging.getLogger("qemu").setLevel(logging.WARNING)


@contextlib.contextmanager
def only_daemon(settings: Settings) -> Iterator[None]:
    """Hold the data directory's lock. Raises Conflict when another daemon has it."""
    with open(settings.lock, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another hanokd serves {settings.home} already",
                hint="use it, or set HANOK_HOME to another data directory",
            ) from None
        yield


class Server(uvicorn.Server):
    """uvicorn's server, without its habit of sending itself the signal again that ended it.

    ``beside`` is the server on TCP, if there is one: it ends at the same time.
    """

    beside: TlsServer | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end the serving, so that what follows it cleans up."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.end, number)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def end(self, number: int = signal.SIGTERM) -> None:
        """End the serving, on TCP as well."""
        for server in (self, self.beside):
            if server is not None:
                server.handle_exit(number, None)


async def serve(settings: Settings) -> None:
    """Take over what an earlier daemon left, then answer until told to end."""
    services = await make_daemon(settings)
    try:
        app = create_app(services)
        activity = Activity(app)
        server = Server(config_of(activity))
        async with contextlib.AsyncExitStack() as stack:
            if settings.listen is not None:
                door = stack.enter_context(listen_tcp(settings.listen))
                guard = Guard(activity, services.tokens, access_of(app))
                server.beside = await make_tls_server(services, guard, door)
            stack.enter_context(heeding_hangup(services, server))
            await services.departure.look_back()
            await services.recovery.run(await services.returning.uuids())
            await services.parts.scopes.adopt(settings.home)
            await services.departure.come_back()
            await services.supervisor.start()
            if server.beside is not None:
                await stack.enter_async_context(served_beside(server.beside, door))
                if settings.welcome is not None:
                    told = partial(enter, services, server.beside)
                    stack.enter_context(welcoming(settings.welcome, told))
            await serve_socket(settings, services, activity, server)
            await services.supervisor.close()
            await services.departure.leave()
    finally:
        await services.close()
        _log.info("hanokd ended; what ran goes on")


async def serve_socket(
    settings: Settings, services: Services, activity: Activity, server: Server
) -> None:
    """Answer on the unix socket until told to end."""
    listener = listen(settings.socket)
    watcher = asyncio.create_task(end_when_idle(settings, services, activity, server))
    _log.info("hanokd %s answers at %s", __version__, settings.socket)
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()
        settings.socket.unlink(missing_ok=True)


@contextlib.contextmanager
def heeding_hangup(services: Services, server: Server) -> Iterator[None]:
    """Let SIGHUP renew what is shown and known over the network, during the block.

    When the terminal of a daemon in the foreground is gone, the daemon ends as it ever did.
    """
    terminal = [number for number in (0, 1, 2) if os.isatty(number)]
    running: set[asyncio.Task[None]] = set()

    def heed() -> None:
        if 0 in terminal and not os.isatty(0):
            leave(terminal)
            server.end()
            return
        task = asyncio.create_task(renew(services, server.beside))
        running.add(task)
        task.add_done_callback(running.discard)

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, heed)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


def leave(descriptors: Sequence[int]) -> None:
    """Let these lead nowhere: what is written to a terminal that is gone fails, at the end too."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in descriptors:
        os.dup2(nowhere, number)
    os.close(nowhere)


@contextlib.asynccontextmanager
async def served_beside(server: TlsServer, door: socket.socket) -> AsyncIterator[None]:
    """Answer on TCP during the block."""
    serving = asyncio.create_task(server.serve(sockets=[door]))
    try:
        yield
    finally:
        server.should_exit = True
        await serving


def listen_tcp(where: Listen) -> socket.socket:
    """Return a listening TCP socket. Raises HostError when the address cannot be had."""
    try:
        return bind(where.address, where.port)
    except OSError as error:
        raise HostError(
            f"the address {where} cannot be listened at: {error.strerror}",
            hint="choose another by HANOK_LISTEN or 'hanok serve --listen ADDRESS:PORT'",
        ) from error


def listen(path: Path) -> socket.socket:
    """Return a listening unix socket that its owner alone may connect to."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    return listener


async def end_when_idle(
    settings: Settings, services: Services, activity: Activity, server: uvicorn.Server
) -> None:
    """End a daemon that a command started once no VM runs and nobody asks for anything."""
    while settings.idle_exit is not None:
        await asyncio.sleep(_IDLE_LOOK)
        if activity.idle_seconds() < settings.idle_exit:
            continue
        store = services.parts.store
        busy = any(is_up(vm) for vm in await store.vms())
        if not busy and not await store.operations(unfinished=True):
            server.should_exit = True
            return


async def make_daemon(settings: Settings, clock: Clock | None = None) -> Services:
    """Return the services on the backends that ``settings`` ask for; ``clock``: for tests."""
    store = SqliteStore(settings.database)
    await store.open()
    runner = SystemRunner()
    images = ImageLibrary(settings.images, runner, _build_account(settings), find_emulator)
    hypervisor, networks = await make_backends(settings, runner, images)
    scopes: Scopes = NoScopes()
    if settings.hypervisor != "fake":
        scopes = find_scopes(runner, partial(_charge_of, store, hypervisor))
        runner.on_spawn = scopes.put_soon
    parts = Parts(
        settings=settings,
        store=store,
        events=EventLog(store),
        hypervisor=hypervisor,
        networks=networks,
        images=images,
        runner=runner,
        failpoints=Failpoints(settings.failpoint),
        scopes=scopes,
    )
    return make_services(parts, clock)


def find_emulator(arch: Arch) -> Emulator:
    """Return what runs the small VMs that change disks of an architecture. Raises HostError."""
    row = find_row(arch)
    return Emulator(row.emulator, row.package, row.machine_alias, row.cpu_translated)


async def _charge_of(store: Store, hypervisor: Hypervisor, uuid: str) -> Charge | None:
    """Return what the scope of a VM may take: what placement counts for it."""
    record = await store.find_vm(uuid)
    if record is None:
        return None
    spec = claimed(record)  # what is to be plugged in while it runs has its room already
    overhead = hypervisor.overhead(spec.cpus, spec.memory, spec.tcg_buffer)
    overhead += boot_overhead(spec, hypervisor)
    account = account_of(record.uid)
    return Charge(
        vm_limits(spec.cpus, spec.memory, overhead), account.uid if account is not None else None
    )


def _build_account(settings: Settings) -> Account | None:
    uid = settings.uid_base + _BUILD_UID_OFFSET
    return Account(uid, uid) if os.geteuid() == 0 else None


async def make_backends(
    settings: Settings, runner: SystemRunner, images: ImageLibrary
) -> tuple[Hypervisor, Networks]:
    """Return the hypervisor and the networks. Raises InvalidInput for an unknown choice."""
    choice = settings.hypervisor
    if choice == "auto":
        choice = "xen" if is_dom0() else "qemu"
    if choice == "fake":
        return FakeHypervisor(settings.home / "fake"), NoNetworks()
    networks = KeeperNetworks(settings.networks, settings.home, runner)
    if choice == "xen":
        return XenHypervisor(runner, settings.home, networks), networks
    if choice == "qemu":
        qemu = _make_qemu(settings, runner, images)
        kind, reason = await choose_networks(settings.network, settings.home, runner)
        return qemu, UserNetworks(reason, qemu.reach) if kind == USER else networks
    raise InvalidInput(
        f"{settings.hypervisor!r} is no hypervisor that Hanok has",
        field="HANOK_HYPERVISOR",
        expected="auto, qemu, xen or fake",
    )


def _make_qemu(settings: Settings, runner: SystemRunner, images: ImageLibrary) -> QemuHypervisor:
    async def probe_guest() -> ProbeGuest | None:
        image = await asyncio.to_thread(images.find, "micro")
        if image is None:
            return None
        kernel, folder = image.kernels[0], images.path(image)
        return ProbeGuest(
            kernel=folder / kernel.vmlinuz,
            initrd=folder / kernel.initrd,
            cmdline=f"{kernel.cmdline} hanok.probe",
            expected=b"hanok: this guest runs",
        )

    return QemuHypervisor(
        runner=runner,
        home=settings.home,
        probe_guest=probe_guest,
        cache=settings.home / "acceleration.json",
        kvm_limit=settings.kvm_limit,
    )


if __name__ == "__main__":
    main()
