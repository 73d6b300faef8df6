"""``hanok token``: who may use this host's daemon over the network."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from hanok.cli.base import (
    Example,
    Lazy,
    LazyGroup,
    Session,
    common_options,
    pass_session,
    program_name,
)
from hanok.cli.listing import when, when_shortly
from hanok.cli.output import Cell
from hanok.errors import HanokError, InvalidInput

if TYPE_CHECKING:
    from hanok.model.views import NewTokenView, TokenView

_ROLES = ("viewer", "operator", "administrator")
_DURATION = re.compile(r"(\d{1,6})([mhdwy])", re.A)
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_ANYWHERE = re.compile(r"(0\.0\.0\.0|\[::\]):(\d+)")


@click.group(
    "token",
    cls=LazyGroup,
    sections={
        "Commands": {
            "list": Lazy("tokens", "list_tokens", "List the tokens and when they were used."),
            "create": Lazy("tokens", "create", "Make a token and print it, this once."),
            "revoke": Lazy("tokens", "revoke", "Make tokens worthless at once."),
        }
    },
    aliases={"ls": "list", "rm": "revoke", "delete": "revoke"},
    examples=("hanok token create laptop --role operator --expires 30d", "hanok token list"),
)
def token() -> None:
    """Make, list and revoke tokens: without one the daemon answers nobody over the network."""


@click.command("list", cls=Example, examples=("hanok token list",))
@common_options
@pass_session
def list_tokens(session: Session) -> None:
    """List the tokens: their roles, when they end and when they were last used."""
    found = session.client.tokens()
    if session.out.as_json:
        session.out.json(found)
    elif not found:
        session.out.line("No tokens yet; 'hanok token create NAME' makes one.")
    else:
        titles = ("NAME", "ROLE", "CREATED", "EXPIRES", "LAST USED")
        rows = [
            (
                one["name"],
                one["role"],
                when_shortly(one["created"]),
                _end(one),
                when(one["used"]) or "never",
            )
            for one in found
        ]
        session.out.table(titles, rows)


def _end(one: TokenView) -> Cell | str:
    expires = one["expires"]
    if expires is None:
        return "never"
    return Cell("expired", "yellow") if expires <= time.time() else (when(expires) or "")


@click.command(
    "create",
    cls=Example,
    examples=(
        "hanok token create laptop",
        "hanok token create screen --role viewer --expires 30d",
        "hanok token create ci --expires 12h >token    # the token alone goes to the file",
    ),
)
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(_ROLES),
    default="operator",
    show_default=True,
    help="viewer sees; operator does all with VMs; administrator also tokens and the host.",
)
@click.option(
    "--expires", metavar="TIME", help="For how long it is good, such as 12h or 30d (default: ever)."
)
@common_options
@pass_session
def create(session: Session, name: str, role: str, expires: str | None) -> None:
    """Make the token NAME and print it, this once: only its SHA-256 is kept.

    The token goes to standard output, alone; what to do with it to standard error.
    """
    wanted: dict[str, object] = {"name": name, "role": role}
    if expires is not None:
        wanted["expires_in"] = parse_duration(expires)
    made = session.client.create_token(wanted)
    if session.out.as_json:
        session.out.json(made)
        return
    session.out.line(made["token"])
    for line in _what_to_do(made):
        session.out.note(line)


def parse_duration(text: str) -> int:
    """Return the seconds that ``text`` (``90m``, ``12h``, ``30d``) stands for.

    Raises InvalidInput.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or int(match[1]) == 0:
        raise InvalidInput(
            f"{text[:40]!r} is no time",
            field="--expires",
            expected="a number with m, h, d, w or y, such as 12h or 30d",
        )
    return int(match[1]) * _SECONDS[match[2]]


def _what_to_do(made: NewTokenView) -> list[str]:
    until = when(made["expires"])
    lines = [
        f"This is the token {made['name']}, role {made['role']},"
        f" good {f'until {until}' if until else 'until it is revoked'}. It is not shown again."
    ]
    listen, fingerprint = made["listen"], made["fingerprint"]
    if listen is None or fingerprint is None:
        return [
            *lines,
            "The daemon does not answer over the network yet. Stop it and start it with:",
            f"  {program_name()} serve --listen 0.0.0.0:7443",
        ]
    anywhere = _ANYWHERE.fullmatch(listen)
    where = f"{made['host']}:{anywhere[2]}" if anywhere else listen
    shown = ":".join(fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2))
    return [
        *lines,
        "On the other machine, which then asks for the token:",
        f"  hanok remote add {made['host'].partition('.')[0].lower()} https://{where}"
        f" --fingerprint {shown}",
    ]


@click.command("revoke", cls=Example, examples=("hanok token revoke laptop",))
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@common_options
@pass_session
def revoke(session: Session, names: Sequence[str]) -> int:
    """Revoke tokens: nothing more is answered to them, and what they follow ends."""
    status = 0
    for name in names:
        try:
            session.client.revoke_token(name)
            session.out.line(f"{name} is revoked")
        except HanokError as error:
            session.out.error(error)
            status = max(status, error.exit_status)
    if session.out.as_json:
        session.out.json(session.client.tokens())
    return status
