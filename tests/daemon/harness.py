"""A real daemon in a process of its own, on a data directory that is removed afterwards."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hanok.client.client import Client
from hanok.client.daemon import DaemonFinder
from hanok.client.http import Transport
from hanok.errors import DaemonUnreachable
from hanok.proc import find_owned, is_alive
from tests.machine import patient, put_verdict

START_LIMIT = 40.0


@dataclass
class Daemon:
    """One data directory and the daemon that serves it."""

    home: Path
    hypervisor: str
    images: Path
    environ: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    def start(self, failpoint: str | None = None) -> None:
        """Start the daemon and wait until it answers, or has died at its failpoint."""
        environ = {
            **os.environ,
            **self.environ,
            "HANOK_HOME": str(self.home),
            "HANOK_HYPERVISOR": self.hypervisor,
            "HANOK_IMAGES": str(self.images),
        }
        if failpoint is not None:
            environ["HANOK_FAILPOINT"] = failpoint
        with open(self.home / "test.log", "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "hanok.app", "--foreground"],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_until(self._answers_or_died, START_LIMIT, "the daemon answers")

    def _answers_or_died(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            return True
        try:
            self.client.version()
        except DaemonUnreachable:
            return False
        return True

    @property
    def client(self) -> Client:
        """A client that starts no daemon by itself."""
        return Client(Transport(DaemonFinder(self.home, start=False).connect))

    def kill(self) -> None:
        """End the daemon as by kill -9."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(patient(10))

    def wait_died(self) -> None:
        """Wait until the daemon has killed itself at its failpoint."""
        assert self.process is not None
        assert self.process.wait(patient(120)) == -signal.SIGKILL

    def stop(self) -> None:
        """End the daemon as an administrator does."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(patient(30)) == 0, "SIGTERM does not end the daemon cleanly"
            assert not (self.home / "hanokd.sock").exists()

    def done(self, operation: Any) -> Any:
        """Wait for an operation to end well and return it."""
        return self.client.finish(operation)

    def run(self, name: str, **fields: Any) -> Any:
        """Create a VM, wait until it is ready, and return it as lists show it."""
        spec = {"name": name, "image": "micro", "memory": "128M", "disk": "1G", **fields}
        self.done(self.client.run(spec))
        return self.client.vm(name)

    def sh(self, name: str, script: str, limit: float = 60) -> str:
        """Run a shell script in a guest, see it succeed, and return what it printed.

        ``limit`` is in seconds.
        """
        command = ["sh", "-c", script]
        answer = self.client.execute(name, command, stdin=None, timeout=patient(limit))
        assert answer["exit_status"] == 0, answer
        return base64.b64decode(answer["stdout"]).decode()

    def freeze(self, template: str, source: str) -> Any:
        """Make a template and return it as lists show it."""
        self.done(self.client.create_template(template, source))
        return self.client.template(template)

    def clone(self, template: str, name: str, **fields: Any) -> list[str]:
        """Make clones and return their names."""
        wanted = {"template": template, "name": name, **fields}
        names = self.done(self.client.clone(wanted))["result"]["names"]
        assert isinstance(names, list)
        return names

    def empty(self) -> None:
        """Delete every VM, then every template."""
        for vm in self.client.vms():
            self.done(self.client.delete(vm["name"], force=True))
        for template in self.client.templates():
            self.client.delete_template(template["name"])

    def log(self) -> str:
        """Return what the daemon said."""
        return (self.home / "test.log").read_text(errors="replace")

    def left_over(self) -> list[str]:
        """Name what a daemon without VMs must not leave: processes, folders, sockets."""
        found = [
            f"process {process.pid} {process.owner.kind} {process.owner.ident}"
            for process in find_owned(self.home)
            if is_alive(process.pid)
        ]
        for folder in (self.home / "vms", self.home / "networks", self.home / "templates"):
            if folder.exists():
                found += [str(path) for path in folder.rglob("*")]
        return found

    def close(self) -> None:
        """End the daemon, then everything that is still there."""
        try:
            self.stop()
        finally:
            self._clear()

    def _clear(self) -> None:
        left = list(find_owned(self.home))
        for process in left:
            with suppress(ProcessLookupError):  # one that ended by itself meanwhile
                os.kill(process.pid, signal.SIGKILL)
        # What still writes would keep the folder from being removed.
        wait_until(lambda: not any(is_alive(one.pid) for one in left), 10, "they have ended")
        shutil.rmtree(self.home, ignore_errors=True)


@contextmanager
def new_daemon(hypervisor: str, images: Path, **environ: str) -> Iterator[Daemon]:
    """Give a daemon that has been started; at the end nothing of it may be left."""
    home = Path(tempfile.mkdtemp(prefix="hk-", dir="/tmp"))
    home.chmod(0o711)
    put_verdict(home)
    daemon = Daemon(home, hypervisor, images, environ)
    try:
        daemon.start()
        yield daemon
        daemon.empty()
        daemon.stop()
        assert daemon.left_over() == []
    except BaseException:
        print(daemon.log()[-6000:])
        raise
    finally:
        daemon.close()


def wait_until(holds: Callable[[], bool], limit: float, what: str) -> None:
    """Wait until ``holds``; fail, naming ``what``, after ``limit`` seconds (see machine.py)."""
    limit = patient(limit)
    deadline = time.monotonic() + limit
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(f"after {limit:g} s it does not hold that {what}")
        time.sleep(0.02)
