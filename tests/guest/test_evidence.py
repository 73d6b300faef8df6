"""What a guest shows of itself: recorded outputs, judged, and outputs that are no such thing."""

from __future__ import annotations

import subprocess

import pytest

from hanok.errors import GuestError
from hanok.guest.evidence import (
    SCRIPT,
    XEN_SCRIPT,
    Facts,
    collect_evidence,
    confront,
    judge,
    parse_facts,
)
from hanok.model.vm import Evidence, Mode
from tests.guest.fake_agent import FakeAgent, Request, answering, connected
from tests.guest.test_agent import encoded

# Recorded: the micro guest, QEMU 7.2, q35.
PARA = b"""\
virtio virtio0 virtio_blk
virtio virtio1 virtio_net
virtio virtio2 virtio_console
disk virtio_blk
nic virtio_net
kernel 6.1.0-56-cloud-amd64
clocksource tsc
"""
FULL = b"""\
disk ahci
nic e1000e
kernel 6.1.0-56-amd64
clocksource tsc
"""
# Written after Linux's sysfs on Xen: a PV guest.
XEN_PV = b"""\
xenbus console-0 xenconsole
xenbus vbd-51712 vbd
xenbus vif-0 vif
disk vbd
nic vif
kernel 6.1.0-56-amd64
clocksource xen
"""


def test_recorded_outputs_are_read() -> None:
    assert parse_facts(PARA) == Facts(
        virtio=("virtio0:virtio_blk", "virtio1:virtio_net", "virtio2:virtio_console"),
        disk_driver="virtio_blk",
        nic_driver="virtio_net",
        kernel="6.1.0-56-cloud-amd64",
        clocksource="tsc",
    )
    assert parse_facts(FULL).virtio == ()
    assert parse_facts(XEN_PV).xenbus[1] == "vbd-51712:vbd"


@pytest.mark.parametrize(
    ("mode", "output"),
    [
        (Mode.PARA, PARA),
        (Mode.FULL, FULL),
        (Mode.PARA, XEN_PV),
        (Mode.HYBRID, XEN_PV),
        (Mode.AUTO, b""),
        (Mode.FULL, FULL.replace(b"nic e1000e\n", b"")),
        (Mode.FULL, FULL.replace(b"ahci", b"ata_piix").replace(b"e1000e", b"e1000")),
    ],
)
def test_what_was_asked_is_no_contradiction(mode: Mode, output: bytes) -> None:
    assert judge(mode, parse_facts(output)) is None


@pytest.mark.parametrize(
    ("mode", "output", "words"),
    [
        (Mode.FULL, PARA, ["virtio devices", "virtio0", "disk's driver is virtio_blk", "e1000e"]),
        (Mode.FULL, XEN_PV, ["Xen devices", "vbd", "its clock is xen"]),
        (Mode.FULL, FULL + b"virtio virtio0 \n", ["virtio devices (virtio0)"]),
        (Mode.FULL, FULL.replace(b"tsc", b"kvm-clock"), ["its clock is kvm-clock"]),
        (Mode.FULL, FULL.replace(b"disk ahci\n", b""), ["disk's driver is not to be found"]),
        (Mode.PARA, FULL, ["ahci, not virtio_blk or vbd", "NIC's driver is e1000e"]),
        (Mode.PARA, PARA.replace(b"nic virtio_net", b"nic e1000e"), ["NIC's driver is e1000e"]),
        (Mode.HYBRID, FULL, ["mode hybrid was asked"]),
        (Mode.PARA, b"", ["not to be found"]),
    ],
)
def test_anything_else_is_named(mode: Mode, output: bytes, words: list[str]) -> None:
    text = judge(mode, parse_facts(output))
    assert text is not None
    assert all(word in text for word in words), text


def test_a_hostile_guest_costs_little_and_controls_no_terminal() -> None:
    flood = b"virtio \x1b[2Jx y\n" * 1_000_000 + b"kernel " + b"k" * 1_000_000
    facts = parse_facts(flood)
    assert len(facts.virtio) == 64
    assert facts.virtio[0].isprintable()
    assert len(parse_facts(b"kernel " + b"k" * 60_000).kernel or "") == 64
    assert parse_facts(b"\xff\xfe\0\n\n disk\ndisk\n") == Facts()


