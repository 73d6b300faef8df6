"""The screens of VMs: ``hanok screenshot``, and where viewers find one."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path

import click

from hanok.cli.base import Example, Session, common_options, complete_vm, pass_session
from hanok.client.client import Client
from hanok.client.tunnel import Tunnel, open_screen
from hanok.errors import HanokError, InvalidInput

_LOOPBACK = "127.0.0.1"
_CHUNK = 32768
_MOST_VIEWERS = 8


@click.command(
    "screenshot",
    cls=Example,
    examples=("hanok screenshot old out.png", "hanok screenshot old - | display"),
)
@click.argument("name", shell_complete=complete_vm)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@common_options
@pass_session
def screenshot(session: Session, name: str, file: Path) -> None:
    """Save what the screen of the VM NAME shows to FILE, a PNG; - is standard output."""
    picture = session.client.screenshot(name)
    if str(file) == "-":
        sys.stdout.buffer.write(picture)
        return
    _write(file, picture)
    if session.out.as_json:
        session.out.json({"name": name, "file": str(file), "size": len(picture)})
    else:
        session.out.line(f"{file} has what the screen of {name} shows.")


def _write(file: Path, picture: bytes) -> None:
    """Write a file that is whole or not there. Raises InvalidInput."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        if file.exists() and not file.is_file():  # a device or a pipe takes it as it is
            file.write_bytes(picture)
            return
        draft.write_bytes(picture)
        draft.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
        raise InvalidInput(
            f"{file} cannot be written: {error.strerror}", field="FILE", expected="a file's name"
        ) from None


def lead_viewers(session: Session, name: str) -> None:
    """Print where viewers find the screen of VM ``name``, and lead them there until Ctrl-C.

    They connect to this machine's loopback; the way on is that of every command, so that it works
    to remote hosts and nothing there listens to anyone.
    """
    admitted = session.client.admit_viewers(name)
    with socket.create_server((_LOOPBACK, 0)) as server:
        port = server.getsockname()[1]
        if session.out.as_json:
            where = {"name": name, "address": _LOOPBACK, "port": port}
            session.out.json({**where, **admitted}, compact=True)
        else:
            minutes = admitted["seconds"] // 60
            session.out.line(f"The screen of {name} is at {_LOOPBACK}, port {port}, by VNC:")
            session.out.line(f"  vncviewer {_LOOPBACK}::{port}")
            session.out.line(f"  password: {admitted['password']}")
            session.out.note(
                f"Viewers get in for {minutes} minutes, and then stay. Ctrl-C ends this."
            )
        sys.stdout.flush()
        _serve(session, name, server)


def _serve(session: Session, name: str, server: socket.socket) -> None:
    places = threading.BoundedSemaphore(_MOST_VIEWERS)
    while True:
        viewer, _ = server.accept()
        if not places.acquire(blocking=False):
            viewer.close()
            continue

        def lead(viewer: socket.socket = viewer) -> None:
            try:
                _lead(session.client, name, viewer)
            except HanokError as error:
                session.out.error(error)
            finally:
                viewer.close()
                places.release()

        threading.Thread(target=lead, daemon=True).start()


def _lead(client: Client, name: str, viewer: socket.socket) -> None:
    """Pass bytes between a viewer and the screen until either ends."""
    with open_screen(client, name) as tunnel:
        sender = threading.Thread(target=_send, args=(viewer, tunnel), daemon=True)
        sender.start()
        with contextlib.suppress(OSError):
            while (data := tunnel.receive()) is not None:
                viewer.sendall(data)
        with contextlib.suppress(OSError):
            viewer.shutdown(socket.SHUT_RDWR)
        sender.join()


def _send(viewer: socket.socket, tunnel: Tunnel) -> None:
    with contextlib.suppress(OSError):
        while data := viewer.recv(_CHUNK):
            tunnel.send(data)
    tunnel.close()
