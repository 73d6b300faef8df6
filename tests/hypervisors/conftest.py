"""The rigs of the conformance suite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hanok.hypervisors.xen.toolstack import is_dom0
from hanok.model.image import Image
from hanok.model.vm import Mode
from tests.hypervisors.rigs import Rig


@pytest.fixture(
    params=[
        "fake",
        pytest.param("qemu-para", marks=pytest.mark.vm),
        pytest.param("qemu-full", marks=pytest.mark.vm),
        pytest.param("xen-para", marks=pytest.mark.vm),
        pytest.param("xen-hybrid", marks=pytest.mark.vm),
        pytest.param("xen-full", marks=pytest.mark.vm),
    ]
)
async def rig(request: pytest.FixtureRequest, short_tmp: Path) -> AsyncIterator[Rig]:
    """A hypervisor and a mode; whatever the test did, nothing is left of it."""
    hypervisor, _, word = request.param.partition("-")
    xen = hypervisor == "xen"
    if xen != is_dom0() and hypervisor != "fake":
        pytest.skip("a test of Xen runs in its Dom0, and one of QEMU does not")
    image = None if hypervisor == "fake" else request.getfixturevalue("micro_image")
    async with _closing(Rig(short_tmp, Mode(word or "para"), image, xen)) as made:
        yield made


@pytest.fixture(params=["fake", pytest.param("qemu-para", marks=pytest.mark.vm)])
async def freezer(request: pytest.FixtureRequest, short_tmp: Path) -> AsyncIterator[Rig]:
    """A hypervisor and a mode that can freeze machines."""
    image = None if request.param == "fake" else request.getfixturevalue("micro_image")
    async with _closing(Rig(short_tmp, Mode.PARA, image)) as made:
        yield made


@pytest.fixture
async def qemu(micro_image: tuple[Image, Path], short_tmp: Path) -> AsyncIterator[Rig]:
    """QEMU in mode para, for what QEMU alone has."""
    async with _closing(Rig(short_tmp, Mode.PARA, micro_image)) as made:
        yield made


@pytest.fixture(params=[Mode.PARA, Mode.FULL], ids=str)
async def qemu_both(
    request: pytest.FixtureRequest, micro_image: tuple[Image, Path], short_tmp: Path
) -> AsyncIterator[Rig]:
    """QEMU in each mode, for what differs between them."""
    async with _closing(Rig(short_tmp, request.param, micro_image)) as made:
        yield made


class _closing:
    """Closes a rig and asserts that nothing is left."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig

    async def __aenter__(self) -> Rig:
        return self._rig

    async def __aexit__(self, *_: object) -> None:
        await self._rig.close()
        assert self._rig.leftovers() == []
