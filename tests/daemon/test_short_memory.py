"""A host that is short of memory, as admission and people are told of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from hanok import shortage
from hanok.cli.main import main
from hanok.errors import CommandFailed, NotAdmitted
from hanok.proc import SystemRunner
from hanok.shortage import GroupMemory, group_memory, why_killed
from hanok.units import GIB, MIB
from tests.daemon.harness import Daemon, new_daemon, wait_until
from tests.fake_image import fake_images
from tests.machine import is_outermost
from tests.memory_group import memory_group

TAKER = """
import sys
kept = []
for line in sys.stdin:
    kept.append(b"x" * (int(line) << 20))
    print("taken", flush=True)
"""
TAKES = "import sys; print(len(bytearray(200 * 1024 * 1024)))"


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon that keeps nothing of the memory that there is for itself."""
    with fake_images() as images, new_daemon("fake", images, HANOK_RESERVE_MEMORY="1M") as started:
        yield started


def test_what_a_control_group_may_take_is_all_that_there_is(daemon: Daemon) -> None:
    """Where VMs are in the daemon's own group, as in a container."""
    before = daemon.client.host()["memory"]
    assert daemon.process is not None
    with memory_group(2 * GIB) as group:
        group.take(daemon.process.pid)
        host = daemon.client.host()
        assert host["memory"] == 2 * GIB < before
        assert any("control group" in note for note in host["notes"])
        with pytest.raises(NotAdmitted) as caught:
            daemon.run("large", memory="3G")
        assert caught.value.field == "memory"
        for words in ("of memory is missing", "is free", "fits"):
            assert words in caught.value.message
        assert daemon.client.vms() == []
        daemon.run("small", memory="1G")
    assert daemon.client.host()["memory"] == before


def test_memory_that_runs_short_is_told_at_80_and_90_percent(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANOK_HOME", str(daemon.home))
    monkeypatch.setenv("HANOK_REMOTE", "local")
    assert daemon.process is not None
    with memory_group(512 * MIB) as group, taker() as (pid, take):
        group.take(daemon.process.pid)
        group.take(pid)
        take(425)
        wait_until(partial(is_told, daemon, "memory-warning"), 30, "an event tells of it")
        assert daemon.client.host()["memory_level"] == "warning"
        take(45)
        wait_until(partial(is_told, daemon, "memory-critical"), 30, "an event tells of it")
        host = daemon.client.host()
        assert host["memory_level"] == "critical"
        assert main(["host", "show"]) == 0
        assert f"{host['memory_percent']} % of the host's memory is used" in capsys.readouterr().out
    wait_until(partial(is_told, daemon, "memory-ok"), 30, "an event tells that it is over")


def is_told(daemon: Daemon, name: str) -> bool:
    """Whether the last event about the host's memory is ``name``."""
    told = [
        event["name"]
        for event in daemon.client.events(follow=False)
        if event["name"].startswith("memory-")
    ]
    return told[-1:] == [name]


@contextmanager
def taker() -> Iterator[tuple[int, Callable[[int], None]]]:
    """Give the pid of a process, and what lets it take as many MiB more."""
    with subprocess.Popen(
        [sys.executable, "-c", TAKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:

        def take(size: int) -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(b"%d\n" % size)
            process.stdin.flush()
            assert process.stdout.readline() == b"taken\n"

        yield process.pid, take
        process.kill()


async def test_a_command_that_the_kernel_ends_says_why(tmp_path: Path) -> None:
    """Such as qemu-img, or what builds an image."""
    found = "in what its control" if is_outermost() else "meanwhile: probably this one"
    with memory_group(64 * MIB) as group:
        take = f"echo $$ > {group.folder}/cgroup.procs; exec {sys.executable} -c '{TAKES}'"
        with pytest.raises(CommandFailed, match=rf"signal 9.*for want of memory {found}"):
            await SystemRunner().run(["sh", "-c", take])
    with pytest.raises(CommandFailed) as caught:
        await SystemRunner().run(["sh", "-c", "kill -9 $$"])
    assert "memory" not in caught.value.message


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            "Out of memory: Killed process 77 (qemu-system-x86) total-vm:1kB, anon-rss:2048kB, "
            "file-rss:6kB, shmem-rss:1024kB, UID:0 pgtables:1kB oom_score_adj:0",
            "for want of memory in the host; it had 3 MiB",
        ),
        (
            "Memory cgroup out of memory: Killed process 77 (qemu-system-x86) total-vm:1kB, "
            "anon-rss:2048kB, file-rss:6kB, shmem-rss:0kB",
            "in what its control group may take; it had 2 MiB",
        ),
        ("Out of memory: Killed process 78 (qemu-system-x86) anon-rss:1kB, shmem-rss:0kB", ""),
        ("Out of memory: Killed process 77 (bash) anon-rss:1kB, file-rss:1kB, shmem-rss:0kB", ""),
        ("a guest says: Killed process 77 (qemu-system-x86)", ""),
    ],
)
def test_what_the_kernel_says(tmp_path: Path, line: str, words: str) -> None:
    log = tmp_path / "kmsg"
    log.write_text(f"6,1,1000,-;Linux version\n3,2,2000,-;{line}\n")
    found = why_killed(77, None, "qemu", log)
    assert (words in found) if words else found == ""


def test_what_it_said_of_another_with_the_same_number_does_not_count(tmp_path: Path) -> None:
    log = tmp_path / "kmsg"
    told = "Out of memory: Killed process 77 (qemu-x) anon-rss:1kB, file-rss:1kB, shmem-rss:0kB"
    log.write_text(f"3,2,2000,-;{told}\n")
    now = shortage.mark()
    earlier = shortage.Mark(now.kills - 1, now.time)
    assert why_killed(77, now, "qemu", log) == "", "nothing was ended since"
    assert "probably" in why_killed(77, earlier, "qemu", log)
    assert why_killed(77, None, "qemu", tmp_path / "none") == ""


@pytest.mark.parametrize(
    ("membership", "files", "found"),
    [
        (
            "4:memory:/a/b\n0::/\n",
            {
                "memory/memory.limit_in_bytes": str(2**63 - 4096),
                "memory/a/memory.limit_in_bytes": str(4 * GIB),
                "memory/a/memory.usage_in_bytes": str(3 * GIB),
                "memory/a/memory.stat": f"total_inactive_file {GIB}\n",
                "memory/a/b/memory.limit_in_bytes": str(8 * GIB),
                "memory/a/b/memory.usage_in_bytes": "0",
                "memory/a/b/memory.stat": "",
            },
            GroupMemory(4 * GIB, 2 * GIB),
        ),
        (
            "0::/a\n",
            {
                "cgroup.controllers": "memory",
                "a/memory.max": str(GIB),
                "a/memory.current": str(2 * GIB),
                "a/memory.stat": "anon 1\ninactive_file 0\n",
            },
            GroupMemory(GIB, 0),
        ),
        ("0::/a\n", {"cgroup.controllers": "memory", "a/memory.max": "max"}, None),
        ("0::/../../a\n", {"cgroup.controllers": "", "memory.max": "max"}, None),
        ("", {}, None),
    ],
)
def test_what_a_group_may_take(
    tmp_path: Path, membership: str, files: dict[str, str], found: GroupMemory | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "self").write_text(membership)
    assert group_memory(tmp_path, tmp_path / "self") == found
