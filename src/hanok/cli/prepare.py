"""``hanok host prepare``: this server boots Xen, or what it booted before.

It works without a daemon: a server may have no hypervisor yet, and its boot entries are no VM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from hanok.cli.base import Example, Session, common_options, pass_session
from hanok.errors import Unsupported
from hanok.units import parse_size

if TYPE_CHECKING:
    from hanok.preparation.apply import Outcome


@click.command(
    "prepare",
    cls=Example,
    examples=(
        "hanok host prepare --type 1 --dry-run",
        "hanok host prepare --type 1 --dom0-memory 4G --dom0-cpus 2",
        "hanok host prepare --type 2",
    ),
)
@click.option(
    "--type",
    "kind",
    type=click.Choice(("1", "2")),
    required=True,
    help="1: Xen on the hardware, this system in its Dom0. 2: as it was before.",
)
@click.option("--dom0-memory", help="Dom0's memory (default: a tenth, 1G to 8G).")
@click.option("--dom0-cpus", type=int, help="Dom0's vCPUs (default: all, at most 4).")
@click.option("--dry-run", is_flag=True, help="Print what would be changed, and change nothing.")
@common_options
@pass_session
def prepare(
    session: Session, kind: str, dom0_memory: str | None, dom0_cpus: int | None, dry_run: bool
) -> None:
    """Make this Debian server boot Xen, with a fall-back to Linux; or take that back.

    Xen comes from Debian's archive. Nothing changes until the server reboots, which is left to you.
    Run it on the server itself, as root.
    """
    if session.remote is not None:
        raise Unsupported(
            "a server is prepared on itself, not through its daemon",
            field="remote",
            hint="log in there and run 'hanok --remote local host prepare'",
        )
    memory = None if dom0_memory is None else parse_size(dom0_memory)
    outcome = _work(session, kind, memory, dom0_cpus, dry_run)
    if session.out.as_json:
        session.out.json(_as_json(outcome, dry_run))
        return
    if dry_run:
        session.out.line(outcome.plan.diff() or "Nothing to change.")
    elif not outcome.plan.steps:
        session.out.line("Nothing to change.")
    for sentence in outcome.plan.reboot:
        session.out.line(sentence)
    if outcome.exact is not None:
        session.out.line(_exactness(outcome.exact))


def _work(
    session: Session, kind: str, memory: int | None, cpus: int | None, dry_run: bool
) -> Outcome:
    import asyncio

    from hanok.preparation.apply import prepare_type1, prepare_type2
    from hanok.preparation.plan import Wanted
    from hanok.proc import SystemRunner

    runner, say = SystemRunner(), session.out.note
    if kind == "1":
        return asyncio.run(prepare_type1(runner, Wanted(memory, cpus), say, dry_run=dry_run))
    return asyncio.run(prepare_type2(runner, say, dry_run=dry_run))


def _exactness(exact: bool) -> str:
    if exact:
        return "GRUB's entries are those of before, byte for byte."
    return "GRUB's entries were made anew; kernels or settings have changed since the preparation."


def _as_json(outcome: Outcome, dry_run: bool) -> dict[str, object]:
    return {
        "dry_run": dry_run,
        "changed": bool(outcome.plan.steps) and not dry_run,
        "diff": outcome.plan.diff(),
        "reboot": list(outcome.plan.reboot),
        "entries_exact": outcome.exact,
    }
