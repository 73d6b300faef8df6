"""``hanok plan compare PLAN``: the forecast against what hosts and VMs used since.

What they used comes from usage files, or is sampled from the daemons of the VMs that apply made.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from hanok.cli.applystate import STATE_NAME, read_state
from hanok.cli.applywork import vm_name
from hanok.cli.base import Session
from hanok.cli.output import Cell, printable
from hanok.cli.planfiles import make_folder, plan_path, read_plan, write
from hanok.cli.planwork import Steps
from hanok.client.client import Client
from hanok.errors import Conflict, HanokError, InvalidInput, NotFound
from hanok.units import format_size

if TYPE_CHECKING:
    from hanok.consolidation.measured import HostCheck, Load, VmCheck
    from hanok.model.plan import PlanFile
    from hanok.model.usage import Usage

FOLDER = "measured"
_EXEC_LIMIT = 10.0
_SPAN = re.compile(r"(\d{1,6}(?:\.\d{1,3})?)\s*([smh]?)", re.A)
_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}
_STYLES = {"as forecast": "green", "above": "red", "below": "yellow"}


@dataclass(frozen=True)
class Probe:
    """A VM that is sampled: its name in the plan and on its host, and its sizes (bytes)."""

    plan_name: str
    vm: str
    client: Client
    vcpus: int
    memory: int


@dataclass(frozen=True)
class Clock:
    """The time, for tests to replace: seconds that only grow, and sleeping."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


def parse_span(text: str, field: str) -> float:
    """Return the seconds that ``text`` stands for: ``5s``, ``2m``, ``1h``. Raises InvalidInput."""
    match = _SPAN.fullmatch(text.strip())
    seconds = 0.0 if match is None else float(match[1]) * _SECONDS[match[2]]
    if seconds <= 0:
        raise InvalidInput(f"{text!r} is no time", field=field, expected="such as 5s, 2m or 1h")
    return seconds


def compare_measured(
    session: Session, path: Path, usage: Path | None, span: str | None, every: str
) -> None:
    """Print how right the plan at ``path`` was.

    With ``span`` the VMs that apply made are sampled that long, and usage files are written to
    ``usage`` (else to a folder beside the plan). Raises InvalidInput, NotFound, Conflict.
    """
    from hanok.assess.folder import read_usages
    from hanok.consolidation.measured import check_host, check_vm

    plan = read_plan(path)
    folder = usage if usage is not None else plan_path(path).parent / FOLDER
    notes: list[str] = []
    if span is not None:
        seconds, step = parse_span(span, "--for"), parse_span(every, "--every")
        if step > seconds:
            raise InvalidInput("--every is longer than --for", field="--every", expected=span)
        probes = find_probes(session, plan, path)
        with Steps(session, path.name) as steps:
            measured = take(probes, seconds, step, steps.tell)
        write_usages(measured, make_folder(folder))
    usages, strangers = by_plan_name(plan, read_usages(folder))
    if strangers:
        notes.append(f"not of this plan: {', '.join(strangers[:10])}")
    if not usages:
        raise NotFound(
            f"{folder} has no usage file of a host or VM of the plan",
            hint="hanok plan compare PLAN --for 2m measures the VMs that apply made",
        )
    hosts = [check_host(plan, host, usages) for host in plan.used]
    vms = [check_vm(plan, vm, usages.get(vm.name)) for vm in plan.vms]
    notes += [f"{each.server}: {one.text}" for each in usages.values() for one in each.findings]
    notes += _short(plan, hosts)
    _print(session, hosts, vms, notes)


def by_plan_name(plan: PlanFile, usages: Sequence[Usage]) -> tuple[dict[str, Usage], list[str]]:
    """Return usages by the plan's names of VMs and hosts, and the names that it does not have."""
    known = {vm_name(vm.name): vm.name for vm in plan.vms}
    known |= {host.name: host.name for host in plan.used}
    known |= {vm.name: vm.name for vm in plan.vms}
    found = {known[each.server]: each for each in usages if each.server in known}
    return found, [each.server for each in usages if each.server not in known]


