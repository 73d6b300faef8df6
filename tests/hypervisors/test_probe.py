"""KVM or TCG: measured by a guest, remembered, forgotten, and never believed by its file alone.

Where real KVM would be needed, a stand-in emulator behaves as QEMU does; the trap (a /dev/kvm that
opens and never boots a guest) is real on hosts that have one.
"""

from __future__ import annotations

import asyncio
import json
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_fixed

from hanok.config import load_settings
from hanok.errors import HostError
from hanok.hypervisors.qemu import ProbeGuest, QemuHypervisor
from hanok.hypervisors.qemu.arch import X86_64
from hanok.hypervisors.qemu.build import QemuBuild, read_build
from hanok.hypervisors.qemu.probe import AccelerationProbe, account_with_kvm
from hanok.model.image import Image
from hanok.model.vm import Mode
from hanok.proc import Account, SystemRunner, wait_for_exit
from tests.machine import patient

NOBODY = Account(65534, 65534) if os.geteuid() == 0 else None
BUILD = QemuBuild("99.1.0", "QEMU emulator version 99.1.0", "pc-q35-99.1", sandbox=True)
WEEK = 7 * 24 * 3600
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes and changes owners")

# What QEMU answers about itself; $console is the descriptor of the guest's console.
STAND_IN = """#!/bin/bash
case "$*" in
*" help"*) echo "pc-q35-99.1 x"; exit 0;;
*--version*) echo "QEMU emulator version 99.1.0"; exit 0;;
esac
console=$(grep -oE 'fd=[0-9]+' <<< "$*" | cut -d= -f2)
echo $$ >> {folder}/pids
{what}
"""
BOOTS = 'printf "some noise\\nhanok-probe: up" >&$console; sleep 1000'
CRAWLS = 'printf "Booting from ROM..." >&$console; exec sleep 1000'
DIES = "echo 'qemu: failed to initialize kvm: No such device' >&2; exit 1"


