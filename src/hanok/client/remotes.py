"""Remote hosts that this user knows: where they are, their certificates, the tokens for them.

They are kept in one file, ``remotes.json`` (0600) in the folder HANOK_CONFIG or else ``hanok`` in
the XDG configuration folder (0700); the name of the one in use is in ``remote`` beside it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from hanok.client.chosen import LOCAL, chosen_name, config_folder, name_file, name_in_use
from hanok.client.client import Client
from hanok.client.http import Peer, Transport
from hanok.errors import (
    Conflict,
    Forbidden,
    HanokError,
    HostError,
    InvalidInput,
    NotFound,
    Unauthorized,
)

if TYPE_CHECKING:
    from hanok.client.tls import Address

PORT = 7443
_RECONNECTS = 15  # with their pauses half a minute: nobody here starts the daemon there
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.A)
_TOKEN = re.compile(r"hanok_[A-Za-z0-9_-]{43}", re.A)
_FINGERPRINT = re.compile(r"[0-9a-f]{64}", re.A)


@dataclass(frozen=True)
class Remote:
    """A host reached over the network. ``fingerprint`` is hexadecimal, without colons."""

    name: str
    url: str
    fingerprint: str
    token: str = field(repr=False)

    @property
    def host(self) -> str:
        """The host's name or address."""
        return split_url(self.url)[0]

    @property
    def address(self) -> Address:
        """Where it listens."""
        from hanok.client.tls import Address

        return Address(*split_url(self.url), f"remote {self.name} ({self.url})")


