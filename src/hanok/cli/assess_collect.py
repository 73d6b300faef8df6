"""``hanok assess collect``: measure this machine, for a time or as a service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from hanok.cli.assess import parse_duration, span
from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.cli.working import Told, working
from hanok.errors import InvalidInput

if TYPE_CHECKING:
    from hanok.assess.collect import Order

_LONGEST = 86400
_KEPT_SECONDS = 30 * 86400
_KEPT_INTERVALS = 100_000


@click.command(
    "collect",
    cls=Example,
    examples=(
        "hanok assess collect --for 24h --out usage",
        "hanok assess collect --for 1h --interval 10s --out usage",
        "hanok assess collect --out /var/lib/hanok-assess    # until it is told to end",
    ),
)
@click.option("--out", "folder", type=click.Path(path_type=Path), required=True, metavar="DIR")
@click.option("--for", "duration", metavar="TIME", help="How long, such as 24h (default: ever).")
@click.option("--interval", default="60s", show_default=True, metavar="TIME", help="1s to 1d.")
@click.option(
    "--keep", metavar="TIME", help="Drop what is older (default: 30d, at most 100000 intervals)."
)
@click.option("--name", metavar="NAME", help="What the server is called (default: its host name).")
@common_options
@pass_session
def collect(
    session: Session,
    folder: Path,
    duration: str | None,
    interval: str,
    keep: str | None,
    name: str | None,
) -> None:
    """Measure this machine into DIR/NAME.usage.json.

    CPU, memory, and the bytes that disks and network cards move. Each interval is on disk as soon
    as it is over; started again, it goes on. SIGTERM and Ctrl-C end it in order.
    """
    session.require_local("measuring")
    order = _order(folder, duration, interval, keep, name)
    with working(session.out, f"measuring {order.server}") as tell:
        done, interrupted = _run(order, tell)
    file = folder / f"{order.server}.usage.json"
    if session.out.as_json:
        session.out.json(
            {"server": order.server, "file": str(file) if file.exists() else None, "new": done}
        )
    elif done or file.exists():
        session.out.line(f"{done} intervals of {span(order.interval)} measured: {file}")
    else:
        session.out.line("Nothing measured: no whole interval has passed.")
    if interrupted:
        raise KeyboardInterrupt


def _order(
    folder: Path, duration: str | None, interval: str, keep: str | None, name: str | None
) -> Order:
    from hanok.assess.collect import Order
    from hanok.assess.machine import host_name
    from hanok.assess.recording import check_server

    seconds = parse_duration(interval, "--interval")
    if seconds > _LONGEST:
        raise InvalidInput(f"{interval} is too long", field="--interval", expected="1s to 1d")
    count = None
    if duration is not None:
        count = parse_duration(duration, "--for") // seconds
        if not count:
            raise InvalidInput(
                f"{duration} is shorter than an interval",
                field="--for",
                expected=f"at least {seconds}s",
            )
    window = max(count or 0, min(_KEPT_INTERVALS, _KEPT_SECONDS // seconds))
    if keep is not None:
        window = parse_duration(keep, "--keep") // seconds
    server = check_server(name or host_name(), "--name")
    return Order(folder, server, seconds, window, count)


def _run(order: Order, tell: Told) -> tuple[int, bool]:
    """Collect; return how many intervals were measured, and whether Ctrl-C ended it."""
    import asyncio
    import signal

    from hanok.assess.collect import SystemClock, collect
    from hanok.assess.machine import ThisMachine

    async def work() -> tuple[int, bool]:
        stop, interrupt = asyncio.Event(), asyncio.Event()

        def end_by_hand() -> None:
            interrupt.set()
            stop.set()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, stop.set)
        loop.add_signal_handler(signal.SIGINT, end_by_hand)
        done = await collect(order, ThisMachine(), SystemClock(), stop, tell)
        return done, interrupt.is_set()

    return asyncio.run(work())