def _short(plan: PlanFile, hosts: Sequence[HostCheck]) -> list[str]:
    """Say when too little was measured to judge peaks by it."""
    longest = max((host.seconds for host in hosts), default=0.0)
    if 0 < longest < plan.grid.interval:
        return [
            f"measured for {longest:.0f} s, and the forecast is of averages over "
            f"{plan.grid.interval:.0f} s: measure longer to judge peaks"
        ]
    return []


# Sampling


def find_probes(session: Session, plan: PlanFile, path: Path) -> list[Probe]:
    """Return the VMs that apply made of the plan. Raises NotFound, and Conflict for another's."""
    from hanok.cli.apply import digest_of

    state = plan_path(path).parent / STATE_NAME
    found = read_state(state)
    done = {} if found is None else {n: vm for n, vm in found.vms.items() if vm.step == "done"}
    if found is None or not done:
        raise NotFound(
            f"no VM of {path} was made by hanok apply",
            hint="run hanok apply first, or name measured usage by --usage",
        )
    if found.digest != digest_of(plan):
        raise Conflict(
            f"{state} is of another plan", hint="compare the plan that was applied, with its folder"
        )
    clients: dict[str, Client] = {}
    for vm in done.values():
        if vm.remote not in clients:
            there = Session()
            there.out, there.remote_name = session.out, vm.remote
            clients[vm.remote] = there.client
    sizes = {vm.name: vm for vm in plan.vms}
    return [
        Probe(name, vm.name, clients[vm.remote], sizes[name].vcpus, sizes[name].memory)
        for name, vm in done.items()
        if name in sizes
    ]


def take(
    probes: Sequence[Probe],
    seconds: float,
    every: float,
    tell: Callable[[str, float | None], None],
    clock: Clock | None = None,
) -> list[Usage]:
    """Sample the VMs for ``seconds``, ``every`` so many, and return their usages.

    CPU time is the daemon's; memory is the guest's own word, asked for before and after: asking
    takes CPU time in it.
    """
    from hanok.model.usage import Finding, Metric, Sizes, Usage

    clock = clock or Clock()
    count = max(1, round(seconds / every))
    tell("asking the guests what memory they use", None)
    before = [read_memory(probe) for probe in probes]
    start, began = datetime.now(UTC), clock.now()
    last = [_cpu_time(probe, clock) for probe in probes]
    cores: list[list[float | None]] = [[] for _ in probes]
    for number in range(1, count + 1):
        tell(f"measuring {len(probes)} VMs for {seconds:.0f} s", number / count)
        clock.sleep(max(0.0, began + number * every - clock.now()))
        for at, probe in enumerate(probes):
            now = _cpu_time(probe, clock)
            cores[at].append(_cores(last[at], now))
            last[at] = now
    after = [read_memory(probe) for probe in probes]
    found = []
    for at, probe in enumerate(probes):
        memory = _at_the_ends(before[at], after[at], count)
        gaps = sum(value is None for value in cores[at])
        text = f"{gaps} of {count} samples are missing"
        findings = (Finding(code="gaps", count=gaps, text=text),) if gaps else ()
        found.append(
            Usage(
                server=probe.plan_name,
                start=start,
                interval=every,
                samples={Metric.CPU: tuple(cores[at]), Metric.MEMORY: memory},
                sizes=Sizes(cores=probe.vcpus, memory=probe.memory),
                source="hanok plan compare",
                findings=findings,
            )
        )
    return found


def _cpu_time(probe: Probe, clock: Clock) -> tuple[float, float] | None:
    """Return when, and how many CPU seconds the VM has taken; None when that is not known."""
    try:
        seconds = probe.client.vm(probe.vm)["cpu_seconds"]
    except HanokError:
        return None
    return None if seconds is None else (clock.now(), seconds)


def _cores(last: tuple[float, float] | None, now: tuple[float, float] | None) -> float | None:
    """Return the cores in use between two readings; None across a restart, where time shrinks."""
    if last is None or now is None or now[0] <= last[0] or now[1] < last[1]:
        return None
    return (now[1] - last[1]) / (now[0] - last[0])


def _at_the_ends(before: float | None, after: float | None, count: int) -> tuple[float | None, ...]:
    if count == 1:
        return (max((v for v in (before, after) if v is not None), default=None),)
    return (before, *[None] * (count - 2), after)


