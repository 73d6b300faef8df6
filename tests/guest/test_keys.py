"""SSH keys by the real ssh-keygen."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from pathlib import Path

import pytest

from hanok.errors import CommandFailed, HostError
from hanok.guest.keys import ensure_key_pair, make_host_key
from hanok.proc import SystemRunner


def derived(private: Path) -> str:
    """Return the public half of a private key, by ssh-keygen."""
    argv = ["ssh-keygen", "-y", "-f", str(private)]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


async def test_a_pair_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "ssh"
    pair = await ensure_key_pair(folder, SystemRunner())
    assert pair.public.startswith("ssh-ed25519 ")
    assert "\n" not in pair.public
    assert derived(pair.private) == pair.public
    assert pair.private.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert await ensure_key_pair(folder, SystemRunner()) == pair
    assert sorted(path.name for path in folder.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


async def test_many_at_once_agree(tmp_path: Path) -> None:
    pairs = await asyncio.gather(*(ensure_key_pair(tmp_path, SystemRunner()) for _ in range(6)))
    assert len(set(pairs)) == 1
    assert derived(pairs[0].private) == pairs[0].public
    assert len(list(tmp_path.iterdir())) == 2


async def test_a_lost_public_key_comes_back(tmp_path: Path) -> None:
    pair = await ensure_key_pair(tmp_path, SystemRunner())
    (tmp_path / "id_ed25519.pub").unlink()
    assert await ensure_key_pair(tmp_path, SystemRunner()) == pair


async def test_a_damaged_private_key_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "id_ed25519").write_text("rubbish")
    with pytest.raises(CommandFailed):
        await ensure_key_pair(tmp_path, SystemRunner())
    assert (tmp_path / "id_ed25519").read_text() == "rubbish"


async def test_a_folder_that_cannot_be_is_a_host_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(HostError, match="cannot be made"):
        await ensure_key_pair(tmp_path / "file" / "ssh", SystemRunner())


async def test_host_keys_differ_fit_and_leave_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    first = await make_host_key(SystemRunner(), folder)
    second = await make_host_key(SystemRunner(), folder)
    assert first != second
    assert list(folder.iterdir()) == []
    assert "OPENSSH PRIVATE KEY" in first.private
    assert first.private not in repr(first)
    written = tmp_path / "key"
    written.write_text(first.private)
    written.chmod(0o600)
    assert derived(written) == first.public
    shutil.rmtree(folder)
