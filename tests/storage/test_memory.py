"""Frozen memory comes back as it was or not at all, and nobody changes it once it is sealed."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hanok.errors import HostError
from hanok.storage.memory import (
    check_memory,
    find_in_process,
    is_sealed,
    load_memory,
    new_memory,
    save_memory,
    seal_memory,
)
from hanok.units import GIB, KIB, MIB

SIZE = 4 * MIB
KEEP_SIZE, PUNCH_HOLE = 1, 2  # linux/falloc.h
FUTURE_WRITE = 0x10  # F_SEAL_FUTURE_WRITE, linux/fcntl.h


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def memory_with(pieces: dict[int, bytes], size: int = SIZE) -> Iterator[int]:
    with closing(new_memory(size, "test")) as fd:
        for offset, data in pieces.items():
            os.pwrite(fd, data, offset)
        yield fd


def open_descriptors() -> int:
    return sum(1 for _ in os.scandir("/proc/self/fd"))


def content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size + 1, 0)


@pytest.fixture
def saved(short_tmp: Path) -> tuple[Path, str]:
    """A saved memory of SIZE bytes with two pieces in it, and its checksum."""
    path = short_tmp / "memory"
    with memory_with({5: b"a guest", 3 * MIB: b"its kernel"}) as fd:
        return path, save_memory(fd, path).checksum


def punch_hole(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    offset = ctypes.c_long
    if libc.fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset(0), offset(4096)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def map_to_write(fd: int) -> None:
    mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE).close()


@pytest.mark.parametrize(
    "attack",
    [
        lambda fd: os.pwrite(fd, b"x", 0),
        lambda fd: os.ftruncate(fd, SIZE // 2),
        lambda fd: os.ftruncate(fd, SIZE * 2),
        lambda fd: os.posix_fallocate(fd, SIZE, 4096),
        lambda fd: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
        punch_hole,
        map_to_write,
    ],
    ids=["write", "shrink", "grow", "allocate", "seal", "punch", "map"],
)
def test_sealed_memory_cannot_be_changed(
    attack: Callable[[int], object], saved: tuple[Path, str]
) -> None:
    path, checksum = saved
    with closing(load_memory(path, SIZE, checksum)) as fd:
        before = content(fd)
        with closing(os.open(f"/proc/self/fd/{fd}", os.O_RDWR)) as writable:
            for tried in (fd, writable):
                with pytest.raises(OSError) as caught:
                    attack(tried)
                assert caught.value.errno == errno.EPERM
        assert content(fd) == before
        assert check_memory(fd, SIZE, checksum)


def test_sealed_memory_can_be_mapped_private_and_written_there(saved: tuple[Path, str]) -> None:
    path, checksum = saved
    with (
        closing(load_memory(path, SIZE, checksum)) as fd,
        mmap.mmap(fd, SIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as own,
    ):
        own[5:12] = b"a clone"
        assert content(fd)[5:12] == b"a guest"
        assert check_memory(fd, SIZE, checksum)


def test_memory_that_is_still_mapped_cannot_be_sealed() -> None:
    with memory_with({}) as fd:
        with mmap.mmap(fd, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE):
            with pytest.raises(HostError, match="a process can still write it"):
                seal_memory(fd)
            assert not is_sealed(fd)
        seal_memory(fd)
        seal_memory(fd)
        assert is_sealed(fd)


def test_memory_that_the_host_refuses(small_files_only: None) -> None:
    open_before = open_descriptors()
    with pytest.raises(HostError, match="no memory of 4 MiB could be made: File too large"):
        new_memory(SIZE, "test")
    assert open_descriptors() == open_before


def test_a_plain_file_is_not_sealed(short_tmp: Path) -> None:
    path = short_tmp / "plain"
    path.write_bytes(bytes(SIZE))
    with path.open("rb") as file:
        assert not is_sealed(file.fileno())
        assert not check_memory(file.fileno(), SIZE, "")


pieces = st.dictionaries(
    st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=200 * KIB), max_size=6
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pieces, st.integers(SIZE - 200 * KIB, SIZE))
def test_what_is_saved_comes_back(short_tmp: Path, parts: dict[int, bytes], size: int) -> None:
    path = short_tmp / "memory"
    inside = {at: data[: size - at] for at, data in parts.items() if at < size}
    with memory_with(inside, size) as fd:
        facts = save_memory(fd, path)
        before = content(fd)
        assert check_memory(fd, size, facts.checksum) is False  # right, but not sealed
        seal_memory(fd)
        assert check_memory(fd, size, facts.checksum)
        assert not check_memory(fd, size + 1, facts.checksum)
    assert path.read_bytes() == before
    pages = [before[at : at + 4096] for at in range(0, size, 4096)]
    assert facts.used == sum(len(page) for page in pages if any(page))
    with closing(load_memory(path, size, facts.checksum)) as fd:
        assert is_sealed(fd)
        assert content(fd) == before


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(pieces)
def test_the_checksum_does_not_depend_on_holes(short_tmp: Path, parts: dict[int, bytes]) -> None:
    inside = {at: data[: SIZE - at] for at, data in parts.items()}
    with memory_with(inside) as fd, memory_with({0: content(fd)}) as dense:
        assert os.fstat(dense).st_blocks * 512 == SIZE
        facts = save_memory(dense, short_tmp / "dense")
        assert facts == save_memory(fd, short_tmp / "sparse")
    (short_tmp / "dense").write_bytes((short_tmp / "sparse").read_bytes())
    os.close(load_memory(short_tmp / "dense", SIZE, facts.checksum))


def test_a_piece_elsewhere_is_another_memory(short_tmp: Path) -> None:
    chunk = b"x" * 64 * KIB
    sums = set()
    for offset in (0, 64 * KIB, 128 * KIB):
        with memory_with({offset: chunk}) as fd:
            sums.add(save_memory(fd, short_tmp / "memory").checksum)
    assert len(sums) == 3


def test_zeros_take_no_room_on_the_disk(short_tmp: Path) -> None:
    path = short_tmp / "memory"
    with memory_with({0: bytes(2 * MIB), GIB - 1: b"x"}, GIB) as fd:
        facts = save_memory(fd, path)
    assert path.stat().st_size == GIB
    assert path.stat().st_blocks * 512 <= 128 * KIB
    assert facts.used == 4096
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def flip_byte(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(7)
        file.write(b"X")


def write_into_hole(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * MIB)
        file.write(b"\x01")


def lose_piece(path: Path) -> None:
    with path.open("r+b") as file:
        punch_hole(file.fileno())


def replace_by_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def replace_by_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("harm", "told"),
    [
        (flip_byte, "is damaged"),
        (write_into_hole, "is damaged"),
        (lose_piece, "is damaged"),
        (lambda path: os.truncate(path, SIZE - 1), "is truncated"),
        (lambda path: os.truncate(path, 0), "is truncated"),
        (lambda path: os.truncate(path, SIZE + 1), "is too long"),
        (lambda path: path.unlink(), "is missing"),
        (replace_by_link, "is a symbolic link"),
        (replace_by_fifo, "is not a plain file"),
        (lambda path: path.with_name("second").hardlink_to(path), "has a second name"),
    ],
)
def test_files_that_are_not_what_was_saved_are_refused(
    harm: Callable[[Path], object], told: str, saved: tuple[Path, str]
) -> None:
    path, checksum = saved
    harm(path)
    open_before = open_descriptors()
    with pytest.raises(HostError, match=told) as caught:
        load_memory(path, SIZE, checksum)
    assert str(path) in caught.value.message
    assert open_descriptors() == open_before


def test_a_save_that_fails_leaves_what_was_there(short_tmp: Path) -> None:
    path = short_tmp / "memory"
    path.mkdir()
    with memory_with({0: b"x"}) as fd, pytest.raises(HostError, match="could not be written"):
        save_memory(fd, path)
    assert list(short_tmp.iterdir()) == [path]
    (short_tmp / "memory.new").write_bytes(b"left by a crash")
    path.rmdir()
    with memory_with({0: b"x"}) as fd:
        save_memory(fd, path)
    assert list(short_tmp.iterdir()) == [path]


# Processes that hold memory, hostile ones too

HOLDER = """
import fcntl, os, sys
held = []
def memfd(name, size, seals, data=b""):
    fd = os.memfd_create(name, os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, size)
    os.pwrite(fd, data, 5)
    if seals:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
    held.append(fd)
{body}
print("ready", flush=True)
sys.stdin.read()
"""
ALL_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@contextlib.contextmanager
def holder(body: str, *wrapper: str, pass_fds: tuple[int, ...] = ()) -> Iterator[int]:
    """Run a process that executes ``body`` and waits; give its pid."""
    process = subprocess.Popen(
        [*wrapper, sys.executable, "-c", HOLDER.format(body=body)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        try:
            if process.stdout.readline() != "ready\n":
                pytest.skip(f"{' '.join(wrapper)} is not possible here")
            yield process.pid
        finally:
            process.kill()


def test_memory_is_found_in_a_process_that_has_it(saved: tuple[Path, str]) -> None:
    path, checksum = saved
    with closing(load_memory(path, SIZE, checksum)) as fd, holder("", pass_fds=(fd,)) as pid:
        found = find_in_process(pid, SIZE)
        assert found is not None
        with closing(found):
            assert os.path.sameopenfile(found, fd)
            assert fcntl.fcntl(found, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
            assert not os.get_inheritable(found)
            assert check_memory(found, SIZE, checksum)
        assert find_in_process(pid, SIZE * 2) is None


@pytest.mark.parametrize(
    "body",
    [
        "",
        f"memfd('hanok-evil', {SIZE}, 0)",
        f"memfd('hanok-evil', {SIZE // 2}, {ALL_SEALS})",
        f"memfd('other', {SIZE}, {ALL_SEALS})",
        f"memfd('hanok-evil', {SIZE}, {ALL_SEALS & ~fcntl.F_SEAL_WRITE})",
        f"memfd('hanok-evil', {SIZE}, {FUTURE_WRITE | ALL_SEALS & ~fcntl.F_SEAL_WRITE})",
        f"memfd('hanok-evil', {SIZE}, {ALL_SEALS & ~fcntl.F_SEAL_SHRINK})",
        "held.append(os.pipe())",
    ],
    ids=["none", "open", "small", "name", "writable", "future-write", "shrinkable", "pipe"],
)
def test_memory_that_can_change_is_not_taken(body: str) -> None:
    with holder(body) as pid:
        assert find_in_process(pid, SIZE) is None


def test_sealed_memory_of_a_hostile_process_does_not_pass_the_check(
    saved: tuple[Path, str],
) -> None:
    _, checksum = saved
    evil = f"memfd('hanok-evil', {SIZE}, {ALL_SEALS}, b'a hacker')"
    with holder(evil) as pid:
        found = find_in_process(pid, SIZE)
        assert found is not None
        with closing(found):
            assert not check_memory(found, SIZE, checksum)


def test_files_that_only_look_like_memory_are_never_opened(short_tmp: Path) -> None:
    """A file on a file system that is detached shows a path from that one's own root.

    Opening such a FIFO would have the daemon wait, and opening would show in its writer's side.
    """
    folder = short_tmp / "m"
    folder.mkdir()
    body = f"""
