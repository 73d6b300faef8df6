"""UEFI firmware by QEMU's description files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hanok.errors import HostError
from hanok.hypervisors.qemu.arch import X86_64
from hanok.hypervisors.qemu.firmware import find_uefi

MACHINE = "pc-q35-7.2"


def describe(folder: Path, name: str, **changes: Any) -> None:
    """Write a description, and the files that it names beside it."""
    folder.mkdir(exist_ok=True)
    code, template = folder / f"{name}.code", folder / f"{name}.vars"
    for path in (code, template):
        path.touch()
    mapping = {
        "device": "flash",
        "executable": {"filename": str(code), "format": "raw"},
        "nvram-template": {"filename": str(template), "format": "raw"},
    }
    whole = {
        "description": name,
        "interface-types": ["uefi"],
        "mapping": mapping | changes.pop("mapping", {}),
        "targets": [{"architecture": "x86_64", "machines": ["pc-i440fx-*", "pc-q35-*"]}],
        "features": ["acpi-s3"],
        "tags": [],
        **changes,
    }
    (folder / f"{name}.json").write_text(json.dumps(whole))


def test_the_first_that_fits_is_taken(tmp_path: Path) -> None:
    admin, system = tmp_path / "etc", tmp_path / "usr"
    describe(system, "10-arm", targets=[{"architecture": "aarch64", "machines": ["virt-*"]}])
    describe(system, "20-bios", **{"interface-types": ["bios"]})
    describe(system, "30-secure", features=["secure-boot", "requires-smm"])
    describe(system, "35-memory", mapping={"device": "memory", "filename": "/x"})
    describe(system, "37-qcow2", mapping={"executable": {"filename": "/x", "format": "qcow2"}})
    describe(system, "38-gone", mapping={"executable": {"filename": "/gone", "format": "raw"}})
    (system / "39-broken.json").write_text("{")
    describe(system, "40-masked")
    describe(system, "50-plain")
    describe(system, "60-later")
    admin.mkdir()
    (admin / "40-masked.json").touch()
    found = find_uefi(X86_64, MACHINE, (admin, system))
    assert found.code == system / "50-plain.code"
    assert found.template == system / "50-plain.vars"
    assert not found.smm
    describe(admin, "50-plain")
    assert find_uefi(X86_64, MACHINE, (admin, system)).code == admin / "50-plain.code"


def test_secure_boot_wants_the_keys_to_be_there(tmp_path: Path) -> None:
    describe(tmp_path, "30-plain")
    describe(tmp_path, "40-no-keys", features=["secure-boot", "requires-smm"])
    with pytest.raises(HostError, match="Secure Boot"):
        find_uefi(X86_64, MACHINE, (tmp_path,), secure=True)
    describe(tmp_path, "50-keys", features=["secure-boot", "enrolled-keys", "requires-smm"])
    found = find_uefi(X86_64, MACHINE, (tmp_path,), secure=True)
    assert (found.code, found.smm) == (tmp_path / "50-keys.code", True)
    assert find_uefi(X86_64, MACHINE, (tmp_path,)).code == tmp_path / "30-plain.code"


def test_without_any_the_error_says_what_to_install(tmp_path: Path) -> None:
    describe(tmp_path, "30-secure", features=["secure-boot"])
    with pytest.raises(HostError, match=MACHINE) as caught:
        find_uefi(X86_64, MACHINE, (tmp_path, tmp_path / "none"))
    assert "apt-get install ovmf" in str(caught.value.hint)
