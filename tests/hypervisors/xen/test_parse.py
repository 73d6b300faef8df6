"""Parsers on what Xen 4.17 printed: a host at rest, a PV guest that runs, and one that crashed."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanok.errors import HypervisorError
from hanok.hypervisors.xen.parse import (
    DomainConfig,
    ShutdownReason,
    find_crash,
    parse_configs,
    parse_domains,
    parse_info,
    parse_store,
)
from hanok.hypervisors.xen.toolstack import is_dom0, reason_of
from hanok.units import MIB

DATA = Path(__file__).parent / "data"
UUID = "11111111-1111-4111-8111-111111111111"


def recorded(name: str) -> str:
    return (DATA / name).read_text()


def test_a_running_domain() -> None:
    dom0, guest = parse_domains(recorded("list-v-pv.txt"))
    assert (dom0.name, dom0.domid, dom0.memory, dom0.cpus) == ("Domain-0", 0, 1280 * MIB, 2)
    assert (guest.name, guest.domid, guest.uuid) == ("pv", 1, UUID)
    assert guest.cpu_seconds > 0
    assert not guest.paused
    assert not guest.shutdown
    assert not guest.dying
    assert guest.reason is None


def test_a_crashed_domain() -> None:
    guest = parse_domains(recorded("list-v-crashed.txt"))[1]
    assert guest.shutdown
    assert guest.reason is ShutdownReason.CRASH


def test_a_domain_that_wants_to_start_again() -> None:
    (guest,) = parse_domains(recorded("list-v-rebooting.txt"))
    assert guest.shutdown
    assert not guest.dying
    assert guest.reason is ShutdownReason.REBOOT


@pytest.mark.parametrize("letter", "-rscwS")
def test_the_letter_of_a_shutdowns_reason_is_no_other_flag(letter: str) -> None:
    text = recorded("list-v-rebooting.txt").replace("---sr-", f"---s{letter}-")
    (guest,) = parse_domains(text)
    assert (guest.shutdown, guest.paused, guest.dying) == (True, False, False)


def test_a_name_may_hold_anything() -> None:
    head, _, row = recorded("list-v-pv.txt").splitlines()
    odd = parse_domains(f"{head}\n{row.replace('pv ', 'a b  9 1 --p--- ', 1)}\n")[0]
    assert odd.domid == 1
    assert odd.name == "a b  9 1 --p---"
    assert not odd.paused


@pytest.mark.parametrize("text", ["", "xl: not found", "Name  ID\nwhat is this"])
def test_other_output_is_an_error(text: str) -> None:
    with pytest.raises(HypervisorError):
        parse_domains(text)


def test_configs() -> None:
    dom0, guest = parse_configs(recorded("list-l-pv.json"))
    assert dom0 == DomainConfig(0, "Domain-0", None, "pv")
    assert guest == DomainConfig(1, "pv", UUID, "pv")
    for text in ("", "{}x", '[{"domid": 1}]', "[1]"):
        with pytest.raises(HypervisorError):
            parse_configs(text)


def test_info() -> None:
    info = parse_info(recorded("info.txt"))
    assert info.version == "4.17.7"
    assert info.cpus == 2
    assert info.memory == 3071 * MIB
    assert 0 < info.free < info.memory
    assert info.scheduler == "credit2"
    assert {"pv", "hvm", "hap"} <= set(info.capabilities)
    assert "dom0_mem=1280M" in info.command_line
    with pytest.raises(HypervisorError):
        parse_info("host : x\n")


def test_store() -> None:
    nodes = parse_store(recorded("xenstore-pv.txt"))
    assert nodes["/local/domain/1/device/console/1/name"] == "org.qemu.guest_agent.0"
    assert nodes["/local/domain/1/image/device-model-pid"].isdigit()
    assert nodes["/local/domain/1/vm"] == f"/vm/{UUID}"


def test_store_values_are_unescaped_and_nonsense_is_passed_over() -> None:
    found = parse_store('/a = "x\\ty\\\\z\\001"\nnonsense\n/b = ""\n')
    assert found == {"/a": "x\ty\\z\x01", "/b": ""}


def test_what_xen_says_of_a_crash() -> None:
    log = recorded("dmesg-crashed.txt")
    assert find_crash(log, 7) == ""
    told = "(XEN) d7v0 Triple fault - invoking HVM shutdown action 1\n(XEN) d17v0 Triple fault\n"
    assert find_crash(log + told, 7) == "d7v0 Triple fault - invoking HVM shutdown action 1"
    assert find_crash("(XEN) [2026] Domain 3 (vcpu#0) crashed on cpu#1:\n", 3).startswith(
        "Domain 3"
    )


def test_reasons_of_xl_come_without_its_noise() -> None:
    said = (
        b"Parsing config from /dev/stdin\n"
        b"libxl: error: libxl_console.c:271:x: Domain 1:Primary console has invalid configuration\n"
        b"libxl: error: libxl_create.c:1:y: Domain 1:cannot make domain: -3\n"
    )
    assert reason_of(said) == "libxl: error: libxl_create.c:1:y: Domain 1:cannot make domain: -3"
    assert reason_of(b"") == "it did not say why"


def test_only_dom0_has_control(tmp_path: Path) -> None:
    path = tmp_path / "capabilities"
    assert not is_dom0(path)
    path.write_text("\n")
    assert not is_dom0(path)
    path.write_text("control_d\n")
    assert is_dom0(path)