def read_memory(probe: Probe) -> float | None:
    """Return the bytes that the guest says are in use, None when it does not say."""
    command = ["cat", "/proc/meminfo"]
    try:
        answer = probe.client.execute(probe.vm, command, stdin=None, timeout=_EXEC_LIMIT)
        text = base64.b64decode(answer["stdout"]).decode("ascii", "replace")
    except (HanokError, ValueError):
        return None
    kib = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d{1,15}) kB$", text, re.M | re.A))
    if len(kib) != 2:
        return None
    return max(0.0, (float(kib["MemTotal"]) - float(kib["MemAvailable"])) * 1024)


def write_usages(usages: Sequence[Usage], folder: Path) -> None:
    """Write a usage file each. Raises InvalidInput."""
    for usage in usages:
        text = usage.model_dump_json(indent=1) + "\n"
        write(folder / f"{usage.server}.usage.json", text.encode())


# Printing


def _print(
    session: Session, hosts: Sequence[HostCheck], vms: Sequence[VmCheck], notes: Sequence[str]
) -> None:
    out = session.out
    if out.as_json:
        out.json(
            {
                "hosts": [{**asdict(one), "difference": _difference(one)} for one in hosts],
                "vms": [asdict(vm) for vm in vms],
                "notes": list(notes),
            }
        )
        return
    out.line("Cores in use, measured (forecast):")
    titles = ("HOST", ">VMS", ">MEAN", ">P95", ">PEAK", ">ROOM", ">ABOVE ROOM", "VERDICT")
    out.table(titles, [_host_row(one) for one in hosts])
    for one in hosts:
        if one.worst is not None:
            share = f"{one.above_forecast:.0%} of the time"
            most = f"by {one.excess:.2f} cores at {one.worst}"
            out.line(f"{one.name} was above its forecast {share}, {most}")
    out.line()
    columns = ("VM", "HOST", ">VCPUS", ">MEAN", ">P99", ">NEEDS", ">MEMORY", ">USED", "VERDICT")
    out.table(columns, [_vm_row(vm) for vm in vms])
    for note in notes:
        out.line(f"Note: {printable(note)}")


def _difference(one: HostCheck) -> dict[str, float] | None:
    """Return measured less forecast, in cores."""
    if one.measured is None or one.forecast is None:
        return None
    forecast = asdict(one.forecast)
    return {name: value - forecast[name] for name, value in asdict(one.measured).items()}


def _host_row(one: HostCheck) -> list[Cell | str]:
    if one.measured is None or one.forecast is None:
        return [Cell(one.name, "bold"), f"0/{one.vms}", *["-"] * 5, one.verdict]
    return [
        Cell(one.name, "bold"),
        f"{one.measured_vms}/{one.vms}",
        *(_both(one.measured, one.forecast, name) for name in ("mean", "p95", "peak")),
        f"{one.room:.2f}",
        Cell(f"{one.above_room:.0%}", "red" if one.above_room else None),
        Cell(one.verdict, _STYLES.get(one.verdict)),
    ]


def _both(measured: Load, forecast: Load, name: str) -> str:
    return f"{getattr(measured, name):.2f} ({getattr(forecast, name):.2f})"


def _vm_row(vm: VmCheck) -> list[Cell | str]:
    used = "-" if vm.memory_used is None else format_size(int(vm.memory_used))
    return [
        Cell(vm.name, "bold"),
        vm.host,
        str(vm.vcpus),
        "-" if vm.mean is None else f"{vm.mean:.2f}",
        "-" if vm.p99 is None else f"{vm.p99:.2f}",
        "-" if vm.needs_vcpus is None else str(vm.needs_vcpus),
        format_size(vm.memory),
        used,
        verdict_of(vm),
    ]


def verdict_of(vm: VmCheck) -> Cell:
    """Return in words whether a VM uses more or less than its size was made for."""
    told = [
        f"{size} {what}"
        for size, what in ((vm.cpu, "CPU"), (vm.ram, "memory"))
        if size in ("more", "less")
    ]
    if told:
        return Cell(", ".join(told), "red" if "more" in (vm.cpu, vm.ram) else None)
    return Cell(vm.cpu)
