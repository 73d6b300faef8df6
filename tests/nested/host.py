"""The nested host: a Debian that Hanok runs in software emulation, whose emulated CPU has SVM.

Its kernel is on the emulated CPU itself, with KVM; or it is the Dom0 of a Xen below it.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import shlex
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from hanok.errors import AgentUnavailable
from hanok.images.recipes import LAB_XEN
from hanok.units import MIB
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.nested.payload import CHECKOUT, IMAGES

NAME = "nested"
PYTHON = f"/{CHECKOUT}/.venv/bin/python"
# How much longer tests may wait there: each of its CPUs is emulated, and KVM's guests are slower.
PATIENCE = 10
HOME = "/var/lib/hanok"
_COMMON: dict[str, Any] = {
    "name": NAME,
    "cpus": 2,
    "disk": "36G",
    # It reaches nothing and nothing reaches it, but for its agent.
    "networks": [],
    "ready": {"timeout": 900},
}
KVM_SPEC: dict[str, Any] = {
    **_COMMON,
    "image": "debian:12",
    # So much that a hundred clones are admitted there; the disk is thin.
    "memory": "8G",
    "tcg_buffer": "512M",
    "packages": [
        *("qemu-system-x86", "qemu-utils", "python3", "zstd", "procps"),
        *("dnsmasq-base", "passt", "nftables", "iproute2", "openssh-client"),
    ],
}
_XEN_SPEC: dict[str, Any] = {
    **_COMMON,
    "image": LAB_XEN,
    # Dom0 has 1 GiB of it.
    "memory": "4G",
    "mode": "para",
    "nested": True,
}
ARCHIVE = "/var/tmp/payload"
# An agent takes no file of any size.
_PIECE = 64 * MIB
_UNPACK = f"""
set -eu
cat {ARCHIVE}.* | tar -C / --zstd -x
rm {ARCHIVE}.*
"""
_PREPARE_KVM = f"""{_UNPACK}
modprobe kvm_amd
udevadm settle
ls -l /dev/kvm
systemd-run --quiet --unit=hanokd --setenv=HANOK_HOME={HOME} --setenv=HANOK_IMAGES=/{IMAGES} \\
  --setenv=HANOK_KVM_LIMIT=240 {PYTHON} -P -m hanok.app --foreground
"""
# The daemon of the image would look at the same Xen.
_PREPARE_XEN = f"""{_UNPACK}
systemctl stop hanokd
xl info | grep -E '^(xen_version|virt_caps|free_memory)'
systemd-run --quiet --unit=hanokd-tests --setenv=HANOK_HOME={HOME} \\
  --setenv=HANOK_IMAGES=/{IMAGES} {PYTHON} -P -m hanok.app --foreground
