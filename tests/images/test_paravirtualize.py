"""Images that are made of others: their names, what is refused, and what a failure leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from hanok.app import find_emulator
from hanok.errors import (
    CommandFailed,
    Conflict,
    GuestError,
    HostError,
    InvalidInput,
    NotFound,
    Unsupported,
)
from hanok.images.change import Emulator, Kit, Target, change_argv
from hanok.images.library import ImageLibrary
from hanok.images.paravirtualize import Order, check
from hanok.images.recipes import kernel_ref, resolve
from hanok.kernels.cpio import make_archive
from hanok.kernels.initrd import read_initrd
from hanok.model.architecture import GUEST_ARCHITECTURES, Arch
from hanok.model.image import Image
from hanok.model.vm import Mode
from hanok.proc import Completed
from tests.images.builds import QuickBuilds

PACKAGE = "linux-image-amd64"
EMULATOR = Emulator("qemu-system-x86_64", "qemu-system-x86", "pc", "qemu64")
SAID = ("put 6.1.0-1-amd64 on /dev/vda", "done")


class QuickChanges(QuickBuilds):
    """The small VM says ``said`` and changes nothing."""

    def __init__(self, said: Sequence[str] = SAID) -> None:
        super().__init__()
        self.said = said
        self.argv: list[str] = []
        self.environ: Mapping[str, str] | None = None

    async def run(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None, **options: Any
    ) -> Completed:
        """Stand in for QEMU; everything else goes on."""
        if EMULATOR.program not in argv:
            return await super().run(argv, env=env, **options)
        self.argv = list(argv)
        hear: Callable[[str], None] = options["on_line"]
        hear("[    0.1] Linux says something")
        for text in self.said:
            hear(f"hanok-change: {text}\r")
        return Completed(tuple(argv), 0, b"", b"")


def quiet(message: str, fraction: float | None) -> None:
    """Report to nobody."""


def library_in(folder: Path, runner: QuickChanges) -> ImageLibrary:
    return ImageLibrary(folder, runner, emulators=lambda arch: EMULATOR)


async def order_in(library: ImageLibrary, ref: str = "own:better") -> Order:
    old = await library.ensure("debian:12", (), quiet)
    kernel = await library.ensure(kernel_ref(old.ref), (PACKAGE,), quiet)
    kit = Kit(kernel, library.path(kernel))
    modes = (Mode.PARA, Mode.HYBRID)
    return Order(old, library.path(old), ref, kit, modes)


async def test_the_new_image_has_the_new_kernel_first_and_the_old_for_other_modes(
    short_tmp: Path,
) -> None:
    library = library_in(short_tmp, QuickChanges())
    order = await order_in(library)
    made = await library.paravirtualize(order, quiet)
    assert (made.ref, made.made_from, made.id) == ("own:better", order.old.id, order.id)
    assert [(one.name, one.modes) for one in made.kernels] == [
        ("added-generic", (Mode.PARA, Mode.HYBRID)),
        ("generic", (Mode.FULL,)),
    ]
    assert made.kernels[0].cmdline == order.old.kernels[0].cmdline
    await library.verify(made)
    await library.verify(order.old)
    assert library.find("own:better") == made
    assert library.identity("own:better") == made.id
    assert await library.ensure("own:better", (), quiet) == made
    assert await library.paravirtualize(order, quiet) == made


async def test_a_name_belongs_to_one_image(short_tmp: Path) -> None:
    library = library_in(short_tmp, QuickChanges())
    order = await order_in(library)
    await library.paravirtualize(order, quiet)
    other = Order(order.old.model_copy(update={"id": "0" * 16}), *list(vars(order).values())[1:])
    with pytest.raises(Conflict, match="that of another image"):
        await library.paravirtualize(other, quiet)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        (("failed: no room: the kernel needs 9 MiB",), GuestError, "no room"),
        (("failed: no ext4 file system",), GuestError, "no ext4"),
        (("put 6.1.0 on /dev/vda",), CommandFailed, "without a word"),
        ((), CommandFailed, "without a word"),
    ],
)
async def test_a_failure_leaves_nothing(
    short_tmp: Path, said: tuple[str, ...], error: type[Exception], message: str
) -> None:
    library = library_in(short_tmp, QuickChanges(said))
    order = await order_in(library)
    before = sorted(path.name for path in short_tmp.iterdir())
    with pytest.raises(error, match=message):
        await library.paravirtualize(order, quiet)
    assert sorted(path.name for path in short_tmp.iterdir()) == before
    with pytest.raises(NotFound):
        await library.ensure("own:better", (), quiet)


async def test_packages_cannot_be_added_to_such_an_image(short_tmp: Path) -> None:
    library = library_in(short_tmp, QuickChanges())
    await library.paravirtualize(await order_in(library), quiet)
    with pytest.raises(Unsupported, match="packages cannot be added"):
        await library.ensure("own:better", ("nginx",), quiet)


async def test_the_small_vm_has_no_network_and_names_every_format(short_tmp: Path) -> None:
    library = library_in(short_tmp, QuickChanges())
    order = await order_in(library)
    argv = change_argv(EMULATOR, order.kit, Path("/i,x"), Target(Path("/a,b"), "raw"))
    assert argv[:3] == [EMULATOR.program, "-machine", "pc"]
    assert "-nodefaults" in argv
    assert not [word for word in argv if "net" in word]
    nodes = [json.loads(argv[at + 1]) for at, word in enumerate(argv) if word == "-blockdev"]
    assert [(node["driver"], node["read-only"]) for node in nodes] == [
        ("raw", False),
        ("qcow2", True),
    ]
    assert nodes[0]["file"]["filename"] == "/a,b"


def test_an_archive_of_ours_reads_as_any() -> None:
    found = read_initrd(make_archive({"change": b"#!/bin/sh\n", "x": b""}))
    assert (found.archives, found.entries) == (("none",), 2)


def test_kernels_come_from_the_guests_own_debian() -> None:
    assert kernel_ref("debian:13") == "kernel:13"
    assert kernel_ref("own:something") == "kernel:12"
    assert kernel_ref("debian:99") == "kernel:12"


@pytest.mark.parametrize("packages", [(), ("nginx",), ("linux-image-amd64", "nginx")])
def test_a_kernel_is_one_package(packages: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInput, match="is not one kernel"):
        resolve("kernel:12", packages)


def test_such_an_image_is_not_built() -> None:
    with pytest.raises(InvalidInput, match="made of another"):
        resolve("own:better")


async def test_disks_that_the_kernel_would_not_find_are_refused(short_tmp: Path) -> None:
    library = library_in(short_tmp, QuickChanges())
    image: Image = await library.ensure("debian:12", (), quiet)
    check(image)
    with pytest.raises(Unsupported, match="firmware boots the disk"):
        check(image.model_copy(update={"kernels": ()}))
    other = image.kernels[0].model_copy(update={"cmdline": "root=/dev/sda1"})
    with pytest.raises(Unsupported, match="label hanok-root"):
        check(image.model_copy(update={"kernels": (other,)}))


@pytest.mark.parametrize(
    ("arch", "program", "board"),
    [
        (Arch.AMD64, "qemu-system-x86_64", "q35"),
        (Arch.ARM64, "qemu-system-aarch64", "virt"),
    ],
)
async def test_the_small_vm_has_the_architecture_of_its_kernel(
    short_tmp: Path, arch: Arch, program: str, board: str
) -> None:
    """Whatever the host's is."""
    library = library_in(short_tmp, QuickChanges())
    order = await order_in(library)
    kit = Kit(order.kit.image.model_copy(update={"architecture": arch}), order.kit.folder)
    argv = change_argv(find_emulator(arch), kit, Path("/i"), Target(Path("/a"), "raw"))
    assert argv[:3] == [program, "-machine", board]
    console = GUEST_ARCHITECTURES[arch].console
    assert argv[argv.index("-append") + 1].startswith(f"console={console},115200 ")


async def test_without_an_emulator_it_says_so(short_tmp: Path) -> None:
    library = ImageLibrary(short_tmp, QuickChanges())
    order = await order_in(library)
    with pytest.raises(HostError, match="runs kernels of amd64"):
        await library.paravirtualize(order, quiet)