os.mkfifo({str(folder)!r} + "/memfd:hanok-evil")
open({str(folder)!r} + "/memfd:hanok-file", "wb").truncate({SIZE})
held.append(os.open({str(folder)!r} + "/memfd:hanok-evil", os.O_RDWR))
held.append(os.open({str(folder)!r} + "/memfd:hanok-file", os.O_RDWR))
os.system("umount -l " + {str(folder)!r})
for fd in held:
    assert os.readlink("/proc/self/fd/" + str(fd)).startswith("/memfd:hanok-")
"""
    mount = f'mount -t tmpfs none {folder} && exec "$@"'
    unshare = ["unshare", "--mount"]
    if os.geteuid() != 0:
        unshare.append("--map-root-user")
    with holder(body, *unshare, "sh", "-c", mount, "sh") as pid:
        assert find_in_process(pid, SIZE) is None


ATTACKS = """
import ctypes, fcntl, mmap, os, sys
fd, size = int(sys.argv[1]), int(sys.argv[2])
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = libc.mprotect.argtypes
READ, WRITE, SHARED, PRIVATE, REMOVE, PUNCH, SET_DUMPABLE = 1, 2, 1, 2, 9, 3, 4
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
libc.prctl(SET_DUMPABLE, 1, 0, 0, 0)  # so that /proc/self is its own again
os.close(os.open(f"/proc/self/fd/{fd}", os.O_RDWR))  # as QEMU opens it

