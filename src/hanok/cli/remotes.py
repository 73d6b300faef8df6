"""``hanok remote``: other hosts, whose daemons the commands here can speak to."""

from __future__ import annotations

import hmac
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from hanok.cli.base import (
    Example,
    Lazy,
    LazyGroup,
    Session,
    common_options,
    complete_remote,
    pass_session,
)
from hanok.cli.output import Cell, problem_of
from hanok.client.chosen import LOCAL
from hanok.client.remotes import (
    Remote,
    RemoteBook,
    checked_fingerprint,
    checked_name,
    checked_token,
    checked_url,
    open_book,
    open_remote,
    refuse_known,
)
from hanok.errors import (
    CertificateChanged,
    DaemonUnreachable,
    HanokError,
    InvalidInput,
    Unauthorized,
)

if TYPE_CHECKING:
    from hanok.client.wire import VersionWire

_LARGEST_TOKEN_FILE = 4096
_LOOK_LIMIT = 3.0
_NO_TOKEN = ""

_name = click.argument("name", shell_complete=complete_remote)


@click.group(
    "remote",
    cls=LazyGroup,
    sections={
        "Commands": {
            "add": Lazy("remotes", "add", "Add a host: pin its certificate, keep a token for it."),
            "list": Lazy("remotes", "list_remotes", "List the hosts, and which is in use."),
            "show": Lazy("remotes", "show", "Show one, and whether it answers."),
            "use": Lazy("remotes", "use", "Send every command to one ('local': here again)."),
            "remove": Lazy("remotes", "remove", "Forget one, and the token for it."),
        }
    },
    aliases={"ls": "list", "rm": "remove"},
    examples=(
        "hanok remote add lab https://10.0.0.5:7443",
        "hanok --remote lab list",
        "hanok list --all",
    ),
)
def remote() -> None:
    """Add, list, use and remove remote hosts.

    On the other host, "hanok serve --listen" or HANOK_LISTEN makes the daemon answer over the
    network, and "hanok token create" makes a token.
    """


@click.command(
    "add",
    cls=Example,
    examples=(
        "hanok remote add lab 10.0.0.5",
        "hanok remote add lab https://10.0.0.5:7443 --fingerprint ab:cd:... --token-file token",
    ),
)
@click.argument("name")
@click.argument("url")
@click.option(
    "--fingerprint",
    metavar="SHA256",
    help="Its certificate's, from 'hanok host show' there: taken without a question.",
)
@click.option(
    "--token-file",
    metavar="FILE",
    help="Where the token is; - is standard input. Without it you are asked.",
)
@click.option("-y", "--yes", is_flag=True, help="Trust whatever certificate it shows now.")
@click.option("--replace", is_flag=True, help="Take the place of the remote of that name.")
@common_options
@pass_session
def add(
    session: Session,
    name: str,
    url: str,
    fingerprint: str | None,
    token_file: str | None,
    yes: bool,
    replace: bool,
) -> None:
    """Add the host at URL as NAME.

    Its certificate is shown and, once you agree, pinned: from then on nothing is sent to whoever
    shows another one. The token is kept for this user alone; it is never an argument.
    """
    session.require_local("hanok remote")
    book = open_book(os.environ)
    wanted = Remote(checked_name(name), checked_url(url), "", _NO_TOKEN)
    given = None if fingerprint is None else checked_fingerprint(fingerprint)
    known = book.load()
    if not replace:
        refuse_known(name, known)
    token = None if token_file is None else _read_token(token_file)
    pinned = _pin(session, wanted, given, known.get(name), trust=yes)
    _ask_whether_hanok(pinned)
    added = Remote(name, pinned.url, pinned.fingerprint, token or _ask_token())
    try:
        daemon = open_remote(added).version()
    except Unauthorized:
        raise Unauthorized(
            f"{name} does not take that token: it is wrong, revoked, or has expired by the clock"
            " there; nothing was kept",
            hint=f"on that host: hanok token create {name}",
        ) from None
    book.put(added, replace=replace)
    _tell_added(session, added, daemon)


def _tell_added(session: Session, added: Remote, daemon: VersionWire) -> None:
    from hanok.client.tls import in_pairs

    if session.out.as_json:
        session.out.json({**_view(added, current=False), "daemon": daemon})
        return
    session.out.line(f"{added.name} is added: hanok {daemon['version']} at {added.url}")
    session.out.line(f"Its certificate is pinned: {in_pairs(added.fingerprint)}")
    session.out.line(f"Try: hanok --remote {added.name} list")
    session.out.line(f"  or: hanok remote use {added.name}   (every command from then on)")


def _pin(
    session: Session, wanted: Remote, given: str | None, before: Remote | None, *, trust: bool
) -> Remote:
    """Return ``wanted`` with the certificate that is to be pinned.

    ``given``: the fingerprint that it must have. Otherwise the user is asked, unless the remote
    that is replaced had the same. Raises DaemonUnreachable, CertificateChanged, InvalidInput when
    nobody can be asked, click.Abort when the answer is no.
    """
    from hanok.client.tls import in_pairs, see_fingerprint

    shown = see_fingerprint(wanted.address)
    pinned = Remote(wanted.name, wanted.url, shown, wanted.token)
    if given is not None:
        if not hmac.compare_digest(shown, given):
            raise CertificateChanged(
                f"{wanted.url} shows another certificate than the one that was given; nothing was"
                f" sent to it.\n  given: {in_pairs(given)}\n  shown: {in_pairs(shown)}",
                hint="'hanok host show' on that host tells the right one",
            )
        return pinned
    if trust or (before is not None and before.fingerprint == shown):
        return pinned
    if not sys.stdin.isatty():
        raise InvalidInput(
            f"the certificate of {wanted.url} is not known, and there is no terminal to ask at",
            field="--fingerprint",
            expected="what 'hanok host show' tells on that host",
            hint=f"it shows {in_pairs(shown)}; --yes trusts it",
        )
    session.out.note(f"{wanted.url} shows a certificate with the SHA-256 fingerprint")
    session.out.note(f"  {in_pairs(shown)}")
    session.out.note("It should be what 'hanok host show' tells on that host.")
    click.confirm("Is it?", abort=True, err=True)
    return pinned


