"""Real guests from the user's side: both modes, commands, files, console, ports, adoption."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.daemon.harness import Daemon, wait_until
from tests.e2e.conftest import Cli, use_console
from tests.e2e.web import SERVE, fetch

pytestmark = pytest.mark.vm


@pytest.fixture(scope="module")
def web(hanok: Cli, daemon: Daemon) -> str:
    """A guest in mode para that serves its name on port 80, published on 18090."""
    script = daemon.home / "serve"
    script.write_text(SERVE)
    hanok.ok(
        *("run", "micro", "--name", "web", "--memory", "128M", "--disk", "1G"),
        *("--publish", "18090:80", "--user-data", str(script), "--ready-url", "http://web/"),
    )
    return "web"


@pytest.fixture(scope="module")
def old(hanok: Cli) -> str:
    """A guest in mode full."""
    hanok.ok("run", "micro", "--name", "old", "--mode", "full", "--memory", "128M", "--disk", "1G")
    return "old"


def test_a_published_port_reaches_the_guest(hanok: Cli, web: str) -> None:
    assert fetch(18090) == "web"


def test_evidence_in_mode_para_is_virtio(hanok: Cli, web: str) -> None:
    evidence = hanok.json("show", web)["evidence"]
    assert evidence["disk_driver"] == "virtio_blk"
    assert evidence["nic_driver"] == "virtio_net"
    assert evidence["virtio"]
    assert "cloud" in evidence["kernel"]


def test_evidence_in_mode_full_is_emulated_hardware(hanok: Cli, old: str) -> None:
    evidence = hanok.json("show", old)["evidence"]
    assert evidence["disk_driver"] in ("ahci", "ata_piix")
    assert evidence["nic_driver"] == "e1000e"
    assert evidence["virtio"] == []
    assert evidence["xenbus"] == []
    buses = hanok.ok("exec", old, "--", "ls", "/sys/bus").split()
    assert (
        "virtio" not in buses or hanok.ok("exec", old, "--", "ls", "/sys/bus/virtio/devices") == ""
    )


@pytest.mark.parametrize("name", ["web", "old"])
def test_exec_gives_status_and_both_streams(hanok: Cli, web: str, old: str, name: str) -> None:
    done = hanok("exec", name, "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.returncode == 3
    assert done.stdout == b"out\n"
    assert done.stderr == b"err\n"
    echoed = hanok("exec", name, "--", "cat", input=b"typed\n")
    assert echoed.stdout == b"typed\n"


def test_files_go_both_ways(hanok: Cli, web: str, tmp_path: Path) -> None:
    sent, back = tmp_path / "sent", tmp_path / "back"
    sent.write_bytes(os.urandom(700_000))
    hanok.ok("cp", str(sent), f"{web}:/root/file")
    hanok.ok("cp", f"{web}:/root/file", str(back))
    assert back.read_bytes() == sent.read_bytes()


def test_guests_find_each_other_by_name(hanok: Cli, web: str, old: str) -> None:
    page = hanok.ok("exec", old, "--", "wget", "-q", "-O", "-", f"http://{web}/")
    assert page.strip() == "web"
    address = hanok.json("show", web)["addresses"][0]
    assert address in hanok.ok("exec", old, "--", "nslookup", web)


def test_a_guest_does_not_reach_services_of_the_host(hanok: Cli, web: str) -> None:
    gateway = hanok.json("network", "show", "default")["gateway"]
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        own = socket.gethostbyname(socket.gethostname())
        for address in {gateway, own, "127.0.0.1"}:
            command = f"nc -w 2 {address} {port} </dev/null"
            assert hanok("exec", web, "--", "sh", "-c", command).returncode != 0
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_two_networks_do_not_reach_each_other(hanok: Cli, web: str) -> None:
    hanok.ok("network", "create", "apart")
    hanok.ok(
        *("run", "micro", "--name", "alone", "--network", "apart"),
        *("--memory", "128M", "--disk", "1G"),
    )
    address = hanok.json("show", web)["addresses"][0]
    for command in (f"wget -T 3 -q -O - http://{address}/", f"ping -c 1 -W 2 {address}"):
        assert hanok("exec", "alone", "--", "sh", "-c", command).returncode != 0
    assert hanok("exec", "alone", "--", "nslookup", web).returncode != 0
    hanok.ok("delete", "alone", "--force")
    hanok.ok("network", "delete", "apart")


def test_the_console_is_a_terminal(hanok: Cli, web: str) -> None:
    use_console(web, {**os.environ, "HANOK_HOME": str(hanok.daemon.home)})
    assert "42-answer" in hanok.ok("logs", web)


def test_pause_stops_the_guest_and_resume_goes_on(hanok: Cli, web: str) -> None:
    hanok.ok("pause", web)
    assert hanok.json("show", web)["state"] == "paused"
    hanok.ok("resume", web)
    assert hanok.json("show", web)["state"] == "ready"
    assert fetch(18090) == "web"


def test_vms_and_ports_survive_kill_9_of_the_daemon(hanok: Cli, daemon: Daemon, web: str) -> None:
    uptime = float(hanok.ok("exec", web, "--", "cat", "/proc/uptime").split()[0])
    daemon.kill()
    assert fetch(18090) == "web"  # no daemon is there
    daemon.start()
    assert hanok.json("show", web)["state"] == "ready"
    assert float(hanok.ok("exec", web, "--", "cat", "/proc/uptime").split()[0]) > uptime
    assert fetch(18090) == "web"


def test_stop_asks_the_guest_and_files_survive(hanok: Cli, web: str) -> None:
    hanok.ok("exec", web, "--", "sh", "-c", "echo kept > /root/kept; sync")
    before = hanok.json("show", web)["addresses"]
    hanok.ok("stop", web)
    assert hanok.json("show", web)["state"] == "stopped"
    hanok.ok("start", web)
    assert hanok.ok("exec", web, "--", "cat", "/root/kept") == "kept\n"
    assert hanok.json("show", web)["addresses"] == before
    assert fetch(18090) == "web"


def test_a_guest_that_powers_off_is_seen_as_stopped(hanok: Cli, daemon: Daemon, old: str) -> None:
    hanok("exec", old, "--", "poweroff")
    wait_until(lambda: daemon.client.vm(old)["state"] == "stopped", 60, "old is stopped")
    hanok.ok("start", old)


def test_a_guest_that_is_never_ready_fails_with_a_reason(hanok: Cli) -> None:
    done = hanok(
        *("run", "micro", "--name", "deaf", "--memory", "128M", "--disk", "1G"),
        *("--ready-port", "81", "--ready-timeout", "20"),
    )
    assert done.returncode == 1
    assert b"port 81" in done.stderr
    shown = hanok.json("show", "deaf")
    assert shown["state"] == "failed"
    assert "port 81" in shown["reason"]
    hanok.ok("delete", "deaf", "--force")


def test_a_panicking_guest_is_seen_as_crashed(hanok: Cli, daemon: Daemon) -> None:
    hanok.ok("run", "micro", "--name", "frail", "--memory", "128M", "--disk", "1G")
    hanok("exec", "frail", "--", "sh", "-c", "echo c > /proc/sysrq-trigger", limit=60)
    wait_until(lambda: daemon.client.vm("frail")["state"] == "failed", 60, "frail has failed")
    assert "kernel panicked; its console" in str(daemon.client.vm("frail")["reason"])
    hanok.ok("delete", "frail", "--force")


def test_a_taken_host_port_undoes_the_run(hanok: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = hanok(
            *("run", "micro", "--name", "late", "--memory", "128M", "--disk", "1G"),
            *("--publish", f"{port}:80"),
        )
    assert done.returncode == 1
    assert str(port).encode() in done.stderr
    assert hanok("show", "late").returncode == 1


def test_a_disk_below_the_image_is_refused_and_leaves_nothing(hanok: Cli) -> None:
    done = hanok("run", "debian:12", "--name", "small", "--disk", "64K")
    assert done.returncode == 2
    assert b"disk" in done.stderr
    assert hanok("show", "small").returncode == 1


def test_qemu_is_confined(hanok: Cli, daemon: Daemon, web: str) -> None:
    uuid = hanok.json("show", web)["uuid"]
    folder = daemon.home / "vms" / uuid / "m"
    pid = int((folder / "qemu.pid").read_text())
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    assert status["Uid"].split()[0] != "0"
    assert int(status["CapEff"], 16) == 0
    assert status["Seccomp"] == "2"
    assert status["NoNewPrivs"] == "1"
    assert (folder / "qmp.sock").stat().st_mode & 0o777 == 0o600
    others = [vm["uuid"] for vm in hanok.json("list") if vm["uuid"] != uuid]
    for other in others:
        owner = (daemon.home / "vms" / other / "m").stat()
        assert owner.st_uid != int(status["Uid"].split()[0])
        assert owner.st_mode & 0o077 == 0


def test_a_qemu_that_is_killed_is_a_failure_with_a_reason(hanok: Cli, daemon: Daemon) -> None:
    hanok.ok("run", "micro", "--name", "hit", "--memory", "128M", "--disk", "1G")
    folder = daemon.home / "vms" / hanok.json("show", "hit")["uuid"] / "m"
    os.kill(int((folder / "qemu.pid").read_text()), signal.SIGKILL)
    wait_until(lambda: daemon.client.vm("hit")["state"] == "failed", 30, "hit has failed")
    assert "ended" in str(daemon.client.vm("hit")["reason"])
    hanok.ok("start", "hit")
    hanok.ok("delete", "hit", "--force")
