"""The disc that a domain in mode full boots from: made, refused, and booted for real by QEMU."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import pytest
from pycdlib import PyCdlib

from hanok.errors import HypervisorError
from hanok.hypervisors.xen.bootdisc import BOOT_DISC, Loader, make_boot_disc, write_boot_disc
from hanok.model.image import Image
from hanok.model.vm import Mode
from tests.hypervisors.xen.test_config import FULL, KERNEL, ROOT
from tests.machine import patient

BZIMAGE = bytes(0x202) + b"HdrS" + bytes(4000)


@pytest.fixture
def loader(tmp_path: Path) -> Loader:
    """Files in place of ISOLINUX: enough for a disc that nobody boots."""
    for name in ("isolinux.bin", "ldlinux.c32"):
        (tmp_path / name).write_bytes(bytes(40 * 1024))
    return Loader(tmp_path / "isolinux.bin", tmp_path / "ldlinux.c32")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "image"
    folder.mkdir()
    (folder / "vmlinuz").write_bytes(BZIMAGE)
    (folder / "vmlinux").write_bytes(b"\x7fELF" + bytes(4000))
    (folder / "initrd").write_bytes(b"an initrd")
    return folder


def content_of(disc: Path, path: str) -> str:
    iso = PyCdlib()
    iso.open(str(disc))
    try:
        with iso.open_file_from_iso(iso_path=path) as file:
            return bytes(file.read()).decode()
    finally:
        iso.close()


def test_the_disc_has_kernel_initrd_and_command_line(
    tmp_path: Path, images: Path, loader: Loader
) -> None:
    machine = dataclasses.replace(FULL, folder=tmp_path, kernel_folder=images)
    disc = make_boot_disc(machine, loader)
    assert disc == tmp_path / BOOT_DISC
    config = content_of(disc, "/ISOLINUX.CFG;1").splitlines()
    assert f"APPEND {KERNEL.cmdline} xen_nopv" in config
    assert "INITRD /INITRD" in config
    assert content_of(disc, "/INITRD.;1") == "an initrd"
    # Again, over the one of before, and without an initrd.
    machine = dataclasses.replace(machine, kernel=KERNEL.model_copy(update={"initrd": ""}))
    assert make_boot_disc(machine, loader) == disc
    assert "INITRD /INITRD" not in content_of(disc, "/ISOLINUX.CFG;1")


@pytest.mark.parametrize(
    "changes",
    [
        {"mode": Mode.HYBRID},
        {"kernel": None},
        {"kernel": KERNEL.model_copy(update={"bzimage": None})},  # an ELF kernel
        {"kernel": KERNEL.model_copy(update={"cmdline": "x" * 3000})},
        {"kernel": KERNEL.model_copy(update={"cmdline": "quiet\nAPPEND evil"})},
        {"disks": (ROOT,) * 6},
    ],
)
def test_what_gets_no_disc(
    tmp_path: Path, images: Path, loader: Loader, changes: dict[str, object]
) -> None:
    machine = dataclasses.replace(
        FULL,
        folder=tmp_path,
        kernel_folder=images,
        **changes,  # type: ignore[arg-type]
    )
    assert make_boot_disc(machine, loader) is None
    assert not (tmp_path / BOOT_DISC).exists()


def test_a_host_without_isolinux_makes_none(tmp_path: Path, images: Path) -> None:
    machine = dataclasses.replace(FULL, folder=tmp_path, kernel_folder=images)
    assert make_boot_disc(machine, Loader(tmp_path / "no", tmp_path / "no")) is None


def test_a_disc_that_cannot_be_written_is_an_error_and_leaves_nothing(
    tmp_path: Path, images: Path, loader: Loader
) -> None:
    target = Path("/dev/full/boot.iso")
    with pytest.raises(HypervisorError, match="could not be written"):
        write_boot_disc(target, images / "vmlinuz", None, "quiet", loader)


@pytest.mark.vm
def test_firmware_boots_it(tmp_path: Path, micro_image: tuple[Image, Path]) -> None:
    image, folder = micro_image
    kernel = next(one for one in image.kernels if Mode.FULL in one.modes)
    text = "console=ttyS0,115200 panic=-1 hanok.test=1 root=/dev/none"
    file = folder / (kernel.bzimage or kernel.vmlinuz)
    loader = Loader()
    assert loader.can_load(file, text)
    disc = tmp_path / BOOT_DISC
    write_boot_disc(disc, file, None, text, loader)
    # Without an initrd and a root its kernel panics, and QEMU ends.
    done = subprocess.run(
        [
            *("qemu-system-x86_64", "-M", "q35", "-m", "256", "-display", "none", "-no-reboot"),
            *("-nic", "none", "-serial", "stdio", "-device", "ide-cd,drive=cd,bus=ide.0"),
            *("-drive", f"if=none,id=cd,format=raw,readonly=on,file={disc}"),
        ],
        capture_output=True,
        check=True,
        stdin=subprocess.DEVNULL,
        timeout=patient(120),
    )
    told = done.stdout.decode(errors="replace")
    assert f"Command line: BOOT_IMAGE=/KERNEL {text}" in told
    assert "Unable to mount root fs" in told