def _ask_whether_hanok(found: Remote) -> None:
    """See that a Hanok answers before a token is sent. Raises DaemonUnreachable when none does."""
    try:
        open_remote(found).version()
    except Unauthorized:
        return  # as it must be without a token
    except (DaemonUnreachable, CertificateChanged):
        raise
    except HanokError:
        pass
    raise DaemonUnreachable(
        f"what answers at {found.url} is not a Hanok; no token was sent to it",
        hint="hanokd listens at port 7443 unless it was told otherwise",
    )


def _read_token(source: str) -> str:
    """Return the token in the file ``source``. Raises InvalidInput."""
    try:
        if source == "-":
            data = sys.stdin.buffer.read(_LARGEST_TOKEN_FILE)
        else:
            with open(source, "rb") as file:
                data = file.read(_LARGEST_TOKEN_FILE)
    except OSError as error:
        raise InvalidInput(
            f"{source} cannot be read: {error.strerror}", field="--token-file"
        ) from None
    return checked_token(data.decode("utf-8", "replace"))


def _ask_token() -> str:
    if not sys.stdin.isatty():
        raise InvalidInput(
            "no token was given, and there is no terminal to ask at",
            field="--token-file",
            expected="a file with the token, or - for standard input",
        )
    return checked_token(click.prompt("Token (not shown)", hide_input=True, err=True))


@click.command("list", cls=Example, examples=("hanok remote list",))
@common_options
@pass_session
def list_remotes(session: Session) -> None:
    """List the remote hosts; the one that commands go to has a star."""
    session.require_local("hanok remote")
    book = open_book(os.environ)
    known, current = book.load(), _in_use(book)
    here: dict[str, Any] = {"url": None, "fingerprint": None}
    views = [{"name": LOCAL, **here, "current": current == LOCAL}]
    views += [_view(known[name], current=current == name) for name in sorted(known)]
    if session.out.as_json:
        session.out.json(views)
        return
    rows = [
        (
            Cell(("* " if view["current"] else "  ") + view["name"], "bold"),
            view["url"] or "this machine",
            _short(view["fingerprint"]),
        )
        for view in views
    ]
    session.out.table(("  NAME", "URL", "FINGERPRINT"), rows)


def _in_use(book: RemoteBook) -> str:
    return os.environ.get("HANOK_REMOTE") or book.current()


def _short(fingerprint: str | None) -> str:
    return "-" if fingerprint is None else f"{fingerprint[:16]}..."


def _view(found: Remote, *, current: bool) -> dict[str, Any]:
    """Return what is told of a remote: never its token."""
    return {
        "name": found.name,
        "url": found.url,
        "fingerprint": found.fingerprint,
        "current": current,
    }


@click.command("show", cls=Example, examples=("hanok remote show lab",))
@_name
@common_options
@pass_session
def show(session: Session, name: str) -> None:
    """Show the remote NAME, and whether it answers."""
    session.require_local("hanok remote")
    from hanok.client.tls import in_pairs

    book = open_book(os.environ)
    found = book.find(name)
    daemon: VersionWire | None = None
    problem: HanokError | None = None
    try:
        daemon = open_remote(found, connect_limit=_LOOK_LIMIT).version()
    except HanokError as error:
        problem = error
    view = _view(found, current=_in_use(book) == name)
    if session.out.as_json:
        told = None if problem is None else problem_of(problem)
        session.out.json({**view, "daemon": daemon, "error": told})
        return
    session.out.pairs(
        [
            ("name", Cell(name, "bold")),
            ("url", found.url),
            ("fingerprint", in_pairs(found.fingerprint)),
            ("in use", "yes: commands go to it" if view["current"] else None),
            ("answers", None if daemon is None else f"hanok {daemon['version']}"),
            ("error", None if problem is None else Cell(problem.message, "red")),
            ("hint", None if problem is None else problem.hint),
        ]
    )


@click.command("use", cls=Example, examples=("hanok remote use lab", "hanok remote use local"))
@_name
@common_options
@pass_session
def use(session: Session, name: str) -> None:
    """Send every command to the remote NAME from now on; 'local' goes back to this machine."""
    session.require_local("hanok remote")
    open_book(os.environ).use(name)
    if session.out.as_json:
        session.out.json({"name": name})
        return
    where = "this machine's daemon" if name == LOCAL else name
    session.out.line(f"Commands go to {where} from now on.")
    over = os.environ.get("HANOK_REMOTE")
    if over and over != name:
        session.out.note(f"But here HANOK_REMOTE is set, which comes first: {over}")


@click.command("remove", cls=Example, examples=("hanok remote remove lab",))
@_name
@common_options
@pass_session
def remove(session: Session, name: str) -> None:
    """Forget the remote NAME and the token for it. That host is not asked anything."""
    session.require_local("hanok remote")
    if name == LOCAL:
        raise InvalidInput("this machine cannot be removed", field="NAME")
    was_in_use = open_book(os.environ).remove(name)
    if session.out.as_json:
        session.out.json({"name": name})
        return
    session.out.line(f"{name} is removed; its token stays good until it is revoked there.")
    if was_in_use:
        session.out.line("Commands go to this machine's daemon again.")