"""
_ENVIRONMENT = {
    "HANOK_TEST_IMAGES": f"/{IMAGES}",
    "HANOK_TEST_PATIENCE": str(PATIENCE),
    "PYTHONUNBUFFERED": "1",
}
# A service of its own: it goes on between the questions how far it is.
_SCRIPT = "/run/tests"
_RUN = f"""
cd /{CHECKOUT}
export {{assignments}}
{{command}} >/run/output 2>&1
echo $? >/run/status
"""
_STATUS = "/run/status"
_OUTPUT = "/run/output"
_LOOK_EVERY = 5.0
_SILENCE = 900.0


class Failed(Exception):
    """Something in the nested host did not end well."""


@dataclass(frozen=True)
class Kind:
    """What a nested host is made of: a VM's definition, and what makes it ready for tests.

    ``environment``: what tests there are told besides.
    """

    spec: dict[str, Any]
    prepare: str
    environment: Mapping[str, str] = field(default_factory=dict)


KINDS = {
    "kvm": Kind(KVM_SPEC, _PREPARE_KVM, {"HANOK_TEST_ACCELERATION": f"{HOME}/acceleration.json"}),
    "xen": Kind(_XEN_SPEC, _PREPARE_XEN),
}


@dataclass(frozen=True)
class NestedHost:
    """A nested host that runs, and the daemon outside that runs it. ``environment``: see Kind."""

    daemon: Daemon
    environment: Mapping[str, str] = field(default_factory=dict)

    def sh(self, script: str, limit: float = 300) -> str:
        """Run a shell script in it and return what it printed."""
        return self.daemon.sh(NAME, script, limit)

    def ask(self, script: str) -> str:
        """Run a script that may run twice: a busy host's agent may not answer for a while.

        Raises Failed when the host itself has crashed.
        """
        retrying = Retrying(
            stop=stop_after_delay(_SILENCE),
            wait=wait_fixed(_LOOK_EVERY),
            retry=retry_if_exception_type(AgentUnavailable),
            reraise=True,
        )
        return retrying(self._sh_alive, script)

    def _sh_alive(self, script: str) -> str:
        vm = self.daemon.client.vm(NAME)
        if vm["state"] == "failed":
            raise Failed(f"the nested host: {vm['reason']}")
        return self.sh(script)

    def answers(self) -> bool:
        """Whether the daemon there has its socket."""
        return self.ask(f"test -S {HOME}/hanokd.sock && echo yes || :").strip() == "yes"

    def hanok(self, *arguments: str) -> Any:
        """Run the command ``hanok`` in it, with the daemon there; return its JSON."""
        command = shlex.join([PYTHON, "-P", "-m", "hanok.cli", *arguments, "--json"])
        return json.loads(self.sh(f"HANOK_HOME={HOME} {command}"))

    def pytest(self, arguments: Sequence[str], limit: float) -> int:
        """Run tests in it, print what they print as it comes, and return pytest's status.

        ``limit``: seconds, after which they are ended. Raises Failed then.
        """
        command = shlex.join([PYTHON, "-m", "pytest", *arguments])
        script = _RUN.format(assignments=" ".join(self._assignments()), command=command).encode()
        self.daemon.client.write_file(NAME, _SCRIPT, io.BytesIO(script), len(script))
        self.sh(f"rm -f {_STATUS}; : >{_OUTPUT}")
        self.sh(f"systemd-run --quiet --collect --unit=tests sh {_SCRIPT}")
        shown, deadline = 0, time.monotonic() + limit
        while True:
            status = self.ask(f"cat {_STATUS} 2>/dev/null || :").strip()
            news = self.ask(f"tail -c +{shown + 1} {_OUTPUT}")
            shown += len(news.encode())
            sys.stdout.write(news)
            sys.stdout.flush()
            if status:
                return int(status)
            if time.monotonic() > deadline:
                self.sh("systemctl kill --signal=INT tests || :")
                raise Failed(f"the tests did not end within {limit:g} s")
            time.sleep(_LOOK_EVERY)

    def _assignments(self) -> list[str]:
        told = {**_ENVIRONMENT, **self.environment}
        return [f"{name}={value}" for name, value in told.items()]


@contextlib.contextmanager
def nested_host(kind: Kind, images: Path, payload: Path) -> Iterator[NestedHost]:
    """Give a nested host with ``payload`` in it; at the end it is gone."""
    with new_daemon("qemu", images) as daemon:
        say("booting the nested host (its image is built first when it is missing)")
        daemon.done(daemon.client.run(kind.spec))
        say("it is up; copying")
        copy_payload(daemon, payload)
        host = NestedHost(daemon, kind.environment)
        say(host.sh(kind.prepare, 600).strip())
        wait_until(host.answers, 60, "the daemon in the nested host answers")
        yield host


def copy_payload(daemon: Daemon, payload: Path) -> None:
    """Write the payload into the host, in pieces that its agent takes."""
    with payload.open("rb") as source:
        for number in itertools.count():
            if not (piece := source.read(_PIECE)):
                return
            path = f"{ARCHIVE}.{number:03}"
            daemon.client.write_file(NAME, path, io.BytesIO(piece), len(piece))


def say(text: str) -> None:
    """Print a line of progress with the time."""
    print(f"{time.strftime('%H:%M:%S')} nested: {text}", flush=True)
