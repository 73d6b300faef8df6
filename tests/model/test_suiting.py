"""What an image has to say about a definition."""

from __future__ import annotations

import pytest

from hanok.errors import InvalidInput
from hanok.model.image import Image, Kernel
from hanok.model.vm import Firmware, Mode, VmSpec
from hanok.services.suiting import suited
from hanok.units import GIB, MIB

FOREIGN = Image(
    id="0" * 16,
    ref="own:old",
    os="old",
    disk_size=20 * GIB,
    firmware=(Firmware.BIOS,),
    agent=False,
    minimum_memory=64 * MIB,
)
KERNEL = Kernel(name="k", vmlinuz="k", initrd="i", cmdline="", modes=(Mode.PARA,))


def spec(**fields: object) -> VmSpec:
    return VmSpec.model_validate({"name": "vm", "image": "own:old", **fields})


def test_a_disk_is_as_large_as_the_images_unless_it_is_said() -> None:
    assert suited(spec(), FOREIGN).disk == 20 * GIB
    assert suited(spec(disk="30G"), FOREIGN).disk == 30 * GIB
    assert suited(spec(disk="4G"), FOREIGN).disk == 4 * GIB  # refused later, with the reason
    small = FOREIGN.model_copy(update={"disk_size": GIB})
    assert suited(spec(), small).disk == 4 * GIB
    hungry = FOREIGN.model_copy(update={"minimum_memory": GIB})
    assert (suited(spec(), hungry).memory, suited(spec(), FOREIGN).memory) == (GIB, 512 * MIB)
    assert suited(spec(memory="256M"), hungry).memory == 256 * MIB
    once = suited(spec(), FOREIGN)
    assert suited(once, FOREIGN) == once


def test_what_the_image_cannot_do_is_refused() -> None:
    with pytest.raises(InvalidInput, match="without a guest agent"):
        suited(spec(ready={"command": "true"}), FOREIGN)
    assert suited(spec(ready={"command": "true"}), FOREIGN.model_copy(update={"agent": True}))
    made = FOREIGN.model_copy(update={"kernels": (KERNEL,)})
    with pytest.raises(InvalidInput, match="own kernel"):
        suited(spec(firmware="uefi"), made)
    assert suited(spec(firmware="uefi"), FOREIGN).firmware is Firmware.UEFI
    assert suited(spec(), FOREIGN).firmware is Firmware.BIOS
    with pytest.raises(InvalidInput, match="booted by bios"):
        suited(spec(secure_boot=True), FOREIGN)
    assert suited(spec(firmware="uefi", secure_boot=True, tpm=True), FOREIGN).tpm
    with pytest.raises(InvalidInput, match="own kernel"):
        suited(spec(tpm=True, image="micro"), None)
    assert suited(spec(tpm=True), None) == spec(tpm=True)  # the image is gone


def test_a_bare_kernel_runs_in_mode_full_and_sees_no_disk() -> None:
    bare = KERNEL.model_copy(update={"bare": True, "modes": (Mode.FULL,)})
    image = FOREIGN.model_copy(update={"kernels": (bare,), "disk_size": 64 * MIB, "firmware": ()})
    made = suited(spec(), image)
    assert (made.mode, made.disk, made.firmware) == (Mode.FULL, 64 * MIB, None)
    assert suited(made, image) == made
    assert suited(spec(mode="para"), image).mode is Mode.PARA  # refused later, with the reason
    assert suited(spec(disk="1G"), image).disk == GIB
