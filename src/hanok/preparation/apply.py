"""Carries a plan out. What fails is taken back, and what was begun can be begun again."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hanok.errors import CommandFailed, HostError
from hanok.preparation.facts import GRUB_CFG, GRUBENV, Server, read_bytes, read_server
from hanok.preparation.journal import JOURNAL, Journal, load, save, write_whole
from hanok.preparation.plan import (
    PATHS,
    FileChange,
    Plan,
    Wanted,
    has_entry,
    packages_for,
    plan_type1,
    plan_type2,
)
from hanok.proc import Runner

Say = Callable[[str], None]
_TIME_LIMIT = 1800
_ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none"}
# "Inst NAME (VERSION ..." is new; "Inst NAME [OLD] (VERSION ..." is an upgrade.
_NEW = re.compile(r"^Inst (\S+) \(", re.M)
_GONE = re.compile(r"^(?:Remv|Purg) (\S+)", re.M)


@dataclass(frozen=True)
class Outcome:
    """What was done: the plan, and whether GRUB's entries are those of before, byte for byte."""

    plan: Plan
    exact: bool | None = None


async def prepare_type1(
    runner: Runner, wanted: Wanted, say: Say, *, dry_run: bool = False
) -> Outcome:
    """Make this server a Type 1 host at its next boot. Raises as ``plan_type1``, CommandFailed.

    A failure leaves the server as it was.
    """
    server = await read_server(runner, PATHS)
    plan = plan_type1(server, wanted)
    if dry_run or not plan.steps:
        return Outcome(plan)
    journal = load()
    is_first = journal is None
    if journal is None:
        journal = Journal(_files_of(server), await _new_packages(runner, server))
        save(journal)
    try:
        await _carry_out(plan, runner, say)
        if not has_entry(read_bytes(GRUB_CFG)):
            raise HostError(
                "GRUB does not start Hanok's entry, although it was told to",
                hint="another file in /etc/default/grub.d sets GRUB_DEFAULT: take that out",
            )
    except BaseException:
        # What had been prepared before stays as it was then.
        if is_first:
            await _take_back(journal, runner, say)
        raise
    return Outcome(plan)


async def prepare_type2(runner: Runner, say: Say, *, dry_run: bool = False) -> Outcome:
    """Make this server what it was before it was prepared; without steps when it never was.

    Raises HostError, also while guests run on Xen here, and CommandFailed.
    """
    journal = load()
    if journal is None:
        return Outcome(Plan((), ("This server is not prepared for Xen by Hanok.",)))
    server = await read_server(runner, PATHS)
    if server.on_xen:
        await _refuse_guests(runner)
    added = await removable(runner, server, journal.added)
    plan = plan_type2(server, journal.by_path(), added)
    if dry_run:
        return Outcome(plan)
    await _carry_out(plan, runner, say)
    exact = _settle(journal)
    JOURNAL.unlink()
    return Outcome(plan, exact)


def _files_of(server: Server) -> tuple[FileChange, ...]:
    found = []
    for path, old in server.files.items():
        mode = 0o644 if old is None else Path(path).stat().st_mode & 0o7777
        found.append(FileChange(path, old, None, mode))
    return tuple(found)


async def _new_packages(runner: Runner, server: Server) -> tuple[str, ...]:
    """Return the packages that apt would add, so that exactly those go again."""
    missing = [name for name in packages_for(server) if name not in server.packages]
    if not missing:
        return ()
    argv = ["apt-get", "install", "--simulate", "--no-install-recommends", *missing]
    try:
        done = await runner.run(argv, env=_ENVIRONMENT, timeout=300)
    except CommandFailed as error:
        raise HostError(
            f"apt cannot install {' and '.join(missing)}: {error.message}",
            hint="'apt-get update', then again; Xen is in Debian's main archive",
        ) from error
    return tuple(_NEW.findall(done.stdout.decode()))


async def removable(runner: Runner, server: Server, added: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of ``added`` that can go without taking others with them.

    What was installed since may need a library that came with Xen: then only Xen itself goes.
    Raises HostError when even that would take others, CommandFailed.
    """
    present = [name for name in added if name in server.packages]
    core = [
        name
        for name in present
        if name.startswith(("xen-", "xenstore-")) or name in packages_for(server)
    ]
    others: set[str] = set()
    for names in (present, core):
        if not names:
            return ()
        argv = ["apt-get", "purge", "--simulate", *names]
        done = await runner.run(argv, env=_ENVIRONMENT, timeout=300)
        others = set(_GONE.findall(done.stdout.decode())) - set(names)
        if not others:
            return tuple(names)
    raise HostError(
        f"without Xen these could not stay: {', '.join(sorted(others))}",
        hint="they were installed since; remove them first, if that is what you want",
    )


async def _carry_out(plan: Plan, runner: Runner, say: Say) -> None:
    async with contextlib.AsyncExitStack() as undo:
        for step in plan.steps:
            if isinstance(step, FileChange):
                say(f"{'remove' if step.new is None else 'write'} {step.path}")
                undo.callback(_put, FileChange(step.path, step.new, step.old, step.mode))
                _put(step)
                continue
            say(" ".join(step.argv))
            if step.undo is not None:
                undo.push_async_callback(_run, runner, step.undo, check=False)
            await _run(runner, step.argv)
        undo.pop_all()


def _put(step: FileChange) -> None:
    path = Path(step.path)
    if step.new is None:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, step.new, step.mode)


async def _run(runner: Runner, argv: tuple[str, ...], *, check: bool = True) -> None:
    await runner.run(argv, env=_ENVIRONMENT, timeout=_TIME_LIMIT, check=check)


async def _take_back(journal: Journal, runner: Runner, say: Say) -> None:
    """After a failure: packages away, entries as they were; what fails on the way is said."""
    say("it failed: taking everything back")
    try:
        server = await read_server(runner, PATHS)
        added = await removable(runner, server, journal.added)
        plan = plan_type2(server, journal.by_path(), added)
        await _carry_out(plan, runner, say)
        _settle(journal)
        JOURNAL.unlink()
    except HostError as error:
        say(f"not everything could be taken back: {error.message}")
        say("'hanok host prepare --type 2' tries again")


def _settle(journal: Journal) -> bool:
    """Make GRUB's environment what it was, and return whether its entries are what they were."""
    saved = journal.by_path()
    env = saved[GRUBENV]
    now = read_bytes(GRUBENV)
    if env.old is None and now is not None and not variables(now):
        Path(GRUBENV).unlink()
    elif env.old is not None and now is not None and variables(now) == variables(env.old):
        _put(FileChange(GRUBENV, now, env.old, env.mode))
    return read_bytes(GRUB_CFG) == saved[GRUB_CFG].old


def variables(environment: bytes) -> list[bytes]:
    """Return the lines of a GRUB environment block that say something."""
    return [line for line in environment.split(b"\n") if line and not line.startswith(b"#")]


async def _refuse_guests(runner: Runner) -> None:
    done = await runner.run(["xl", "list"], timeout=60)
    guests = [line.split()[0] for line in done.stdout.decode().splitlines()[2:] if line.split()]
    if guests:
        raise HostError(
            f"guests run on Xen here: {', '.join(guests[:5])}",
            hint="stop or move them first: Xen's tools are about to go",
        )
