"""What the kernels of images can do, and images with other kernels."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path
from typing import Any

from hanok.errors import HostError, InvalidInput, Unsupported
from hanok.images.change import Kit
from hanok.images.paravirtualize import Order, check
from hanok.images.recipes import KERNEL, OWN, kernel_ref, resolve
from hanok.images.sandbox import DEFAULT_ACCOUNT
from hanok.model.image import Image
from hanok.model.kernel import (
    Answer,
    ImageKernels,
    KernelFailure,
    KernelReport,
    Paravirtualization,
    Platform,
)
from hanok.model.operation import Operation
from hanok.model.vm import Mode
from hanok.proc import Limits
from hanok.services.events import make_event
from hanok.services.images import ImageService
from hanok.services.operations import Operations, Work
from hanok.services.parts import Parts
from hanok.units import GIB

_READING_LIMITS = Limits(cpu_seconds=60, memory=2 * GIB)
_READING_TIME = 120
# What paravirtualization means on each hypervisor.
_WANTED = {Platform.QEMU: (Mode.PARA,), Platform.XEN: (Mode.PARA, Mode.HYBRID)}


class KernelService:
    """Reads kernels, and makes images of others that have better ones."""

    def __init__(self, parts: Parts, operations: Operations, images: ImageService) -> None:
        self._parts = parts
        self._operations = operations
        self._images = images
        self._reading = asyncio.Lock()
        operations.register("paravirtualize", self._paravirtualize, cancellable=True)

    async def inspect(self, ref_or_id: str) -> ImageKernels:
        """Return what the kernels of an image can do. Raises NotFound, and HostError when the
        process that reads them fails or takes too long.
        """
        return await self._read(await self._images.find(ref_or_id))

    async def paravirtualize(self, ref_or_id: str, wanted: Paravirtualization) -> Operation:
        """Begin to make a new image, called own:NAME; the old one stays as it is.

        Raises NotFound, Unsupported for an image whose disk a kernel cannot be put onto,
        InvalidInput for what is no kernel's package.
        """
        image = await self._images.find(ref_or_id)
        if image.ref.startswith(f"{KERNEL}:"):
            raise InvalidInput(f"{image.ref} is a kernel, no guest", field="image")
        check(image)
        resolve(kernel_ref(image.ref), (wanted.kernel_package,))
        arguments = {"image": image.id, "wanted": wanted.model_dump(mode="json")}
        return await self._operations.begin("paravirtualize", image.ref, arguments=arguments)

    async def _paravirtualize(self, work: Work) -> dict[str, Any]:
        library = self._parts.images
        old = await self._images.find(work.operation.arguments["image"])
        wanted = Paravirtualization.model_validate(work.operation.arguments["wanted"])
        kernel = await library.ensure(kernel_ref(old.ref), (wanted.kernel_package,), work.report)
        order = Order(
            old=old,
            source=library.path(old),
            ref=f"{OWN}:{wanted.name or _name_for(old)}",
            kit=Kit(kernel, library.path(kernel)),
            modes=_modes(await self._read(kernel), wanted),
        )
        made = await library.paravirtualize(order, work.report)
        event = make_event("image", made.ref, "made", f"{made.id} of {old.id}")
        await self._parts.events.commit(event=event)
        return {"id": made.id, "ref": made.ref, "modes": [str(mode) for mode in order.modes]}

    async def _read(self, image: Image) -> ImageKernels:
        # Kernels may come from anyone: they are read in a process that owns nothing, one at a time.
        if not image.kernels:
            return ImageKernels(image=image.id)
        argv = _reading_argv(image, self._parts.images.path(image))
        async with self._reading:
            done = await self._parts.runner.run(
                argv, timeout=_READING_TIME, limits=_READING_LIMITS, cwd=Path("/")
            )
        return _reports(image.id, done.stdout)


def _reading_argv(image: Image, folder: Path) -> list[str]:
    argv = [sys.executable, "-P", "-m", "hanok.kernels", str(DEFAULT_ACCOUNT.uid)]
    for kernel in image.kernels:
        initrd = str(folder / kernel.initrd) if kernel.initrd else ""
        argv += [kernel.name, str(folder / kernel.vmlinuz), initrd]
    return argv


def _reports(image_id: str, output: bytes) -> ImageKernels:
    reports, failures = [], []
    for line in output.splitlines():
        found = json.loads(line)
        if "why" in found:
            failures.append(KernelFailure.model_validate(found))
        else:
            reports.append(KernelReport.model_validate(found))
    return ImageKernels(image=image_id, kernels=tuple(reports), failures=tuple(failures))


def _modes(found: ImageKernels, wanted: Paravirtualization) -> tuple[Mode, ...]:
    """Return the modes that the new kernel can run in.

    Raises HostError when it cannot be read, Unsupported when it lacks what is wanted of it.
    """
    if not found.kernels:
        reasons = "; ".join(failure.why for failure in found.failures)
        raise HostError(f"the kernel of {wanted.kernel_package} cannot be read: {reasons}")
    verdicts = found.kernels[0].modes
    platforms = [wanted.hypervisor] if wanted.hypervisor is not None else list(_WANTED)
    for one in verdicts:
        is_wanted = one.hypervisor in platforms and one.mode in _WANTED[one.hypervisor]
        if is_wanted and one.can is not Answer.YES:
            raise Unsupported(
                f"the kernel of {wanted.kernel_package} cannot run in mode {one.mode} on "
                f"{one.hypervisor}: {'; '.join(one.lacks)}",
                field="kernel_package",
                expected="a kernel with what that mode needs, such as linux-image-amd64",
            )
    can = {one.mode for one in verdicts if one.can is Answer.YES}
    return tuple(mode for mode in (Mode.FULL, Mode.PARA, Mode.HYBRID) if mode in can)


def _name_for(image: Image) -> str:
    """Return a name by what the image is called: debian-12-para of debian:12."""
    base = re.sub(r"[^a-z0-9]+", "-", image.ref.removeprefix(f"{OWN}:").lower()).strip("-")
    return f"{base[:50]}-para"
