"""``hanok console`` and ``hanok proxy``: standard input and output joined to a guest's stream."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

import click

from hanok.cli.base import Example, Session, common_options, complete_vm, pass_session
from hanok.client.tunnel import Tunnel, open_console, open_tcp

_DETACH = b"\x1d"  # Ctrl-], as in telnet and virsh
_STDIN, _STDOUT = 0, 1
_CHUNK = 32768


@click.command(
    "console",
    cls=Example,
    examples=(
        "hanok console web",
        "printf 'root\\n' | hanok console --linger 5 web",
        "hanok console win --vnc",
    ),
)
@click.argument("name", shell_complete=complete_vm)
@click.option(
    "--linger",
    type=click.FloatRange(min=0),
    default=2,
    show_default=True,
    metavar="SECONDS",
    help="When piped input ends: go on until the guest is silent for so long.",
)
@click.option(
    "--vnc",
    is_flag=True,
    help="Its screen instead: print where a VNC viewer finds it and with what password.",
)
@common_options
@pass_session
def console(session: Session, name: str, linger: float, vnc: bool) -> None:
    """Use the serial console of the VM NAME. Ctrl-] leaves it; the VM goes on.

    With --vnc it leads viewers on this machine to the VM's screen, on whatever host that is, until
    Ctrl-C.
    """
    if vnc:
        from hanok.cli.screen import lead_viewers

        lead_viewers(session, name)
        return
    vm = session.client.vm(name)
    if session.out.as_json:
        session.out.json({"name": vm["name"], "uuid": vm["uuid"], "state": vm["state"]})
        return
    with open_console(session.client, name) as tunnel:
        if os.isatty(_STDIN):
            session.out.note(f"Console of {name}. Ctrl-] leaves it; Enter may bring a prompt.")
        with _raw_terminal():
            detached = _join(tunnel, detach=_DETACH, linger=linger)
        if os.isatty(_STDIN):
            session.out.note(
                f"\nLeft the console of {name}." if detached else f"\nThe console of {name} ended."
            )


@click.command(
    "proxy",
    cls=Example,
    examples=("hanok proxy db 5432", "ssh -o ProxyCommand='hanok proxy web 22' debian@web"),
)
@click.argument("name", shell_complete=complete_vm)
@click.argument("port", type=click.IntRange(1, 65535))
@common_options
@pass_session
def proxy(session: Session, name: str, port: int) -> None:
    """Connect standard input and output to the TCP port PORT of the guest of NAME."""
    with open_tcp(session.client, name, port) as tunnel:
        _join(tunnel, detach=None, linger=None)


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Give every key to the guest, and the terminal back as it was, however this ends."""
    if not os.isatty(_STDIN):
        yield
        return
    import termios
    import tty

    before = termios.tcgetattr(_STDIN)

    def ended(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    caught = (signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.signal(number, ended) for number in caught}
    try:
        tty.setraw(_STDIN)
        yield
    finally:
        termios.tcsetattr(_STDIN, termios.TCSADRAIN, before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


class _Sender(threading.Thread):
    """Sends standard input until its end or the detach key."""

    def __init__(self, tunnel: Tunnel, detach: bytes | None) -> None:
        super().__init__(daemon=True)
        self._tunnel = tunnel
        self._detach = detach
        self.ended = threading.Event()
        self.detached = False

    def run(self) -> None:
        """Read and send."""
        while data := self._read():
            if self._detach is not None and self._detach in data:
                self._tunnel.send(data.partition(self._detach)[0])
                self.detached = True
                self._tunnel.close()
                return
            self._tunnel.send(data)
        self.ended.set()
        if self._detach is None:
            self._tunnel.send(b"")  # no more input; the other direction stays open

    @staticmethod
    def _read() -> bytes:
        try:
            return os.read(_STDIN, _CHUNK)
        except OSError:
            return b""  # the terminal is gone


def _join(tunnel: Tunnel, *, detach: bytes | None, linger: float | None) -> bool:
    """Pass bytes both ways until the guest's side ends; return whether the user detached.

    With ``linger`` it also ends when the input has ended and nothing came for so many seconds.
    """
    sys.stdout.flush()
    sender = _Sender(tunnel, detach)
    sender.start()
    while True:
        waits = linger is not None and sender.ended.is_set()
        try:
            # Without a limit the end of input could not be seen while the guest is silent.
            data = tunnel.receive(linger if waits else (None if linger is None else 0.2))
        except TimeoutError:
            if waits:
                return sender.detached
            continue
        if data is None:
            return sender.detached
        _write(data)


def _write(data: bytes) -> None:
    while data:
        data = data[os.write(_STDOUT, data) :]
