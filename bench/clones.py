"""Templates and clones: how quick a clone is, how many fit, and what they cost while idle.

Cold boots and a clone script of plain QEMU are measured in the same run: ratios are to them.
"""

from __future__ import annotations

import base64
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from bench.hanok import Hanok, delete, own_hanok
from bench.machine import available, cpu_seconds, proportional, touch_memory
from bench.plain import Guest, seconds_to_ready
from bench.plain_clone import plain_template
from bench.report import Figure, Report
from hanok.client.client import Client
from hanok.proc import find_owned

_MIB = 1024 * 1024
_MEMORY = 256
_SHAPE: dict[str, object] = {"image": "micro", "memory": f"{_MEMORY}M", "disk": "128M"}
_NGINX: dict[str, object] = {
    "image": "debian:12",
    "packages": ["nginx"],
    "ready": {"port": 80},
    "memory": "512M",
}
# Many mostly idle VMs on few CPUs, more memory sold than there is: what a host of clones is for.
_SETTINGS = {
    "HANOK_CPU_RATIO": "1024",
    "HANOK_MEMORY_POLICY": "shared",
    "HANOK_MEMORY_FACTOR": "16",
    "HANOK_WARM": "0",
}
_BATCH = 10
_LOOK_EVERY = 50
_IDLE_AT = 200
_IDLE_SECONDS = 20.0
_SHORT_IDLE = 5.0
# What a clone still does after it is ready (its kernel's timers, the host's merging of work).
_REST = 3.0
# What a clone comes to use and what its start needs for a while, in bytes.
_TOUCHED = 48 * _MIB
_ASK_AT_ONCE = 8
_VM = "vm"


@dataclass(frozen=True)
class Options:
    """What to measure: names of parts, how many clones, how often each quick thing."""

    parts: Sequence[str]
    clones: int = 300
    rounds: int = 5
    samples: int = 20


@dataclass
class _Bench:
    report: Report
    console: Console
    options: Options
    hanok: Hanok
    client: Client

    def say(self, text: str) -> None:
        self.console.print(f"  {text}")

    def seconds(self, ask: Callable[[], Any]) -> float:
        """Return the seconds from a request until its operation is done."""
        started = time.perf_counter()
        self.client.finish(ask())
        return time.perf_counter() - started

    def clone(self, template: str, name: str, count: int = 1, first: int = 1) -> float:
        wanted = {"template": template, "name": name, "count": count, "first": first}
        return self.seconds(lambda: self.client.clone(wanted))

    def run(self, name: str, shape: dict[str, object]) -> float:
        return self.seconds(lambda: self.client.run({**shape, "name": name, "cold": True}))

    def template(self, name: str, source: str) -> None:
        self.seconds(lambda: self.client.create_template(name, source))

    @contextmanager
    def micro(self) -> Iterator[str]:
        """Give a template of ``micro``; its clones are deleted by the caller."""
        self.run("source", _SHAPE)
        self.template("micro", "source")
        delete(self.client, ["source"])
        yield "micro"
        self.client.delete_template("micro")


def measure_clones(report: Report, console: Console, options: Options) -> None:
    """Measure the parts of the group that were asked for."""
    parts = {"one": _one, "nginx": _nginx, "hundred": _hundred, "many": _many}
    wanted = [name for name in parts if name in options.parts]
    if wanted:
        with own_hanok(settings=_SETTINGS) as hanok:
            bench = _Bench(report, console, options, hanok, hanok.client())
            bench.run("first", _SHAPE)  # builds the image, makes the network, measures KVM
            delete(bench.client, ["first"])
            for name in wanted:
                console.print(f"  part {name}")
                parts[name](bench)
    if "warm" in options.parts:
        console.print("  part warm")
        _warm(report, options)


def _one(bench: _Bench) -> None:
    """One clone of ``micro`` against its cold boot and against plain QEMU's clones."""
    report, options = bench.report, bench.options
    cold: list[float] = []
    plain_cold: list[float] = []
    with bench.micro() as template:
        bench.clone(template, "show")
        vm = bench.client.vm("show")
        image = bench.hanok.json("image", "inspect", "micro")
        guest = Guest.of_image(bench.hanok.images, image, _MEMORY)
        machine = vm["accelerator"], str(vm["machine_type"])
        for number in range(options.rounds):
            plain_cold.append(seconds_to_ready(guest, *machine))
            cold.append(bench.run(f"cold{number}", _SHAPE))
            delete(bench.client, [f"cold{number}"])
        ours, bare, bare_cpu = _clones_by_turns(bench, template, guest, machine)
        delete(bench.client, ["show"])
    report.median("micro, cold: plain QEMU", plain_cold)
    boot = report.median("micro, cold: Hanok, request to ready", cold)
    floor = report.median("micro, clone: plain QEMU, start to the agent's ping", bare)
    report.median("micro, clone: plain QEMU, its CPU seconds", bare_cpu)
    median = report.median("micro, clone: Hanok, request to own identity", ours, limit=0.25)
    report.add(Figure("micro: clone / cold", median / boot, "x", limit=1 / 8))
    report.add(Figure("micro: Hanok's clone / plain QEMU's clone", median / floor, "x"))


