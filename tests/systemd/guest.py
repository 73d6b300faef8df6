"""A Debian with a real systemd and hanokd as its unit: a VM whose own VMs are emulated twice."""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.daemon.harness import new_daemon, wait_until
from tests.nested.host import ARCHIVE, HOME, KVM_SPEC, PYTHON, NestedHost, copy_payload, say
from tests.nested.payload import CHECKOUT, IMAGES

# The same image as the nested host's, so that it is built once for both.
_SPEC: dict[str, Any] = {**KVM_SPEC, "memory": "3G", "disk": "8G"}
_INSTALL = f"""
set -eu
cat {ARCHIVE}.* | tar -C / --zstd -x
rm {ARCHIVE}.*
# Software emulation only: KVM in an emulated machine is slower still.
for module in kvm_amd kvm_intel kvm; do echo "install $module /bin/false"; done \
  >/etc/modprobe.d/no-kvm.conf
modprobe -r kvm_amd kvm_intel kvm || :
rm -f /dev/kvm
sed 's|^ExecStart=.*|ExecStart={PYTHON} -P -m hanok.cli serve|' \\
  /{CHECKOUT}/packaging/hanokd.service >/etc/systemd/system/hanokd.service
mkdir -p /etc/systemd/system/hanokd.service.d
cat >/etc/systemd/system/hanokd.service.d/test.conf <<END
[Service]
Environment=HANOK_IMAGES=/{IMAGES} HANOK_WARM=0 PYTHONDONTWRITEBYTECODE=1
END
systemctl daemon-reload
systemctl enable --now hanokd
"""


class SystemdHost(NestedHost):
    """The host, with what the tests ask of it."""

    def systemctl(self, *arguments: str) -> None:
        """Run systemctl and see it succeed."""
        self.sh(shlex.join(["systemctl", *arguments]), 400)

    def wait_answering(self) -> None:
        """Wait until the daemon there answers."""
        command = f"HANOK_HOME={HOME} {PYTHON} -P -m hanok.cli list --json >/dev/null 2>&1"
        script = f"test -S {HOME}/hanokd.sock && {command} && echo yes || :"
        wait_until(lambda: self.ask(script).strip() == "yes", 300, "the unit's daemon answers")

    def pid(self, vm: str) -> int:
        """Return the process of the VM with this uuid."""
        return int(self.sh(f"cat {HOME}/vms/{vm}/m/qemu.pid"))

    def cgroup(self, pid: int) -> str:
        """Return the cgroup that a process is in."""
        return self.sh(f"cat /proc/{pid}/cgroup").strip().removeprefix("0::")

    def owned(self) -> dict[int, tuple[str, str]]:
        """Return the mark and the cgroup of each detached process of the daemon there."""
        found = self.sh(
            f"cd /{CHECKOUT} && {PYTHON} -P -c 'import json; from pathlib import Path;"
            " from hanok.proc import find_owned; print(json.dumps([(p.pid, p.owner.kind,"
            ' Path(f"/proc/{p.pid}/cgroup").read_text().strip())'
            f' for p in find_owned(Path("{HOME}"))]))\''
        )
        return {pid: (kind, group) for pid, kind, group in json.loads(found)}


@contextlib.contextmanager
def systemd_host(images: Path, payload: Path) -> Iterator[SystemdHost]:
    """Give such a host with ``payload`` in it and its unit running; at the end it is gone."""
    with new_daemon("qemu", images, HANOK_WARM="0") as daemon:
        say("booting the host with systemd")
        daemon.done(daemon.client.run(_SPEC))
        copy_payload(daemon, payload)
        host = SystemdHost(daemon)
        host.sh(_INSTALL, 400)
        host.wait_answering()
        say("its unit answers")
        yield host
