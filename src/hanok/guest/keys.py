"""SSH keys: the pair that Hanok logs in with, and host keys that are known before a guest boots."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hanok.durable import sync_path
from hanok.errors import HostError
from hanok.proc import Runner

_NAME = "id_ed25519"
_COMMENT = "hanok"


@dataclass(frozen=True)
class KeyPair:
    """A key pair to log in with: where the private key is, and the public key's line."""

    private: Path
    public: str


@dataclass(frozen=True)
class HostKey:
    """A guest's host key, both halves as text; the private one is never shown."""

    private: str = field(repr=False)
    public: str


async def ensure_key_pair(folder: Path, runner: Runner) -> KeyPair:
    """Return the key pair in ``folder`` (0700), made if there is none; safe to run twice at once.

    The private key (0600) appears whole or not at all and is never replaced; the public key is
    derived from it again when it is lost. Raises HostError or CommandFailed.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        private = folder / _NAME
        if not private.exists():
            with _scratch(folder) as scratch:
                await _generate(runner, scratch / _NAME)
                sync_path(scratch / _NAME)
                with contextlib.suppress(FileExistsError):  # another one was quicker: use that
                    os.link(scratch / _NAME, private)
        public = folder / f"{_NAME}.pub"
        if not public.exists():
            done = await runner.run(["ssh-keygen", "-y", "-P", "", "-f", str(private)], timeout=30)
            with _scratch(folder) as scratch:
                (scratch / public.name).write_bytes(done.stdout)
                sync_path(scratch / public.name)
                (scratch / public.name).replace(public)
        return KeyPair(private, public.read_text().strip())
    except OSError as error:
        raise HostError(f"the SSH key in {folder} cannot be made: {error.strerror}") from error


async def make_host_key(runner: Runner, folder: Path) -> HostKey:
    """Return a new ed25519 host key; ``folder`` holds it for a moment, nothing stays there.

    Raises HostError or CommandFailed.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _scratch(folder) as scratch:
            await _generate(runner, scratch / _NAME)
            private = (scratch / _NAME).read_text()
            public = (scratch / f"{_NAME}.pub").read_text().strip()
    except OSError as error:
        raise HostError(f"a host key cannot be made in {folder}: {error.strerror}") from error
    return HostKey(private, public)


async def _generate(runner: Runner, path: Path) -> None:
    argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", _COMMENT, "-f", str(path)]
    await runner.run(argv, timeout=30)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder that only we can read, on the same file system, and remove it."""
    path = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
