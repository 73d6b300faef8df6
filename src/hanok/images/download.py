"""Downloads a file whose digest is known: goes on where it broke off, and believes no server.

Only the bytes count: lengths and ranges that a server tells are compared with what comes, and what
is complete must have the digest that was pinned.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO

from hanok.errors import HostError
from hanok.filesystems import disk_full, file_system_of
from hanok.images.progress import Report
from hanok.units import GIB, MIB, format_size

LARGEST = 64 * GIB
_KEPT_FREE = 1 * GIB
_PIECE = 1 * MIB
_SILENCE = 60.0
_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_ATTEMPTS = 6
_PARTIAL, _NOT_SATISFIABLE = 206, 416
# What may be otherwise in a moment.
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


@dataclass(frozen=True)
class Wanted:
    """A file: where it is, and its digest as ``sha256:...`` or ``sha512:...``."""

    urls: tuple[str, ...]
    digest: str


class _Broken(Exception):
    """The transfer ended before the file did; what came is kept."""


class _Refused(Exception):
    """This server will not give the file."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a few redirects, to the web alone, and never from TLS to none."""

    max_redirections = 5

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """See HTTPRedirectHandler."""
        allowed = ("https://",) if req.full_url.startswith("https://") else ("https://", "http://")
        if not newurl.startswith(allowed):
            raise _Refused(f"it redirects to {newurl[:80]!r}")
        found = super().redirect_request(req, fp, code, msg, headers, newurl)
        return found


