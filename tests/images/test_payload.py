"""The disk with this very Hanok: what is on it, and what its digest depends on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hanok.errors import Conflict
from hanok.images import payload
from hanok.images.builder import BuiltFiles, kernels_of
from hanok.images.payload import fits_guest, installed_packages, make_payload, payload_digest
from hanok.images.recipes import (
    LAB,
    LAB_SYSTEM,
    LAB_XEN,
    LAB_XEN_SYSTEM,
    MICRO,
    guest_files,
    resolve,
)
from hanok.proc import SystemRunner


def test_packages_are_those_that_hanok_needs_and_not_its_tools() -> None:
    names = {package.name for package in installed_packages()}
    assert {"fastapi", "pydantic-core", "cryptography", "cffi", "starlette"} <= names
    assert names & {"hanok", "pytest", "mypy", "ruff", "hypothesis"} == set()


def test_digest_is_stable_and_changes_with_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = payload_digest()
    assert payload_digest() == before
    fewer = payload._sources()[1:]
    monkeypatch.setattr(payload, "_sources", lambda: fewer)
    assert payload_digest() != before


def test_lab_depends_on_its_system_and_that_on_micro() -> None:
    lab, system = resolve(LAB), resolve(LAB_SYSTEM)
    assert lab.stands_on == system
    assert system.stands_on == resolve(MICRO)
    assert len({lab.id, system.id, resolve(MICRO).id}) == 3
    assert "hanok-agent.service" in guest_files(LAB_SYSTEM)


def test_the_lab_below_xen_has_all_that_the_other_has() -> None:
    lab, system = resolve(LAB_XEN), resolve(LAB_XEN_SYSTEM)
    assert lab.stands_on == system
    assert system.stands_on == resolve(MICRO)
    assert lab.payload == resolve(LAB).payload
    kernels = {"linux-image-amd64", "linux-image-cloud-amd64"}
    packages, others = set(system.base_packages), set(resolve(LAB_SYSTEM).base_packages)
    assert packages >= others - kernels
    assert packages & kernels == {"linux-image-amd64"}
    files, other_files = guest_files(LAB_XEN_SYSTEM), guest_files(LAB_SYSTEM)
    assert set(files) > set(other_files)
    assert {name for name in other_files if files[name] != other_files[name]} == {"lab.modules"}


def test_only_the_lab_below_xen_boots_a_hypervisor_first() -> None:
    for ref in (MICRO, "debian:12", LAB_SYSTEM):
        assert all(kernel.hypervisor is None for kernel in kernels_of(resolve(ref)))
    (dom0,) = kernels_of(resolve(LAB_XEN_SYSTEM))
    assert dom0.hypervisor is not None
    assert dom0.hypervisor.file in BuiltFiles((dom0,)).names
    assert "console=hvc0" in dom0.cmdline.split()
    assert "ttyS0" not in dom0.cmdline  # that is Xen's


@pytest.mark.skipif(not fits_guest(), reason="the packages of this Python are not the guest's")
async def test_the_disk_holds_a_hanok_that_starts(tmp_path: Path, runner: SystemRunner) -> None:
    disk, work = tmp_path / "hanok.img", tmp_path / "work"
    work.mkdir()
    await make_payload(disk, work, payload_digest(), runner)
    assert disk.stat().st_size > 30 * 2**20
    site = next(work.glob("lib/python3.*/site-packages"))
    assert (work / "bin/python3").readlink() == Path("/usr/bin/python3")
    assert list((site / "hanok/__pycache__").glob("*.pyc"))
    # With nothing but what is on it.
    code = f"import sys; sys.path.insert(0, {str(site)!r}); import hanok.app; print(hanok.__file__)"
    argv = [sys.executable, "-I", "-S", "-c", code]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == str(site / "hanok/__init__.py")


async def test_a_source_that_changes_meanwhile_is_noticed(
    tmp_path: Path, runner: SystemRunner
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    with pytest.raises(Conflict):
        await make_payload(tmp_path / "hanok.img", work, "0" * 64, runner)
    assert not (tmp_path / "hanok.img").exists()
