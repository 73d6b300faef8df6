"""An ordinary user who exists for the processes of one test only, with the wheel installed.

His processes are in a mount namespace with a passwd(5), a subuid(5) and a /dev/net/tun of their
own: nothing of the machine is changed. uids like his belong to nobody.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UID = 1_699_800_001
NAME = "hanok-test"
_ENTER = """
set -eu
files=$1 tun=$2 uid=$3
shift 3
for name in passwd subuid subgid; do mount --bind "$files/$name" "/etc/$name"; done
mount -t tmpfs -o mode=755,size=64k none /dev/net
[ "$tun" = none ] || mknod -m "$tun" /dev/net/tun c 10 200
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"
"""


@dataclass
class Ordinary:
    """The user: ``home`` is his, ``files`` what stands in for files of /etc.

    ``tun``: the mode of /dev/net/tun, none: there is no such device. ``environ`` is added to the
    little that his processes have.
    """

    home: Path
    files: Path
    venv: Path
    tun: str
    environ: Mapping[str, str] = field(default_factory=dict)

    @property
    def data(self) -> Path:
        """Where Hanok keeps his data, by XDG."""
        return self.home / ".local/share/hanok"

    def __call__(
        self, *arguments: str, input: bytes | None = None, limit: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        """Run ``hanok`` as the user and return what it gave."""
        return self.run(str(self.venv / "bin/hanok"), *arguments, input=input, limit=limit)

    def run(
        self, *argv: str, input: bytes | None = None, limit: float = 300
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program as the user and return what it gave."""
        environ = {
            "HOME": str(self.home),
            "PATH": f"{self.venv}/bin:/usr/local/bin:/usr/bin:/bin",
            "NO_COLOR": "1",
            "HANOK_WARM": "0",
            **{name: value for name, value in os.environ.items() if name.endswith("_proxy")},
            **self.environ,
        }
        spaces = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        return subprocess.run(
            [*spaces, str(self.files), self.tun, str(UID), *argv],
            input=input,
            stdin=None if input is not None else subprocess.DEVNULL,
            capture_output=True,
            cwd="/",
            env=environ,
            timeout=limit,
        )

    def ok(self, *arguments: str, input: bytes | None = None) -> str:
        """Run ``hanok``, which must succeed, and return what it printed."""
        done = self(*arguments, input=input)
        assert done.returncode == 0, done.stderr.decode() + done.stdout.decode()
        return done.stdout.decode()

    def json(self, *arguments: str) -> Any:
        """Run ``hanok`` with --json and return what it printed."""
        return json.loads(self.ok(*arguments, "--json"))


def make_ordinary(
    folder: Path, venv: Path, *, tun: str, subordinate: bool = True, **environ: str
) -> Ordinary:
    """Return a user whose home is made in ``folder``."""
    home, files = folder / "u", folder / "etc"
    home.mkdir(mode=0o700)
    os.chown(home, UID, UID)
    files.mkdir(mode=0o755)
    line = f"{NAME}:x:{UID}:{UID}::{home}:/bin/sh\n"
    texts = {"passwd": Path("/etc/passwd").read_text() + line}
    texts["subuid"] = texts["subgid"] = f"{NAME}:{UID + 1}:65536\n" if subordinate else "\n"
    for name, text in texts.items():
        (files / name).write_text(text)
    return Ordinary(home, files, venv, tun, environ)


def find_python() -> Path | None:
    """Return a Python 3.11 or newer that every user may run, None when there is none."""
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        found = shutil.which(name, path="/usr/bin:/usr/local/bin")
        if found is None:
            continue
        test = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
        if subprocess.run([found, "-c", test], check=False, capture_output=True).returncode == 0:
            return Path(found)
    return None
