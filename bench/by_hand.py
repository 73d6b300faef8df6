"""A guest of Xen without Hanok, in its Dom0: what people type, and the seconds to an answer.

``python3 by_hand.py MODE SEED NAME`` prints them. SEED is a copy of the seed of Hanok's guest,
which gives this one the same NAME: that it has it is checked once it has answered, since a guest
whose seed cannot be read boots too, and sooner. It runs there as it is: nothing but the standard
library.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

_IMAGES = Path("/var/lib/hanok/images")
_LIMIT = 300.0
# Seconds between pings; in mode full each byte costs the guest milliseconds.
_PAUSES = {"para": 0.2, "hybrid": 0.2, "full": 2.0}
_AGENT = "org.qemu.guest_agent.0"
_TYPES = {"para": "pv", "hybrid": "pvh", "full": "hvm"}


def main() -> None:
    """Start the guest once, end it, print the seconds."""
    mode, seed, name = sys.argv[1:]
    folder, image = _micro()
    kernel = next(one for one in image["kernels"] if mode in one["modes"])
    # Short: the path of a unix socket lies below.
    with tempfile.TemporaryDirectory(prefix="hand-", dir="/run") as work:
        here = Path(work)
        started = time.perf_counter()
        disk, base = here / "disk.qcow2", folder / image["disk"]
        _run(
            *("qemu-img", "create", "-q", "-f", "qcow2", "-F", image["disk_format"]),
            *("-b", str(base), str(disk), "512M"),
        )
        config = here / "guest.cfg"
        config.write_text(_config(mode, folder, kernel, here, seed))
        try:
            _run("xl", "create", "-q", str(config))
            with socket.socket(socket.AF_UNIX) as agent:
                agent.connect(str(here / "agent.sock"))
                _wait_for_agent(agent, _PAUSES[mode])
                seconds = time.perf_counter() - started
                _check_name(agent, name)
            print(f"{seconds:.3f}")
        finally:
            subprocess.run(["xl", "destroy", "by-hand"], check=False)


def _micro() -> tuple[Path, Any]:
    for path in _IMAGES.glob("*/image.json"):
        image = json.loads(path.read_text())
        if image["ref"] == "micro":
            return path.parent, image
    raise SystemExit(f"there is no image micro in {_IMAGES}")


def _config(mode: str, folder: Path, kernel: Any, here: Path, seed: str) -> str:
    agent = f"{here}/agent.sock"
    file = kernel["bzimage"] if mode == "full" else kernel["vmlinuz"]
    last = "xen_nopv" if mode == "full" else "console=hvc0"
    common = f"""
name = "by-hand"
type = "{_TYPES[mode]}"
vcpus = 1
memory = 128
tsc_mode = "native"
kernel = "{folder / file}"
ramdisk = "{folder / kernel["initrd"]}"
cmdline = "{kernel["cmdline"]} {last}"
"""
    if mode == "full":
        return f"""{common}
xen_platform_pci = 0
vga = "none"
vnc = 0
serial = [ "pty", "unix:{agent},server=on,wait=off" ]
hdtype = "ahci"
disk = [ "format=qcow2,vdev=hda,access=rw,target={here}/disk.qcow2",
  "format=raw,vdev=hdb,access=ro,devtype=cdrom,target={seed}" ]
"""
    # The seed too is to be written to: QEMU's back end serves no raw file that is read-only.
    return f"""{common}
disk = [ "format=qcow2,vdev=xvda,access=rw,backendtype=qdisk,target={here}/disk.qcow2",
  "format=raw,vdev=xvdb,access=rw,backendtype=qdisk,target={seed}" ]
channel = [ "connection=pty,name=unused", "connection=socket,path={agent},name={_AGENT}" ]
"""


def _wait_for_agent(agent: socket.socket, pause: float) -> None:
    """Ping every ``pause`` seconds: a port that nobody has opened yet echoes, and holds little."""
    deadline = time.monotonic() + _LIMIT
    seen, pinged = b"", -pause
    while (now := time.monotonic()) < deadline:
        if now >= pinged + pause:
            pinged = now
            agent.settimeout(_LIMIT)
            agent.sendall(b'{"execute": "guest-ping"}\n')
        agent.settimeout(max(pinged + pause - now, 0.01))
        try:
            said = agent.recv(4096)
        except TimeoutError:
            continue
        if not said:
            break
        seen += said
        if b'"return"' in seen:
            return
    raise SystemExit("the guest did not answer")


def _check_name(agent: socket.socket, name: str) -> None:
    """Check that the guest has read its seed; answers to pings may come first."""
    agent.settimeout(_LIMIT)
    agent.sendall(b'{"execute": "guest-get-host-name"}\n')
    seen = b""
    while b'"host-name"' not in seen or not seen.endswith(b"\n"):
        said = agent.recv(4096)
        if not said:
            raise SystemExit("the guest did not tell its name")
        seen += said
    if f'"host-name": "{name}"'.encode() not in seen:
        raise SystemExit(f"the guest is not {name}: it has not read its seed; it said {seen!r}")


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
