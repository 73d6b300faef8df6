"""Disks that Hanok has not made: imported, booted by their own boot loaders, without an agent."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from hanok.model.image import Image
from hanok.proc import find_owned, is_alive
from hanok.units import MIB
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.e2e.conftest import Cli
from tests.foreign.image import foreign_debian, foreign_loader, signed_loader
from tests.images.appliances import VMWARE, manifest, pack
from tests.images.library import library_of_its_own

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def daemon(micro_image: tuple[Image, Path]) -> Iterator[Daemon]:
    """A daemon with a library of its own: what is imported here concerns nobody else."""
    image, folder = micro_image
    with library_of_its_own(image, folder) as images, new_daemon("qemu", images) as started:
        yield started


@pytest.fixture(scope="module")
def loader(hanok: Cli) -> str:
    """An image that is a boot loader alone."""
    hanok.ok("image", "import", str(foreign_loader()), "--name", "loader", "--no-cloud-init")
    return "own:loader"


@pytest.mark.parametrize("mode", ["para", "full"])
@pytest.mark.parametrize(("firmware", "platform"), [("bios", "pc"), ("uefi", "efi")])
def test_a_disk_boots_by_each_firmware_in_each_mode(
    hanok: Cli, loader: str, mode: str, firmware: str, platform: str
) -> None:
    hanok.ok(
        *("run", loader, "--name", "vm", "--memory", "128M", "--mode", mode),
        *("--firmware", firmware, "--ready", f"console:foreign loader on {platform}"),
    )
    shown = hanok.json("show", "vm")
    assert (shown["state"], shown["mode"], shown["firmware"]) == ("ready", mode, firmware)
    assert "loader of its own" in shown["boot"]
    hanok.ok("delete", "vm", "--force")


@pytest.mark.parametrize("kind", ["qcow2", "raw", "vmdk"])
def test_what_is_exported_is_imported_and_boots_again(
    hanok: Cli, daemon: Daemon, loader: str, tmp_path: Path, kind: str
) -> None:
    ready = ("--memory", "128M", "--ready", "console:foreign loader on pc")
    hanok.ok("run", loader, "--name", "first", "--disk", "256M", *ready)
    file = tmp_path / f"first.{kind}"
    done = hanok("export", "first", str(file), "--format", kind)
    assert done.returncode == 1
    assert b"'hanok stop first' first" in done.stderr
    hanok.ok("stop", "first", "--force")
    hanok.ok("export", "first", str(file), "--format", kind)
    hanok.ok("delete", "first")
    hanok.ok("image", "import", str(file), "--name", f"again-{kind}", "--no-cloud-init")
    hanok.ok("run", f"own:again-{kind}", "--name", "second", *ready)
    assert hanok.json("show", "second")["state"] == "ready"
    hanok.ok("delete", "second", "--force")
    hanok.ok("image", "delete", f"own:again-{kind}")
    assert list((daemon.home / "exports").iterdir()) == []


def test_what_needs_an_agent_says_what_is_missing(hanok: Cli, loader: str) -> None:
    hanok.ok("run", loader, "--name", "mute", "--memory", "128M")
    assert hanok.json("show", "mute")["firmware"] == "bios"
    done = hanok("exec", "mute", "--", "true")
    assert done.returncode == 1
    for words in (b"no guest agent answers in mute", b"own:loader", b"qemu-guest-agent"):
        assert words in done.stderr
    done = hanok("template", "create", "frozen", "--from", "mute")
    assert b"boot loader of its own" in done.stderr
    done = hanok("cp", "mute:/etc/hostname", "/tmp/")
    assert b"no guest agent answers in mute" in done.stderr
    hanok.ok("delete", "mute", "--force")


def test_a_text_that_never_comes_is_a_failure_with_a_reason(hanok: Cli, loader: str) -> None:
    done = hanok(
        *("run", loader, "--name", "silent", "--memory", "128M"),
        *("--ready", "console:never said", "--ready-timeout", "8"),
    )
    assert done.returncode == 1
    assert b"'never said' on the console" in done.stderr
    assert b"foreign loader on pc" in done.stderr
    hanok.ok("delete", "silent", "--force")


def test_what_an_image_cannot_do_is_bad_input(hanok: Cli, loader: str) -> None:
    for arguments, words in (
        ((loader, "--ready-command", "true"), b"without a guest agent"),
        (("micro", "--firmware", "uefi"), b"its own kernel"),
        ((loader, "--ready", "udp:53"), b"tcp:PORT"),
    ):
        done = hanok("run", *arguments, "--name", "wrong")
        assert done.returncode == 2
        assert words in done.stderr
    assert hanok("template", "create", "t", "--from", "wrong").returncode == 1


def test_an_appliance_runs_as_its_descriptor_says(
    hanok: Cli, daemon: Daemon, tmp_path: Path
) -> None:
    disk, data = tmp_path / "disk.vmdk", tmp_path / "data.vmdk"
    stream = ("-O", "vmdk", "-o", "subformat=streamOptimized")
    convert = ["qemu-img", "convert", "-q", "-f", "qcow2", *stream]
    subprocess.run([*convert, foreign_loader(), disk], check=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "vmdk", data, "8M"], check=True)
    files = {
        "app.ovf": VMWARE.encode(),
        "app-disk1.vmdk": data.read_bytes(),
        "app-disk2.vmdk": disk.read_bytes(),
    }
    archive = pack(tmp_path / "app.ova", {**files, "app.mf": manifest(files)})
    hanok.ok("image", "import", str(archive), "--name", "app")
    for network in ("front", "back"):
        hanok.ok("network", "create", network)
    ready = ("--ready", "console:foreign loader on pc")
    assert hanok("run", "own:app", "--name", "app", *ready).returncode == 2
    hanok.ok("run", "own:app", "--name", "app", *ready, "--network", "front", "--network", "back")
    shown = hanok.json("show", "app")
    assert (shown["cpus"], shown["memory"], shown["mode"]) == (2, 192 * MIB, "full")
    assert [nic["network"] for nic in shown["networks"]] == ["front", "back"]
    disks = daemon.home / "vms" / shown["uuid"] / "m"
    assert {path.name for path in disks.glob("*.qcow2")} == {
        f"disk{number}.qcow2" for number in ("", "-2", "-3")
    }
    hanok.ok("stop", "app", "--force")
    hanok.ok("start", "app")
    hanok.ok("delete", "app", "--force")
    for network in ("front", "back"):
        hanok.ok("network", "delete", network)


def test_secure_boot_starts_nothing_that_is_not_signed(hanok: Cli, loader: str) -> None:
    hanok.ok("image", "import", str(signed_loader()), "--name", "signed", "--no-cloud-init")
    secure = ("--memory", "256M", "--firmware", "uefi", "--secure-boot", "--ready-timeout", "60")
    ready = "console:foreign loader on efi"
    hanok.ok("run", "own:signed", "--name", "good", *secure, "--ready", ready)
    hanok.ok("delete", "good", "--force")
    hanok.ok("run", loader, "--name", "bad", *secure, "--ready", "console:Access Denied")
    assert "foreign loader" not in hanok.ok("logs", "bad")
    hanok.ok("delete", "bad", "--force")


def tpms(daemon: Daemon) -> list[int]:
    return [one.pid for one in find_owned(daemon.home, "tpm") if is_alive(one.pid)]


def test_a_tpm_lives_and_ends_with_its_machine(hanok: Cli, daemon: Daemon, loader: str) -> None:
    hanok.ok("run", loader, "--name", "vault", "--memory", "128M", "--tpm")
    uuid = hanok.json("show", "vault")["uuid"]
    state = daemon.home / "vms" / uuid / "tpm" / "tpm2-00.permall"
    (pid,) = tpms(daemon)
    assert Path(f"/proc/{pid}").stat().st_uid == state.parent.stat().st_uid != 0
    assert state.parent.stat().st_mode & 0o777 == 0o700
    daemon.kill()
    assert tpms(daemon) == [pid]
    daemon.start()
    assert hanok.json("show", "vault")["state"] == "ready"
    hanok.ok("stop", "vault", "--force")
    assert tpms(daemon) == []
    kept = state.read_bytes()
    hanok.ok("start", "vault")
    assert len(tpms(daemon)) == 1
    assert state.read_bytes()[:64] == kept[:64]
    (qemu,) = [one.pid for one in find_owned(daemon.home, "vm") if one.owner.ident == uuid]
    os.kill(qemu, signal.SIGKILL)
    wait_until(lambda: tpms(daemon) == [], 10, "its TPM is gone too")
    hanok.ok("delete", "vault", "--force")


def test_a_cloud_image_is_set_up_and_reached_by_ssh(hanok: Cli, daemon: Daemon) -> None:
    """As a distribution publishes it: a boot loader, cloud-init, no agent."""
    file = str(foreign_debian())
    hanok.ok("image", "import", file, "--name", "debian", "--ssh-user", "debian", "--os", "Debian")
    hanok.ok(
        *("run", "own:debian", "--name", "cloud", "--tpm", "--cpus", "2"),
        *("--ready", "tcp:22", "--ready-timeout", "180"),
    )
    look = "hostname; cat /sys/class/tpm/tpm0/tpm_version_major; ls /boot/grub/grub.cfg"
    found = hanok.ok("ssh", "cloud", "--", look).split()
    assert found == ["cloud", "2", "/boot/grub/grub.cfg"]
    hanok.ok("delete", "cloud", "--force")
