"""Disks with a boot loader of their own on Xen: domains of mode full by SeaBIOS and by OVMF."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.hypervisors.xen.firmware import FILES
from hanok.lab import plan
from hanok.lab.hosts import Order
from hanok.lab.plan import Shape
from tests.conftest import IMAGES
from tests.e2e.conftest import Cli
from tests.foreign.image import foreign_loader
from tests.lab.harness import Bench, lab_images, new_bench
from tests.machine import patient

pytestmark = [
    pytest.mark.vm,
    pytest.mark.timeout(patient(1800)),
    pytest.mark.skipif(not os.environ.get("HANOK_TEST_LAB"), reason="slow: make test-lab"),
]
_BUILD = Path(__file__).parents[2] / "scripts" / "xen-uefi.sh"


@pytest.fixture(scope="module")
def firmware() -> Path:
    """The firmware of Xen's domains, built when it is not there."""
    folder = Path(os.environ.get("HANOK_TEST_IMAGES", IMAGES)).parent / "firmware"
    digest = hashlib.sha256(_BUILD.read_bytes()).hexdigest()[:16]
    file = folder / f"OVMF_XEN-{digest}.fd"
    if not file.exists():
        subprocess.run([_BUILD, file], check=True)
    return file


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with new_bench(lab_images(plan.IMAGES["xen"])) as bench:
        yield bench


@pytest.fixture(scope="module")
def hanok(bench: Bench) -> Cli:
    """The command on a lab host with Xen, where ``own:loader`` is a boot loader alone."""
    bench.lab.up(Order(("one",), Shape("xen"), cold=True))
    where = {"HANOK_CONFIG": str(bench.book.folder), "HANOK_REMOTE": "one"}
    hanok = Cli(bench.daemon, more=where)
    hanok.ok("image", "import", str(foreign_loader()), "--name", "loader", "--no-cloud-init")
    return hanok


def run(hanok: Cli, firmware: str, platform: str) -> subprocess.CompletedProcess[bytes]:
    return hanok(
        *("run", "own:loader", "--name", "vm", "--memory", "192M", "--mode", "full"),
        *("--firmware", firmware, "--ready", f"console:foreign loader on {platform}"),
        *("--ready-timeout", "300"),
        limit=600,
    )


def check_runs(hanok: Cli, firmware: str) -> None:
    shown = hanok.json("show", "vm")
    assert (shown["state"], shown["mode"], shown["firmware"]) == ("ready", "full", firmware)
    assert shown["hypervisor"] == "xen"
    hanok.ok("delete", "vm", "--force")


def test_a_disk_boots_by_seabios(hanok: Cli) -> None:
    done = run(hanok, "bios", "pc")
    assert done.returncode == 0, done.stderr
    check_runs(hanok, "bios")


def test_without_firmware_for_xen_uefi_is_refused(hanok: Cli) -> None:
    done = run(hanok, "uefi", "efi")
    assert done.returncode == 2
    assert b"no UEFI firmware for Xen" in done.stderr
    hanok("delete", "vm", "--force")


def test_a_disk_boots_by_ovmf(bench: Bench, hanok: Cli, firmware: Path) -> None:
    bench.daemon.sh("one", f"mkdir -p {FILES[0].parent}")
    here = Cli(bench.daemon)
    here.ok("cp", str(firmware), f"one:{FILES[0]}")
    done = run(hanok, "uefi", "efi")
    assert done.returncode == 0, done.stderr
    check_runs(hanok, "uefi")