def _clones_by_turns(
    bench: _Bench, template: str, guest: Guest, machine: tuple[str, str]
) -> tuple[list[float], list[float], list[float]]:
    ours, bare, cpu = [], [], []
    with plain_template(guest, *machine) as plain:
        for number in range(bench.options.samples):
            name = f"one{number}"
            ours.append(bench.clone(template, name))
            delete(bench.client, [name])
            found = plain.clone()
            bare.append(found.seconds)
            cpu.append(found.cpu)
    return ours, bare, cpu


def _nginx(bench: _Bench) -> None:
    """A whole Debian whose web server answers on its own address."""
    rounds = max(2, bench.options.rounds // 2)
    bench.client.finish(bench.client.build_image("debian:12", ["nginx"]))
    cold = []
    for number in range(rounds):
        cold.append(bench.run(f"web{number}", _NGINX))
        if number:
            delete(bench.client, [f"web{number}"])
    bench.template("web", "web0")
    delete(bench.client, ["web0"])
    clones = []
    for number in range(bench.options.samples // 2):
        clones.append(bench.clone("web", f"web{number}"))
        delete(bench.client, [f"web{number}"])
    bench.client.delete_template("web")
    boot = bench.report.median("debian:12 with nginx, cold: port 80 answers", cold)
    median = bench.report.median(
        "debian:12 with nginx, clone: port 80 answers at its own address", clones, limit=1.5
    )
    bench.report.add(Figure("debian:12 with nginx: clone / cold", median / boot, "x", limit=0.1))


def _hundred(bench: _Bench) -> None:
    """100 clones by one command, as a user types it."""
    with bench.micro() as template:
        seconds = bench.hanok.seconds("clone", template, "--count", "100", "--name", "h-{n}")
        bench.report.add(Figure("hanok clone --count 100: the last one ready", seconds, "s", 30))
        delete(bench.client, [f"h-{number}" for number in range(1, 101)])


def _many(bench: _Bench) -> None:
    """A host full of clones: seconds for one more, memory and idle CPU as they grow."""
    report, count = bench.report, bench.options.clones
    with bench.micro() as template:
        rows: list[dict[str, float]] = []
        report.series["clones"] = rows
        before = available()
        batches: list[float] = []
        alone: list[float] = []
        idle: _Idle | None = None
        for first in range(1, count + 1, _BATCH):
            size = min(_BATCH, count - first + 1)
            # Each meets the machine alike: at rest, and with memory that it has in use.
            time.sleep(_REST)
            touch_memory(size * _TOUCHED)
            batches.append(bench.clone(template, "m-{n}", size, first) / size)
            number = first + size - 1
            if number == _BATCH:
                alone = _one_more(bench, template)
            row = {"clones": float(number), "seconds": batches[-1]}
            rows.append(row)
            if number % _LOOK_EVERY == 0 or number == count:
                whole = number == min(_IDLE_AT, count)
                seen = _look(bench, _IDLE_SECONDS if whole else _SHORT_IDLE)
                idle = seen if whole else idle
                row.update(_row(seen, before - available()))
                bench.say(f"{number} clones, {row['seconds']:.2f} s each, {seen.share:.0%} CPU")
        _report_one_more(report, alone, _one_more(bench, template), count)
        _report_many(report, batches, idle or seen, seen, before - available(), count)
        _report_answers(bench, count)
        delete(bench.client, [f"m-{number}" for number in range(1, count + 1)])


def _one_more(bench: _Bench, template: str) -> list[float]:
    """Return the seconds that one more clone takes beside those that run, time after time."""
    time.sleep(_REST)
    seconds = []
    for _ in range(bench.options.samples):
        seconds.append(bench.clone(template, "more"))
        delete(bench.client, ["more"])
    return seconds


def _report_one_more(
    report: Report, early: Sequence[float], late: Sequence[float], count: int
) -> None:
    first = report.median(f"one more clone beside {_BATCH}", early)
    last = report.median(f"one more clone beside {count}", late)
    report.add(Figure(f"one more beside {count} / beside {_BATCH}", last / first, "x", limit=1.3))


@dataclass(frozen=True)
class _Idle:
    """What clones cost that do nothing: shares of one core, and bytes of each clone."""

    share: float
    others: float
    memory: list[int]


def _look(bench: _Bench, seconds: float) -> _Idle:
    """Watch everything of Hanok's for a while; nobody asks for anything meanwhile."""
    daemon = bench.hanok.daemon_pid()
    owned = list(find_owned(bench.hanok.home))
    machines = [process.pid for process in owned if process.owner.kind == _VM]
    others = [daemon, *(process.pid for process in owned if process.owner.kind != _VM)]
    time.sleep(_REST)
    started = time.perf_counter()
    before = _cpu(machines), _cpu(others)
    time.sleep(seconds)
    passed = time.perf_counter() - started
    after = _cpu(machines), _cpu(others)
    return _Idle(
        share=(after[0] - before[0]) / passed,
        others=(after[1] - before[1]) / passed,
        memory=[proportional(pid) for pid in machines],
    )


def _cpu(pids: Sequence[int]) -> float:
    return sum(cpu_seconds(pid) for pid in pids)


def _row(seen: _Idle, taken: int) -> dict[str, float]:
    return {
        "idle_cpu": seen.share,
        "idle_cpu_others": seen.others,
        "proportional": statistics.median(seen.memory),
        "memory": float(sum(seen.memory)),
        "memory_taken": float(taken),
        "memory_sold": float(len(seen.memory) * _MEMORY * _MIB),
    }


def _report_many(
    report: Report, batches: Sequence[float], idle: _Idle, last: _Idle, taken: int, count: int
) -> None:
    # Three batches each, as one of them may have met other work of the machine.
    early, late = statistics.median(batches[1:4]), statistics.median(batches[-3:])
    report.add(Figure(f"running clones of {_MEMORY} MiB", count, ""))
    report.add(Figure("one of the 2nd to 4th batch of ten", early, "s"))
    report.add(Figure("one of the last three batches of ten", late, "s"))
    report.add(Figure("batches of ten: the last / the first", late / early, "x", limit=1.3))
    memory = [size / _MIB for size in last.memory]
    report.median("proportional memory of an idle clone", memory, "MiB", limit=60)
    report.add(Figure("memory of the machine that a clone took", taken / count / _MIB, "MiB"))
    clones = len(idle.memory)
    report.add(Figure(f"idle CPU of {clones} clones, of one core", 100 * idle.share, "%", 60))
    others = 100 * idle.others
    report.add(Figure(f"idle CPU of daemon and network, {clones} clones", others, "%"))


def _report_answers(bench: _Bench, count: int) -> None:
    """Ask every clone for its name by a command in it."""
    names = [f"m-{number}" for number in range(1, count + 1)]
    started = time.perf_counter()
    with ThreadPoolExecutor(_ASK_AT_ONCE) as pool:
        silent = sum(not answered for answered in pool.map(lambda n: _answers(bench, n), names))
    seconds = time.perf_counter() - started
    remark = f"all asked within {seconds:.1f} s"
    report = bench.report
    report.add(Figure(f"clones of {count} that did not answer", silent, "", 0, remark=remark))


def _answers(bench: _Bench, name: str) -> bool:
    done = bench.client.execute(name, ["hostname"], stdin=None, timeout=120)
    return done["exit_status"] == 0 and _text(done["stdout"]).strip() == name


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode("utf-8", "replace")


def _warm(report: Report, options: Options) -> None:
    """``hanok run micro`` as a user has it: the first boots, the next ones go on from it."""
    shape = ("--memory", f"{_MEMORY}M", "--disk", "256M")
    with own_hanok(settings={"HANOK_WARM": "4"}) as hanok:
        hanok.run("image", "build", "micro")
        # The network and what this host can do are the same for both.
        hanok.run("run", "micro", "--name", "first", "--cold", *shape, "--mode", "full")
        cold = hanok.seconds("run", "micro", "--name", "cold", *shape)
        _wait_for_warm(hanok)
        warm = []
        for number in range(max(3, options.rounds)):
            warm.append(hanok.seconds("run", "micro", "--name", f"warm{number}", *shape))
        vm = hanok.json("show", "warm0")
    report.add(Figure("hanok run micro, first: whole command", cold, "s"))
    median = report.median("hanok run micro, second: whole command", warm, remark=str(vm["boot"]))
    report.add(Figure("hanok run micro: second / first", median / cold, "x"))


def _wait_for_warm(hanok: Hanok) -> None:
    client = hanok.client()
    for operation in client.operations():
        client.finish(operation)


PARTS: tuple[str, ...] = ("one", "nginx", "hundred", "many", "warm")
