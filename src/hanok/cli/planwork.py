"""What the commands of ``hanok plan`` do: read, search under the eyes of a person, judge."""

from __future__ import annotations

import importlib.util
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Self

from hanok.cli.base import Session
from hanok.cli.planfiles import Read
from hanok.cli.progress import View, local_operation, open_view
from hanok.errors import HanokError, HostError, InvalidInput
from hanok.model.plan import Objective, Search

if TYPE_CHECKING:
    from pathlib import Path

    from hanok.consolidation.fleet import Fleet
    from hanok.consolidation.offers import Choice, Effort
    from hanok.consolidation.request import Plan
    from hanok.model.plan import PlanFile

_NEEDED = ("numba", "numpy")
_REPORT = ("fpdf", "jinja2", "matplotlib")
LEAST_EFFORT = 5
SERVERS_AN_EFFORT = 100
MOVES = 1_000_000
QUIET_SECONDS = 1.0


def require_extra(*, report: bool = False) -> None:
    """Raise HostError, with how to install it, when the extra ``plan`` is not there."""
    wanted = (*_NEEDED, *_REPORT) if report else _NEEDED
    missing = [name for name in wanted if importlib.util.find_spec(name) is None]
    if missing:
        raise HostError(
            f"planning needs what is not installed here: {', '.join(missing)}",
            expected="Hanok with its extra 'plan'",
            hint=f"{sys.executable} -m pip install 'hanok[plan]'",
        )


class Steps:
    """Shows how far a command is: at once on a terminal, elsewhere after a second."""

    def __init__(self, session: Session, target: str) -> None:
        self._session = session
        self._target = target
        self._view: View | None = None
        self._open: AbstractContextManager[View] | None = None
        self._began = time.monotonic()
        self._message = ""

    def __enter__(self) -> Self:
        self._open = open_view(self._session.out)
        self._view = self._open.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._open is not None:
            self._open.__exit__(kind, error, trace)

    def tell(self, message: str, fraction: float | None = None) -> None:
        """Show ``message``, and how much of this step is done; an empty one leaves the last."""
        self._message = message or self._message
        quick = time.monotonic() - self._began < QUIET_SECONDS
        if self._view is None or (quick and not sys.stderr.isatty()):
            return
        self._view.show(local_operation("plan", self._target, self._message, fraction))


@dataclass
class Stop:
    """Whether the search was asked to end; ``tell`` says so to whoever asked."""

    tell: Callable[[], None]
    asked: bool = False
    told: bool = False

    def heed(self) -> bool:
        """Return whether it was asked, and say so the first time.

        The signal's handler cannot: it may have interrupted the very writing of a line.
        """
        if self.asked and not self.told:
            self.told = True
            self.tell()
        return self.asked


@contextmanager
def stoppable(session: Session) -> Iterator[Stop]:
    """Let Ctrl-C end the search with the best plan so far; a second one ends the command."""
    note = session.out.note
    stop = Stop(lambda: note("Stopping with the best plan so far (Ctrl-C again: without one)"))

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


@dataclass(frozen=True)
class Wish:
    """How a plan is to be searched for; ``effort`` None: by the number of servers."""

    effort: int | None
    seed: int
    objective: Objective
    time_limit: float | None = None

    def effort_for(self, servers: int) -> int:
        """Return the effort for a fleet of ``servers``."""
        return self.effort or LEAST_EFFORT + servers // SERVERS_AN_EFFORT


def load_fleet(read: Read, fold: bool, steps: Steps) -> Fleet:
    """Return what is planned. Raises InvalidInput with the file, the line and the field."""
    from hanok.consolidation.fleet import make_fleet

    with read.places():
        return make_fleet(read.servers, read.hosts, read.usages, fold=fold, tell=steps.tell)


def search(
    fleet: Fleet, read: Read, wish: Wish, steps: Steps, session: Session
) -> tuple[Choice, Search]:
    """Search for a plan and say how that was done. Raises Impossible, InvalidInput."""
    from hanok.consolidation.whatif import solve

    _check_prices(fleet, read, wish)
    effort = wish.effort_for(len(fleet.request.servers))
    steps.tell("searching (the first search after an installation takes some seconds longer)")
    with stoppable(session) as stop:
        choice = solve(
            fleet,
            _effort(effort, wish.time_limit, steps, stop),
            wish.objective,
            wish.seed,
            show=_shown(steps),
        )
    done = Search(
        effort=effort,
        seed=wish.seed,
        objective=wish.objective,
        time_limit=wish.time_limit,
        steps=choice.steps,
        stopped=stop.asked,
        reproducible=not stop.asked and wish.time_limit is None,
    )
    return choice, done


def _check_prices(fleet: Fleet, read: Read, wish: Wish) -> None:
    unpriced = [name for name in fleet.hosts.offers if fleet.hosts.kinds[name].price is None]
    if wish.objective == "money" and unpriced:
        with read.places():
            raise InvalidInput(
                f"nothing says what a {unpriced[0]} costs",
                field=f"kinds.{unpriced[0]}.price",
                expected="a price, where the least money is looked for",
                hint="give one in a hosts file (--hosts)",
            )


def _effort(effort: int, seconds: float | None, steps: Steps, stop: Stop) -> Effort:
    from hanok.consolidation.offers import Effort

    spent = 0

    def hear(moves: int) -> None:
        nonlocal spent
        spent += moves
        steps.tell("", min(1.0, spent / (effort * MOVES)))

    return Effort(effort * MOVES, seconds, time.monotonic, stop.heed, hear)


def _shown(steps: Steps) -> Callable[[Plan], None]:
    def show(plan: Plan) -> None:
        steps.tell(
            f"{len(plan.hosts)} hosts, at least {plan.bound.bins} (gap {plan.gap:.1%}); "
            "Ctrl-C stops with the best"
        )

    return show


def checked(fleet: Fleet, file: PlanFile) -> PlanFile:
    """Return ``file`` once the checker, which shares nothing with the search, has passed it."""
    from hanok.consolidation.handmade import check_file

    faults = check_file(fleet, file)
    if faults:
        first = faults[0]
        raise HanokError(
            f"the plan that was found breaks a rule: {first.rule}, {first.where} {first.what}",
            hint="this is a fault of Hanok: please report it with the input files",
        )
    return file


def write_results(file: PlanFile, folder: Path, steps: Steps) -> list[Path]:
    """Write plan.json and the report, as HTML and as PDF; return the files."""
    from hanok.cli.planfiles import PLAN_NAME, write
    from hanok.report.content import make_report
    from hanok.report.html import to_html
    from hanok.report.pdf import to_pdf

    paths = [folder / name for name in (PLAN_NAME, "report.html", "report.pdf")]
    write(paths[0], (file.model_dump_json(indent=1) + "\n").encode())
    steps.tell("drawing the report")
    report = make_report(file)
    write(paths[1], to_html(report).encode())
    steps.tell("writing the report as PDF")
    write(paths[2], to_pdf(report))
    return paths