class RemoteBook:
    """The remotes in one configuration folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = folder / "remotes.json"
        self._current = name_file(folder)

    def load(self) -> dict[str, Remote]:
        """Return all remotes by name. Raises HostError when the file is not what it should be."""
        try:
            with open(self._file, "rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise HostError(f"{self._file} cannot be read: {error.strerror}") from error
        if mode & 0o077:
            raise HostError(
                f"{self._file} holds tokens, and other users can read it",
                hint=f"chmod 600 {self._file}; if they may have, revoke the tokens in it",
            )
        try:
            return {
                name: Remote(name, one["url"], one["fingerprint"], one["token"])
                for name, one in json.loads(content).items()
            }
        except (ValueError, KeyError, TypeError, AttributeError):
            raise HostError(
                f"{self._file} is not what Hanok wrote",
                hint="remove it and add the remotes again",
            ) from None

    def find(self, name: str) -> Remote:
        """Return the remote called ``name``. Raises NotFound with those that there are."""
        known = self.load()
        if name not in known:
            there = f"there are: {', '.join(sorted(known))}" if known else "there are none yet"
            raise NotFound(
                f"there is no remote {name!r}; {there}", hint="hanok remote add NAME URL"
            )
        return known[name]

    def put(self, remote: Remote, *, replace: bool = False) -> None:
        """Keep ``remote``. Raises Conflict when there is one of that name, unless ``replace``."""
        with self._locked():
            known = self.load()
            if not replace:
                refuse_known(remote.name, known)
            self._save({**known, remote.name: remote})

    def remove(self, name: str) -> bool:
        """Forget a remote; return whether it was the one in use. Raises NotFound."""
        with self._locked():
            self.find(name)
            known = self.load()
            del known[name]
            self._save(known)
            in_use = self.current() == name
            if in_use:
                self._current.unlink(missing_ok=True)
            return in_use

    def current(self) -> str:
        """Return the name of the remote in use, or ``local``."""
        return name_in_use(self.folder)

    def use(self, name: str) -> None:
        """Send commands to the remote ``name`` from now on, or to ``local``. Raises NotFound."""
        with self._locked():
            if name == LOCAL:
                self._current.unlink(missing_ok=True)
            else:
                self.find(name)
                self._write(self._current, f"{name}\n")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep other commands from changing the file meanwhile."""
        if not self.folder.is_absolute():
            raise HostError(
                f"this user has no home for the configuration ({self.folder})",
                hint="set HANOK_CONFIG to a folder that this user may write",
            )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle = os.open(
                self.folder / "remotes.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except OSError as error:
            raise HostError(
                f"the configuration in {self.folder} cannot be changed: {error.strerror}",
                hint="set HANOK_CONFIG to a folder that this user may write",
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _save(self, remotes: Mapping[str, Remote]) -> None:
        content = {
            one.name: {"url": one.url, "fingerprint": one.fingerprint, "token": one.token}
            for one in remotes.values()
        }
        self._write(self._file, json.dumps(content, indent=2) + "\n")

    def _write(self, path: Path, text: str) -> None:
        """Put ``text`` at ``path``, whole or not at all, for this user alone."""
        part = path.with_name(f".{path.name}.new")  # only ever written under the lock
        try:
            part.unlink(missing_ok=True)
            handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(handle, "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except OSError as error:
            raise HostError(f"{path} cannot be written: {error.strerror}") from error


def open_book(environ: Mapping[str, str]) -> RemoteBook:
    """Return the remotes of this user. Raises InvalidInput for a relative HANOK_CONFIG."""
    return RemoteBook(config_folder(environ))


def refuse_known(name: str, known: Mapping[str, Remote]) -> None:
    """Raise Conflict when a remote is called ``name`` already."""
    if name in known:
        raise Conflict(
            f"there is a remote {name} already, at {known[name].url}",
            hint="--replace takes its place; 'hanok remote remove' forgets it",
        )


def chosen_remote(environ: Mapping[str, str], named: str | None) -> Remote | None:
    """Return where commands go: ``named``, else HANOK_REMOTE, else what is in use; None: here.

    Raises NotFound for a name that is not known.
    """
    name = chosen_name(environ, named)
    return None if name == LOCAL else open_book(environ).find(name)


def open_remote(remote: Remote, *, connect_limit: float | None = None) -> Client:
    """Return a client of a remote daemon. Nothing is connected yet.

    ``connect_limit``: seconds for connecting, else those of ``hanok.client.tls``.
    """
    from hanok.client import tls

    address = remote.address
    limit = tls.CONNECT_LIMIT if connect_limit is None else connect_limit
    peer = Peer(
        name=address.label,
        log_hint="its log there tells why: hanokd.log in its data directory, or its journal",
        explain=lambda error: _explain(remote, error),
        reconnects=_RECONNECTS,
    )
    return Client(
        Transport(
            lambda: tls.connect(address, remote.fingerprint, limit),
            headers={"Authorization": f"Bearer {remote.token}"} if remote.token else None,
            keep=True,
            peer=peer,
        )
    )


def _explain(remote: Remote, error: HanokError) -> HanokError:
    """Say of a refusal which remote refused and what can be done here."""
    again = f"hanok remote add {remote.name} {remote.url} --replace"
    if isinstance(error, Unauthorized):
        return Unauthorized(
            f"remote {remote.name} does not take the token that is kept for it: it was revoked, has"
            " expired by the clock there, or is not of that host",
            hint=f"have one made there (hanok token create NAME), then here: {again}",
        )
    if isinstance(error, Forbidden):
        return Forbidden(
            f"remote {remote.name}: {error.message}",
            hint=f"{error.hint or 'a token with a larger role may'}; then here: {again}",
        )
    return error


# What people type


def checked_name(name: str) -> str:
    """Return ``name`` if a remote can be called so. Raises InvalidInput."""
    if name == LOCAL or not _NAME.fullmatch(name):
        raise InvalidInput(
            f"{name!r} cannot be a remote's name",
            field="NAME",
            expected=f"lower-case letters, digits and dashes, at most 63, and not {LOCAL!r}",
        )
    return name


def checked_url(text: str) -> str:
    """Return ``text`` as ``https://HOST:PORT``; both the scheme and the port may be left out.

    Raises InvalidInput.
    """
    host, port = split_url(text if "://" in text else f"https://{text}")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def split_url(url: str) -> tuple[str, int]:
    """Return host and port of a remote's URL. Raises InvalidInput."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port, parts = None, None, urlsplit("")
    if parts.scheme == "http":
        raise InvalidInput(
            "that is plain HTTP", field="URL", expected="https://: Hanok sends tokens by TLS only"
        )
    rest = (parts.path.strip("/"), parts.query, parts.fragment, parts.username, parts.password)
    if parts.scheme != "https" or not host or any(rest) or not host.isprintable():
        raise InvalidInput(
            "that is no address of a daemon", field="URL", expected=f"https://HOST or HOST:{PORT}"
        )
    return host, PORT if port is None else port


def checked_fingerprint(text: str) -> str:
    """Return a fingerprint as it is kept, from how people copy it. Raises InvalidInput."""
    found = text.strip().lower().removeprefix("sha256:").replace(":", "").replace(" ", "")
    if not _FINGERPRINT.fullmatch(found):
        raise InvalidInput(
            f"{text!r} is no fingerprint",
            field="--fingerprint",
            expected="the SHA-256 of the certificate: 32 pairs such as ab:cd:...",
        )
    return found


def checked_token(text: str) -> str:
    """Return a token without the white space around it. Raises InvalidInput, never with it."""
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise InvalidInput(
            "what was given is no token",
            field="--token-file",
            expected="what 'hanok token create' printed: hanok_ and 43 characters",
        )
    return token
