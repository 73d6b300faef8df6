"""``python -m bench``: measures, prints a table, writes build/bench/*.json.

Ends with status 1 when a promise of docs/SPECIFICATION.md is broken. Takes some minutes: the
guests of the three servers are built in an empty data directory.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml
from rich.console import Console

from bench.clones import PARTS, Options, measure_clones
from bench.hanok import Hanok, own_hanok
from bench.lab import measure_lab, measure_lab_xen
from bench.machine import resident
from bench.plain import Guest, seconds_to_ready
from bench.plot import plot_clones
from bench.remote import measure_remote
from bench.report import Figure, Report
from bench.xen import measure_xen

_ROOT = Path(__file__).parents[1]
_STACK = _ROOT / "examples/three-servers.yaml"
_MICRO_MEMORY = 128
_PLOT = _ROOT / "docs/clones.svg"
_MIB = 1024 * 1024


def main() -> int:
    """Run the benchmarks that were asked for."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    names = [*_GROUPS]
    parser.add_argument("groups", nargs="*", choices=[*names, []], help="default: all")
    parser.add_argument("--rounds", type=int, default=7, help="boots, or commands, each way")
    _add_clone_options(parser)
    options = parser.parse_args()
    console, report = Console(stderr=True), Report()
    if options.plot is not None:
        plot_clones(options.plot, _PLOT)
        print(f"drawn to {_PLOT.relative_to(_ROOT)}")
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what was made is removed
    clones = Options(options.parts, options.clones, options.rounds, options.samples)
    with contextlib.ExitStack() as stack:
        bench = Bench(report, console, options.rounds, stack, clones)
        for name in options.groups or names:
            console.print(f"[bold]{name}[/bold] …")
            _GROUPS[name](bench)
    report.show(Console(width=112))
    print(f"written to {report.write(_ROOT / 'build/bench').relative_to(_ROOT)}")
    return 0 if report.kept else 1


def _add_clone_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clones")
    group.add_argument(
        "--parts",
        type=_parts,
        default=PARTS,
        metavar="NAME,...",
        help=f"parts of the group clones (default: {','.join(PARTS)})",
    )
    group.add_argument("--clones", type=int, default=300, help="how many for the part many")
    group.add_argument("--samples", type=int, default=20, help="clones made one by one")
    group.add_argument(
        "--plot", type=Path, metavar="FILE", help="only draw docs/clones.svg from a run's JSON"
    )


def _parts(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(PARTS)}")
    return names