def _opener() -> urllib.request.OpenerDirector:
    """Return what opens URLs of the web, and no others; proxies of the environment count."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(context=ssl.create_default_context()),
        _Redirects(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


class Download:
    """One file on its way to ``path``; what came of it stays there when it breaks off.

    ``pause``: seconds before the second attempt, doubled before each further one.
    """

    def __init__(self, wanted: Wanted, path: Path, report: Report, *, pause: float = 1.0) -> None:
        self._wanted = wanted
        self._path = path
        self._report = report
        self._pause = pause
        self._opener = _opener()

    async def run(self) -> None:
        """Download the file, or the rest of it, and check it.

        Raises HostError: no server gives it, the transfer breaks off again and again, or what
        came is not what was wanted (then nothing of it is kept); DiskFull without room.
        """
        if self._path.exists():  # a conversion that was interrupted has made it read-only
            self._path.chmod(0o600)
        reasons = []
        for url in self._wanted.urls:
            try:
                await self._from(url)
                break
            except _Refused as error:
                reasons.append(f"{_host(url)}: {error}")
        else:
            raise HostError(
                f"the file could not be downloaded ({'; '.join(reasons)})",
                hint="a newer Hanok may know a newer build; a file that you have by other means is"
                " imported by 'hanok image import'",
            )
        self._report("checking what came", 0.99)
        await asyncio.to_thread(self._check)

    async def _from(self, url: str) -> None:
        """Download from one server; attempts that brought nothing are counted."""
        failures = 0
        while True:
            before = self._size()
            try:
                await self._attempt(url)
                return
            except _Broken as error:
                failures = failures + 1 if self._size() <= before else 1
                if failures >= _ATTEMPTS:
                    raise _Refused(f"it breaks off again and again ({error})") from None
                self._report(f"the connection broke ({error}): going on", None)
            await asyncio.sleep(self._pause * 2 ** (failures - 1))

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    async def _attempt(self, url: str) -> None:
        have = self._size()
        request = urllib.request.Request(  # noqa: S310  the catalog checks that it is of the web
            url, headers={"User-Agent": "hanok", "Accept-Encoding": "identity"}
        )
        if have:
            request.add_header("Range", f"bytes={have}-")
        response = await self._open(request)
        if response is None:  # there is nothing after what we have
            return
        with contextlib.closing(response):
            start, total = _place(response.status, response.headers, have)
            _check_room(self._path.parent, (total or 0) - start)
            with self._path.open("r+b" if start else "wb") as file:
                file.truncate(start)
                file.seek(start)
                await self._receive(response, file, start, total)

    async def _open(self, request: urllib.request.Request) -> http.client.HTTPResponse | None:
        """Return the answer; None when the server has no more than we have."""
        try:
            return await asyncio.to_thread(self._opener.open, request, None, _SILENCE)
        except urllib.error.HTTPError as error:
            error.close()
            if error.code == _NOT_SATISFIABLE and request.has_header("Range"):
                return None
            if error.code in _PASSING:
                raise _Broken(f"status {error.code}") from None
            raise _Refused(f"status {error.code}") from None
        except (OSError, http.client.HTTPException) as error:
            if isinstance(reason := getattr(error, "reason", error), ssl.SSLCertVerificationError):
                raise _Refused(f"its certificate is not good: {reason.verify_message}") from None
            raise _Broken(str(reason)[:100] or type(reason).__name__) from None

    async def _receive(
        self,
        response: http.client.HTTPResponse,
        file: IO[bytes],
        start: int,
        total: int | None,
    ) -> None:
        done = start
        try:
            while piece := await asyncio.to_thread(response.read1, _PIECE):
                done += len(piece)
                if done > LARGEST:
                    raise _Refused(f"it sends more than {format_size(LARGEST)}")
                _check_room(self._path.parent, len(piece))
                await asyncio.to_thread(_write, file, piece)
                self._tell(done, total)
        except (OSError, http.client.HTTPException) as error:
            raise _Broken(str(error)[:100] or type(error).__name__) from None
        if total is not None and done < total:
            raise _Broken(f"{done} of {total} bytes came")

    def _tell(self, done: int, total: int | None) -> None:
        if total is None or total < done:
            self._report(f"{done // MIB} MiB downloaded", None)
        else:
            words = f"{done // MIB} of {-(-total // MIB)} MiB downloaded"
            self._report(words, 0.98 * done / total if total else None)

    def _check(self) -> None:
        kind, _, expected = self._wanted.digest.partition(":")
        with self._path.open("rb") as file:
            found = hashlib.file_digest(file, kind).hexdigest()
            os.fsync(file.fileno())
        if found != expected:
            self._path.unlink()
            raise HostError(
                f"what came has the {kind.upper()} {found[:16]}..., not {expected[:16]}...: it was"
                " thrown away",
                hint="the server, or something between here and it, gives another file; try again"
                " later or on another network",
            )


def _place(status: int, headers: Message, have: int) -> tuple[int, int | None]:
    """Return where in the file the answer begins, and the size of the file if that was told."""
    length = headers.get("Content-Length", "")
    told = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None
    if status != _PARTIAL:
        start, total = 0, told
    else:
        match = _RANGE.fullmatch(headers.get("Content-Range", ""))
        if match is None or int(match[1]) != have:
            raise _Refused("it answers with another part than was asked for")
        start, total = have, None if match[3] == "*" else int(match[3])
        if total is None and told is not None:
            total = start + told
    if total is not None and total > LARGEST:
        raise _Refused(f"it announces {format_size(total)}")
    return start, total


def _write(file: IO[bytes], piece: bytes) -> None:
    """Write what came: a daemon that is killed now has it on its disk all the same."""
    file.write(piece)
    file.flush()


def _check_room(folder: Path, size: int) -> None:
    needed = size + _KEPT_FREE  # which stays free in any case; what came is kept
    if file_system_of(folder).free < needed:
        raise disk_full(folder, "the file", needed)


def _host(url: str) -> str:
    return url.partition("://")[2].partition("/")[0]


def unpacked(source: Path, limit: int) -> Iterator[bytes]:
    """Yield what is in the xz file ``source`` (blocks). Raises HostError beyond ``limit`` bytes."""
    import lzma

    size = 0
    try:
        with lzma.open(source) as file:
            while piece := file.read(_PIECE):
                size += len(piece)
                if size > limit:
                    raise HostError(f"the file unpacks to more than {format_size(limit)}")
                yield piece
    except (lzma.LZMAError, EOFError) as error:
        raise HostError(f"the file cannot be unpacked: {error}") from None