class Rig:
    """A stand-in emulator, a stand-in device, and probes over one cache file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.device = folder / "kvm"
        self.device.touch()
        self.device.chmod(0o666)
        self.cache = folder / "cache" / "acceleration.json"
        self.emulator = folder / "emulator"
        self.asked = 0
        self.guest: ProbeGuest | None = ProbeGuest.with_shell(folder / "k", folder / "i")
        (folder / "pids").touch()
        (folder / "pids").chmod(0o666)

    def emulate(self, what: str) -> None:
        """Let the emulator do ``what`` with a guest."""
        text = STAND_IN.replace("{folder}", str(self.folder)).replace("{what}", what)
        self.emulator.write_text(text)
        self.emulator.chmod(0o755)

    async def provide(self) -> ProbeGuest | None:
        """Give the guest, and count."""
        self.asked += 1
        return self.guest

    def probe(self) -> AccelerationProbe:
        """Return a probe as a new daemon has it."""
        return AccelerationProbe(
            SystemRunner(),
            str(self.emulator),
            self.provide,
            self.cache,
            device=self.device,
            account=NOBODY,
            boot_limit=2,
        )

    def driver(self, kvm_limit: float | None = None) -> QemuHypervisor:
        """Return a hypervisor as a new daemon has it."""
        return QemuHypervisor(
            SystemRunner(),
            self.folder,
            self.provide,
            self.cache,
            str(self.emulator),
            kvm_device=self.device,
            kvm_limit=kvm_limit,
        )

    def guests(self) -> list[int]:
        """Return the pids of the guests that have run."""
        return [int(word) for word in (self.folder / "pids").read_text().split()]

    def edit_cache(self, change: Callable[[dict[str, object]], None]) -> None:
        """Change what is remembered."""
        record = json.loads(self.cache.read_text())
        change(record)
        self.cache.write_text(json.dumps(record))


@pytest.fixture
def probing(short_tmp: Path) -> Rig:
    return Rig(short_tmp)


async def all_end(probing: Rig) -> None:
    """Wait until no guest is left: they were killed, and a busy host takes a moment to end them."""
    async with asyncio.timeout(10):
        for pid in probing.guests():
            await wait_for_exit(pid)


async def test_a_guest_that_boots_proves_kvm_and_dies(probing: Rig) -> None:
    probing.emulate(BOOTS)
    driver = probing.driver()
    facts = await driver.probe()
    assert (facts.accelerator, facts.isolation, facts.measured) == ("kvm", "kvm", True)
    assert facts.machine_type == "pc-q35-99.1"
    assert len(probing.guests()) == 1
    await all_end(probing)
    assert await probing.driver().probe() == facts
    assert len(probing.guests()) == 1
    await driver.close()


async def test_less_is_counted_with_kvm_than_with_tcg(probing: Rig) -> None:
    probing.emulate(BOOTS)
    driver = probing.driver()
    before = driver.overhead(1, 1 << 30, None)
    await driver.probe()
    assert driver.overhead(1, 1 << 30, None) < before - (200 << 20)


async def test_a_guest_that_crawls_means_tcg_and_is_ended(probing: Rig) -> None:
    probing.emulate(CRAWLS)
    verdict = await probing.probe().decide(BUILD, X86_64)
    assert verdict.accelerator == "tcg"
    assert "did not finish booting within 2 s" in verdict.reason
    assert len(probing.guests()) == 1
    await all_end(probing)


async def test_an_administrator_sets_how_long_a_guest_may_take(probing: Rig) -> None:
    probing.emulate(CRAWLS)
    limit = load_settings({"HANOK_HOME": str(probing.folder), "HANOK_KVM_LIMIT": "1"}).kvm_limit
    facts = await probing.driver(limit).probe()
    assert facts.accelerator == "tcg"
    assert "within 1 s (HANOK_KVM_LIMIT gives it longer)" in facts.reason


async def test_the_reason_of_an_emulator_that_dies_is_its_own(probing: Rig) -> None:
    probing.emulate(DIES)
    verdict = await probing.probe().decide(BUILD, X86_64)
    assert verdict.accelerator == "tcg"
    assert "failed to initialize kvm: No such device" in verdict.reason


async def test_a_failure_is_remembered_for_a_week(probing: Rig) -> None:
    probing.emulate(DIES)
    first = await probing.probe().decide(BUILD, X86_64)
    assert await probing.probe().decide(BUILD, X86_64) == first
    assert len(probing.guests()) == 1
    probing.edit_cache(lambda record: record.update(measured=time.time() - WEEK - 1))
    await probing.probe().decide(BUILD, X86_64)
    assert len(probing.guests()) == 2
    probing.edit_cache(lambda record: record.update(measured=time.time() + WEEK))
    await probing.probe().decide(BUILD, X86_64)
    assert len(probing.guests()) == 3


async def test_a_success_is_remembered_for_longer(probing: Rig) -> None:
    probing.emulate(BOOTS)
    await probing.probe().decide(BUILD, X86_64)
    probing.edit_cache(lambda record: record.update(measured=time.time() - 10 * WEEK))
    assert (await probing.probe().decide(BUILD, X86_64)).accelerator == "kvm"
    assert len(probing.guests()) == 1


async def test_another_qemu_or_device_is_measured_anew(probing: Rig) -> None:
    probing.emulate(BOOTS)
    await probing.probe().decide(BUILD, X86_64)
    other = QemuBuild("99.2.0", "QEMU emulator version 99.2.0", "pc-q35-99.2", sandbox=True)
    await probing.probe().decide(other, X86_64)
    assert len(probing.guests()) == 2
    probing.device.chmod(0o667)
    await probing.probe().decide(other, X86_64)
    assert len(probing.guests()) == 3


@pytest.mark.parametrize("content", ["", "{", "[]", '{"accelerator": "kvm"}'])
async def test_a_broken_memory_is_measured_anew(probing: Rig, content: str) -> None:
    probing.emulate(DIES)
    probing.cache.parent.mkdir()
    probing.cache.write_text(content)
    assert (await probing.probe().decide(BUILD, X86_64)).accelerator == "tcg"
    assert len(probing.guests()) == 1


async def test_asking_again_forgets(probing: Rig) -> None:
    probing.emulate(DIES)
    driver = probing.driver()
    assert (await driver.probe()).accelerator == "tcg"
    probing.emulate(BOOTS)
    assert (await driver.probe_again()).accelerator == "kvm"


async def test_a_replaced_qemu_is_noticed_while_running(probing: Rig) -> None:
    probing.emulate(DIES)
    driver = probing.driver()
    assert (await driver.probe()).version == "99.1.0"
    probing.emulate(DIES)
    text = probing.emulator.read_text().replace("99.1", "99.2")
    probing.emulator.write_text(text + "\n")
    facts = await driver.probe()
    assert (facts.version, facts.machine_type) == ("99.2.0", "pc-q35-99.2")


async def test_without_a_guest_nothing_is_decided_for_good(probing: Rig) -> None:
    probing.emulate(BOOTS)
    guest, probing.guest = probing.guest, None
    driver = probing.driver()
    facts = await driver.probe()
    assert (facts.accelerator, facts.measured) == ("tcg", False)
    assert "not measured yet" in facts.reason
    assert not probing.cache.exists()
    probing.guest = guest
    assert (await driver.probe()).accelerator == "kvm"


async def test_many_who_ask_at_once_cause_one_measurement(probing: Rig) -> None:
    probing.emulate(BOOTS)
    driver = probing.driver()
    found = await asyncio.gather(*(driver.probe() for _ in range(5)))
    assert len(set(map(str, found))) == 1
    assert len(probing.guests()) == 1


async def test_a_cancelled_measurement_leaves_no_guest(probing: Rig) -> None:
    probing.emulate(CRAWLS)
    measuring = asyncio.create_task(probing.driver().probe())
    await AsyncRetrying(
        stop=stop_after_delay(20),
        wait=wait_fixed(0.02),
        retry=retry_if_result(lambda pids: not pids),
    )(asyncio.to_thread, probing.guests)
    measuring.cancel()
    await asyncio.gather(measuring, return_exceptions=True)
    await all_end(probing)
    assert not probing.cache.exists()


async def test_without_a_device_it_is_tcg(probing: Rig) -> None:
    probing.emulate(BOOTS)
    probing.device.unlink()
    facts = await probing.driver().probe()
    assert facts.accelerator == "tcg"
    assert "there is no" in facts.reason
    assert probing.asked == 0


@AS_ROOT
async def test_a_closed_device_is_told_with_what_opens_it(probing: Rig) -> None:
    probing.emulate(BOOTS)
    probing.device.chmod(0o600)
    facts = await probing.driver().probe()
    assert facts.accelerator == "tcg"
    assert "root:root, mode 0600" in facts.reason
    assert "chmod 0660" in facts.reason
    assert probing.guests() == []


@AS_ROOT
def test_the_group_of_the_device_is_given_but_never_roots(short_tmp: Path) -> None:
    device, account = short_tmp / "kvm", Account(4711, 4711)
    device.touch()
    for owner, group, mode, expected in (
        (0, 0, 0o600, None),
        (0, 0, 0o660, None),
        (0, 106, 0o660, Account(4711, 106)),
        (0, 106, 0o640, None),
        (0, 0, 0o666, account),
        (4711, 0, 0o600, account),
    ):
        os.chown(device, owner, group)
        device.chmod(mode)
        assert account_with_kvm(device, account) == expected


async def test_a_host_without_qemu_says_what_to_install(probing: Rig) -> None:
    with pytest.raises(HostError) as caught:
        await probing.driver().probe()
    assert "apt-get install qemu-system-x86" in (caught.value.hint or "")


# --- the real thing ---------------------------------------------------------------------------


def shell_guest(micro: tuple[Image, Path]) -> ProbeGuest:
    """Return the guest that the daemon measures with."""
    image, folder = micro
    kernel = next(kernel for kernel in image.kernels if Mode.PARA in kernel.modes)
    return ProbeGuest.with_shell(folder / kernel.vmlinuz, folder / kernel.initrd)


@pytest.mark.vm
async def test_the_installed_qemu_is_read(runner: SystemRunner) -> None:
    build = await read_build(runner, "qemu-system-x86_64", X86_64)
    assert build.text.startswith("QEMU emulator version")
    assert build.machine_type.startswith("pc-q35-")
    assert build.sandbox


@pytest.mark.vm
async def test_the_real_guest_says_that_it_is_up(
    probing: Rig, micro_image: tuple[Image, Path]
) -> None:
    # A KVM that works, played by TCG: all but the accelerator is what is run with KVM.
    probing.emulator.write_text(
        '#!/bin/bash\nwords=("${@/#kvm/tcg,tb-size=64}")\n'
        'exec qemu-system-x86_64 "${words[@]/#host/max,la57=off}"\n'
    )
    probing.emulator.chmod(0o755)
    probing.guest = shell_guest(micro_image)
    probe = AccelerationProbe(
        SystemRunner(),
        str(probing.emulator),
        probing.provide,
        probing.cache,
        device=probing.device,
        account=NOBODY,
        boot_limit=patient(60),
    )
    build = await read_build(SystemRunner(), str(probing.emulator), X86_64)
    verdict = await probe.decide(build, X86_64)
    assert verdict.accelerator == "kvm", verdict.reason


@pytest.mark.vm
@AS_ROOT
@pytest.mark.skipif(not Path("/dev/kvm").exists(), reason="this host has no /dev/kvm")
async def test_a_real_device_is_measured_within_its_limit(
    probing: Rig, micro_image: tuple[Image, Path]
) -> None:
    # A node of its own, open to all, put over /dev/kvm in a namespace of the guest's own.
    probing.device.unlink()
    os.mknod(probing.device, stat.S_IFCHR | 0o666, Path("/dev/kvm").stat().st_rdev)
    probing.device.chmod(0o666)
    probing.emulator.write_text(
        "#!/bin/bash\nif [[ $* == *kvm* ]]; then\n"
        f"exec unshare -Urm bash -c 'mount --bind {probing.device} /dev/kvm"
        ' && exec qemu-system-x86_64 "$@"\' bash "$@"\n'
        'fi\nexec qemu-system-x86_64 "$@"\n'
    )
    probing.emulator.chmod(0o755)
    probing.guest = shell_guest(micro_image)
    driver = probing.driver()
    async with asyncio.timeout(patient(30)):
        facts = await driver.probe()
    assert facts.measured
    if facts.accelerator == "tcg":
        assert facts.reason.startswith("no guest boots with KVM here: ")
    async with asyncio.timeout(patient(5)):
        assert await probing.driver().probe() == facts