def checked(result):
    if result in (-1, ctypes.c_void_p(-1).value):
        raise OSError(ctypes.get_errno(), "refused")
    return result

def fill(target):
    source, sink = os.pipe()
    os.write(sink, b"x" * 4096)
    os.splice(source, target, 4096, offset_dst=0)

def poke(protection, flags, advice=None):
    address = checked(libc.mmap(None, size, protection, flags, fd, 0))
    if advice is not None:
        checked(libc.madvise(address, size, advice))
    checked(libc.mprotect(address, size, READ | WRITE))
    ctypes.memset(address, 0x78, 4096)
    if flags == PRIVATE:
        raise OSError("only its own copy was written")

attacks = {
    "write": lambda: os.pwrite(fd, b"x", 0),
    "reopen": lambda: os.pwrite(os.open(f"/proc/self/fd/{fd}", os.O_RDWR), b"x", 0),
    "reopen and cut": lambda: os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC),
    "splice": lambda: fill(os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)),
    "cut": lambda: os.ftruncate(fd, 0),
    "punch": lambda: checked(libc.fallocate(fd, PUNCH, ctypes.c_long(0), ctypes.c_long(4096))),
    "map": lambda: poke(READ | WRITE, SHARED),
    "map, then allow": lambda: poke(READ, SHARED),
    "map private": lambda: poke(READ | WRITE, PRIVATE),
    "discard": lambda: poke(READ | WRITE, PRIVATE, REMOVE),
    "discard shared": lambda: poke(READ, SHARED, REMOVE),
    "unseal": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 0),
    "hide": lambda: os.fchmod(fd, 0),
}
for name, attack in attacks.items():
    try:
        attack()
    except OSError:
        continue
    print(name)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_a_hostile_clone_cannot_change_the_memory_of_its_template(saved: tuple[Path, str]) -> None:
    path, checksum = saved
    with closing(load_memory(path, SIZE, checksum)) as fd:
        done = subprocess.run(
            [sys.executable, "-c", ATTACKS, str(fd), str(SIZE)],
            pass_fds=(fd,),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
        assert check_memory(fd, SIZE, checksum)


def test_a_process_that_is_gone_has_nothing() -> None:
    with holder("") as pid:
        pass
    assert find_in_process(pid, SIZE) is None