XEN_PVH = XEN_PV + b"guest_type PVH\nboot_log Xen PVH\n"
XEN_HVM = FULL + b"boot_log bare hardware\n"


def seen(mode: Mode, output: bytes) -> Evidence:
    facts = parse_facts(output)
    fields = {name: getattr(facts, name) for name in ("guest_type", "boot_log")}
    return Evidence(mode=mode, contradiction=judge(mode, facts), **fields)


@pytest.mark.parametrize(
    ("mode", "output", "domain"),
    [
        (Mode.PARA, XEN_PV + b"guest_type PV\nboot_log Xen\n", "pv"),
        (Mode.HYBRID, XEN_PVH, "pvh"),
        (Mode.FULL, XEN_HVM, "hvm"),
        (Mode.FULL, FULL, "hvm"),  # its log was full: the oldest lines are gone
    ],
)
def test_guest_and_xen_agree(mode: Mode, output: bytes, domain: str) -> None:
    found = confront(seen(mode, output), domain)
    assert found.contradiction is None
    assert found.domain_type == domain


@pytest.mark.parametrize(
    ("mode", "output", "domain", "words"),
    [
        (Mode.HYBRID, XEN_PVH, "hvm", ["type pvh", "one of hvm"]),
        (Mode.PARA, XEN_PVH, "pv", ["runs on PVH"]),
        (Mode.PARA, XEN_PV, "pv", ["runs on no Xen"]),
        (Mode.FULL, XEN_HVM + b"guest_type HVM\n", "hvm", ["runs on HVM"]),
        (Mode.FULL, FULL + b"boot_log Xen HVM\n", "hvm", ["booted on Xen HVM"]),
        (Mode.FULL, XEN_PVH, "pvh", ["Xen devices", "one of pvh", "runs on PVH", "booted on"]),
    ],
)
def test_where_they_disagree_it_is_said(
    mode: Mode, output: bytes, domain: str, words: list[str]
) -> None:
    text = confront(seen(mode, output), domain).contradiction
    assert text is not None
    assert all(word in text for word in words), text


async def test_evidence_is_one_command_in_the_guest() -> None:
    async with connected() as (agent, fake):
        done = {"exited": True, "exitcode": 0, "out-data": encoded(PARA)}
        fake.handlers["guest-exec"] = answering({"pid": 1})
        fake.handlers["guest-exec-status"] = answering(done)
        found = await collect_evidence(agent, Mode.FULL)
        assert found.disk_driver == "virtio_blk"
        assert found.contradiction is not None
        assert len(fake.asked("guest-exec")) == 1


async def test_a_guest_that_cannot_be_looked_into_is_a_guest_error() -> None:
    async with connected() as (agent, fake):
        fake.handlers["guest-exec"] = answering({"pid": 1})

        async def status(fake: FakeAgent, request: Request) -> None:
            await fake.answer(
                request, {"exited": True, "exitcode": 2, "err-data": encoded(b"sh: bad\n")}
            )

        fake.handlers["guest-exec-status"] = status
        with pytest.raises(GuestError, match="sh: bad"):
            await collect_evidence(agent, Mode.PARA)


def test_the_script_runs_in_this_hosts_shell_too() -> None:
    done = subprocess.run(["/bin/sh", "-c", SCRIPT], capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr
    facts = parse_facts(done.stdout)
    assert (
        facts.kernel == subprocess.run(["uname", "-r"], capture_output=True).stdout.decode().strip()
    )


# Recorded: Linux 6.1 as a PV and as a PVH guest of Xen 4.17, and where nothing is below it.
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("[    2.117161] Booting kernel on Xen", "Xen"),
        ("[    3.591279] Booting kernel on Xen PVH", "Xen PVH"),
        ("[    0.1] Booting paravirtualized kernel on bare hardware", "bare hardware"),
    ],
)
def test_the_kernels_log_tells_what_it_booted_on(line: str, told: str) -> None:
    log = f"[    0.000000] Linux version 6.1.0 * kernel\n{line}\n[    4.0] kernel on its way\n"
    dmesg = f"dmesg() {{ cat <<'END'\n{log}END\n}}\n"
    argv = ["sh", "-c", f"{dmesg}{XEN_SCRIPT}"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"boot_log {told}"
    assert parse_facts(done.stdout.encode()).boot_log == told
