"""Many clones at once, each with an identity of its own, read inside the guests alone."""

from __future__ import annotations

import base64
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hanok.model.image import Image
from tests.daemon.harness import Daemon, new_daemon
from tests.machine import patient

pytestmark = pytest.mark.vm

# The image of the example's web server, so that it is built once.
PACKAGES = ["nginx", "fcgiwrap", "postgresql-client"]
FACTS = """
echo "name $(hostname)"
echo "clock $(date +%s)"
echo "machine-id $(cat /etc/machine-id)"
echo "uuid $(cat /sys/class/dmi/id/product_uuid)"
echo "boot-id $(cat /proc/sys/kernel/random/boot_id)"
echo "mac $(cat /sys/class/net/eth0/address)"
echo "address $(ip -4 -o addr show dev eth0 | sed -n 's/.* inet \\([0-9.]*\\).*/\\1/p')"
echo "random $(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')"
echo "random-again $(head -c 32 /dev/urandom | od -An -v -tx1 | tr -d ' \\n')"
for key in /etc/ssh/ssh_host_*.pub; do
  [ -e "$key" ] && echo "host-key $(cut -d' ' -f2 "$key")"
done
exit 0
"""


@pytest.fixture(scope="module")
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon that may give away more than the host has."""
    _, folder = micro_image
    policy = {"HANOK_CPU_RATIO": "512", "HANOK_MEMORY_POLICY": "shared"}
    with new_daemon("qemu", folder.parent, **policy, HANOK_MEMORY_FACTOR="16") as started:
        yield started


def look_into(daemon: Daemon, name: str) -> dict[str, str]:
    """Return what a guest says of itself; its clock, in whole seconds, must be right."""
    before = time.time()
    answer = daemon.client.execute(name, ["sh", "-c", FACTS], stdin=None, timeout=patient(120))
    after = time.time()
    assert answer["exit_status"] == 0
    lines = base64.b64decode(answer["stdout"]).decode().splitlines()
    facts = {key: value for key, _, value in (line.partition(" ") for line in lines)}
    assert before - 2 < int(facts.pop("clock")) <= after + 1
    return facts


def check_all_different(daemon: Daemon, names: list[str], keys: set[str]) -> None:
    """Look into all guests and see nothing twice."""
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: look_into(daemon, name), names))
    assert [facts["name"] for facts in found] == names
    assert set(found[0]) == keys
    for key in keys - {"random-again"}:
        values = Counter(facts[key] for facts in found)
        assert len(values) == len(names), f"{key}: {values.most_common(3)}"
    drawn = {facts[key] for facts in found for key in ("random", "random-again")}
    assert len(drawn) == 2 * len(names)


def test_a_hundred_clones_of_micro_are_a_hundred_machines(daemon: Daemon) -> None:
    daemon.run("base", memory="128M", disk="256M")
    daemon.freeze("t", "base")
    names = ["base", *daemon.clone("t", "c-{n}", count=100)]
    keys = {"name", "machine-id", "uuid", "boot-id", "mac", "address", "random", "random-again"}
    check_all_different(daemon, names, keys)
    daemon.empty()


def test_ten_clones_of_debian_are_ten_machines(daemon: Daemon) -> None:
    shape = {"image": "debian:12", "memory": "384M", "disk": "2G", "packages": PACKAGES}
    daemon.run("deb", **shape, ready={"port": 80, "timeout": min(patient(600), 3600)})
    daemon.freeze("d", "deb")
    names = ["deb", *daemon.clone("d", "d-{n}", count=10)]
    keys = {"name", "machine-id", "uuid", "boot-id", "mac", "address", "random", "random-again"}
    check_all_different(daemon, names, {*keys, "host-key"})
    for name in names:
        vm, ssh = daemon.client.vm(name), daemon.client.ssh(name)
        scan = f"ssh-keyscan -t ed25519 {vm['addresses'][0]} 2>/dev/null | cut -d' ' -f3"
        assert daemon.sh("deb", scan).strip() in ssh["host_keys"][0]
    daemon.empty()
