"""A disk that names another file is never taken over from a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from hanok.errors import HostError
from hanok.images.qcow2 import read_virtual_size
from hanok.proc import SystemRunner


async def test_size_of_a_real_disk(short_tmp: Path, runner: SystemRunner) -> None:
    disk = short_tmp / "disk.qcow2"
    await runner.run(["qemu-img", "create", "-q", "-f", "qcow2", str(disk), "60M"])
    assert read_virtual_size(disk) == 60 << 20


async def test_backing_and_data_files_are_refused(short_tmp: Path, runner: SystemRunner) -> None:
    base, over, split = (short_tmp / name for name in ("base", "over", "split"))
    create = ["qemu-img", "create", "-q", "-f", "qcow2"]
    await runner.run([*create, str(base), "1M"])
    await runner.run([*create, "-b", str(base), "-F", "qcow2", str(over)])
    await runner.run([*create, "-o", f"data_file={short_tmp / 'data'}", str(split), "1M"])
    for disk in (over, split):
        with pytest.raises(HostError, match="names another file"):
            read_virtual_size(disk)


@pytest.mark.parametrize("content", [b"", b"QFI\xfb", b"\0" * 512, b"KDMV" + b"\1" * 200])
def test_other_content_is_refused(short_tmp: Path, content: bytes) -> None:
    (short_tmp / "disk").write_bytes(content)
    with pytest.raises(HostError, match="not a qcow2"):
        read_virtual_size(short_tmp / "disk")