class Bench:
    """The measurements; one data directory for all that need real guests."""

    def __init__(
        self,
        report: Report,
        console: Console,
        rounds: int,
        stack: contextlib.ExitStack,
        clone_options: Options,
    ) -> None:
        self.report = report
        self.console = console
        self.rounds = rounds
        self.clone_options = clone_options
        self._stack = stack
        self._real: Hanok | None = None

    @property
    def real(self) -> Hanok:
        """Hanok on the real hypervisor, its images kept for the whole run."""
        if self._real is None:
            # Boots are what is measured here; warm starts are in the group clones.
            self._real = self._stack.enter_context(own_hanok(settings={"HANOK_WARM": "0"}))
        return self._real

    def three_servers(self) -> None:
        """The main job, cold (everything built) and again, and the daemon's memory with it."""
        with _stack_file() as path:
            cold = self.real.seconds("up", str(path))
            self.report.add(Figure("up, cold: images built, three VMs ready", cold, "s"))
            again = [self.real.seconds("up", str(path)) for _ in range(3)]
            self.report.median("up, again: nothing to do", again, limit=10)
            memory = resident(self.real.daemon_pid()) / _MIB
            self.report.add(Figure("daemon's memory with 3 VMs", memory, "MiB", limit=90))
            down = self.real.seconds("down", str(path))
            self.report.add(Figure("down: three VMs stopped and deleted", down, "s"))
            warm = self.real.seconds("up", str(path))
            self.report.add(Figure("up, images built: three VMs ready", warm, "s"))
            self.real.run("down", str(path))

    def micro(self) -> None:
        """``hanok run micro`` against plain QEMU, by turns."""
        warm = self._run_micro("warm")
        image = self.real.json("image", "inspect", "micro")
        guest = Guest.of_image(self.real.images, image, _MICRO_MEMORY)
        vm = self.real.json("show", "warm")
        self.real.run("delete", "--force", "warm")
        self.console.print(f"  the first one, network made: {warm:.2f} s")
        ours: list[float] = []
        plain: list[float] = []
        for number in range(self.rounds):
            plain.append(seconds_to_ready(guest, vm["accelerator"], vm["machine_type"]))
            ours.append(self._run_micro(f"b{number}"))
            self.real.run("delete", "--force", f"b{number}")
        self.report.median("plain QEMU: micro to its agent and address", plain)
        self.report.median("hanok run micro: whole command, to ready", ours)
        # Pairs that follow each other: what else the machine does weighs on both.
        ratios = [mine / base for mine, base in zip(ours, plain, strict=True)]
        self.report.median("hanok run / plain QEMU, by pairs", ratios, "x", limit=1.25)

    def _run_micro(self, name: str) -> float:
        return self.real.seconds("run", "micro", "--name", name, "--memory", f"{_MICRO_MEMORY}M")

    def listing(self) -> None:
        """``hanok list`` as a whole process: one real VM, then 100 of the fake hypervisor's."""
        self._run_micro("only")
        one = [self.real.seconds("list") for _ in range(20)]
        self.report.median("hanok list, 1 VM", one, limit=0.15)
        self.real.run("delete", "--force", "only")
        with own_hanok("fake") as fake:
            for number in range(100):
                # Stopped ones take no CPU: more than 16 would not be admitted on 2 CPUs.
                fake.run("run", "micro", "--name", f"vm{number}", "--disk", "64M")
                fake.run("stop", "--force", f"vm{number}")
            many = [fake.seconds("list") for _ in range(20)]
        self.report.median("hanok list, 100 VMs (fake)", many, limit=0.25)

    def clones(self) -> None:
        """Templates and clones, with settings of their own: see bench/clones.py."""
        measure_clones(self.report, self.console, self.clone_options)

    def remote(self) -> None:
        """What a remote adds to each command: see bench/remote.py."""
        measure_remote(self.report, self.console, self.rounds)

    def lab(self) -> None:
        """Virtual physical servers: see bench/lab.py."""
        measure_lab(self.report, self.console, self.rounds)

    def lab_xen(self) -> None:
        """The same below Xen."""
        measure_lab_xen(self.report, self.console, self.rounds)

    def xen(self) -> None:
        """Guests of Xen in such a host: see bench/xen.py."""
        measure_xen(self.report, self.console, self.rounds)


_GROUPS: dict[str, Callable[[Bench], None]] = {
    "three-servers": Bench.three_servers,
    "micro": Bench.micro,
    "list": Bench.listing,
    "clones": Bench.clones,
    "remote": Bench.remote,
    "lab": Bench.lab,
    "lab-xen": Bench.lab_xen,
    "xen": Bench.xen,
}


@contextlib.contextmanager
def _stack_file() -> Iterator[Path]:
    """Give the example's stack with host ports that are free: the user's own may be up."""
    content = yaml.safe_load(_STACK.read_text())
    for vm in content["vms"].values():
        vm["publish"] = [f"{_free_port()}:{port.split(':')[-1]}" for port in vm.get("publish", [])]
    folder = Path(tempfile.mkdtemp(prefix="hk-stack-", dir="/tmp"))
    try:
        path = folder / "stack.yaml"
        path.write_text(yaml.safe_dump(content))
        yield path
    finally:
        shutil.rmtree(folder)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())
