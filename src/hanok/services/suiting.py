"""Definitions of VMs made to suit their image: what it asks for where the user said nothing."""

from __future__ import annotations

from hanok.errors import InvalidInput, Unsupported
from hanok.hypervisors.base import Hypervisor
from hanok.hypervisors.optional import HasScreen, HasWatchdog
from hanok.images.recipes import is_own
from hanok.model.architecture import Arch
from hanok.model.host import HypervisorFacts
from hanok.model.image import Appliance, Image
from hanok.model.keeping import OnUnhealthy, RestartWhen
from hanok.model.vm import Display, Firmware, Mode, VmSpec
from hanok.services.machines import choose_firmware


def suited(spec: VmSpec, image: Image | None) -> VmSpec:
    """Return ``spec`` as a VM of ``image`` (None: it is not built yet, or gone) is made.

    The same again changes nothing. Raises InvalidInput for what the image cannot do.
    """
    if image is None and is_own(spec.image):
        return spec  # that it is gone is told by whoever needs it
    _check_firmware(spec, image)
    if image is None or not is_own(image.ref):
        return spec
    _check_agent(spec, image)
    found: dict[str, object] = {"firmware": choose_firmware(spec, image)}
    _check_secure(spec, image)
    found |= {"data_disks": sum(disk.size for disk in image.data_disks)}
    said = spec.model_fields_set
    if "disk" not in said:
        found["disk"] = max(spec.disk, image.disk_size)
    if "memory" not in said:
        found["memory"] = max(spec.memory, image.minimum_memory)
    if spec.mode is Mode.AUTO and any(kernel.bare for kernel in image.kernels):
        found["mode"] = Mode.FULL
    if "disk" not in said and any(kernel.bare for kernel in image.kernels):
        found["disk"] = image.disk_size  # it sees no disk at all
    if image.appliance is not None:
        _check_nics(spec, image.appliance)
        for name in {"cpus", "memory"} - said:
            if (wish := getattr(image.appliance, name)) is not None:
                found[name] = wish
        if spec.mode is Mode.AUTO:
            # It was made for another hypervisor: that it knows virtio is not to be expected.
            found["mode"] = Mode.FULL
    return VmSpec.model_validate({**{name: getattr(spec, name) for name in said}, **found})


def check_keeping(spec: VmSpec) -> None:
    """Raise InvalidInput for a definition whose restarts and health check contradict each other."""
    wants = spec.health is not None and spec.health.on_unhealthy is OnUnhealthy.RESTART
    if wants and spec.restart.policy is RestartWhen.NO:
        raise InvalidInput(
            "an unhealthy VM is to be restarted, and its restart policy is no",
            field="health.on_unhealthy",
            expected="nothing, or a restart policy with it",
            hint="--restart on-failure, which also says how often and after which pauses",
        )


def check_offered(spec: VmSpec, hypervisor: Hypervisor) -> None:
    """Raise Unsupported for what this hypervisor cannot do for a VM."""
    offered = hypervisor.watchdog_actions() if isinstance(hypervisor, HasWatchdog) else ()
    if spec.watchdog.wanted and spec.watchdog.action not in offered:
        raise Unsupported(
            f"{hypervisor.name} has no watchdog device",
            field="watchdog",
            expected="none",
            hint="a health check by the guest's agent sees a guest that hangs too: --health agent",
        )
    if spec.display is Display.VGA and not isinstance(hypervisor, HasScreen):
        raise Unsupported(
            f"VMs on {hypervisor.name} have no screen here",
            field="display",
            expected="none, or QEMU as the hypervisor",
        )


def _check_nics(spec: VmSpec, appliance: Appliance) -> None:
    if len(appliance.nics) > 1 and "networks" not in spec.model_fields_set:
        were = ", ".join(name or "?" for name in appliance.nics)
        raise InvalidInput(
            f"the appliance has {len(appliance.nics)} network cards (on {were})",
            field="networks",
            expected="the networks that they are on here, in that order",
            hint="--network NAME for each; 'hanok network create NAME' makes one",
        )


def _check_firmware(spec: VmSpec, image: Image | None) -> None:
    boots_itself = image is not None and not image.kernels
    said = [name for name in ("firmware", "secure_boot", "tpm") if getattr(spec, name)]
    if said and not boots_itself:
        raise InvalidInput(
            f"{spec.image} is booted by its own kernel, no firmware has a part in that",
            field=said[0],
            expected="no firmware, or an imported image whose disk has a boot loader",
        )


def _check_secure(spec: VmSpec, image: Image) -> None:
    if spec.secure_boot and choose_firmware(spec, image) is not Firmware.UEFI:
        raise InvalidInput(
            "Secure Boot is a part of UEFI, and this disk is booted by bios",
            field="secure_boot",
            expected="firmware uefi with it",
            hint="--firmware uefi --secure-boot",
        )


def _check_agent(spec: VmSpec, image: Image) -> None:
    if spec.ready.command is not None and not image.agent:
        raise InvalidInput(
            f"{image.ref} was imported without a guest agent, which would run the command",
            field="ready.command",
            expected="tcp:PORT or console:TEXT",
            hint="an image with qemu-guest-agent in it is imported with --agent",
        )
    if spec.health is not None and spec.health.needs_agent and not image.agent:
        raise InvalidInput(
            f"{image.ref} was imported without a guest agent, which would be asked",
            field="health",
            expected="tcp:PORT or a URL that starts with http://",
            hint="an image with qemu-guest-agent in it is imported with --agent",
        )


def check_architecture(spec: VmSpec, arch: Arch | None, facts: HypervisorFacts) -> None:
    """Raise Unsupported when a VM of an image of ``arch`` is not what was asked, or cannot run."""
    if arch is None:  # the image is gone, which is told later
        return
    if spec.architecture not in (None, arch):
        raise Unsupported(
            f"the image {spec.image} is one for {arch}",
            field="architecture",
            expected=f"{arch}, or an image for {spec.architecture}, such as micro",
        )
    if arch not in facts.architectures:
        raise Unsupported(
            f"{facts.name} runs no guests of {arch} on this host",
            field="architecture",
            expected=" or ".join(facts.architectures),
            hint="apt-get install qemu-system-arm, for those of arm64" if arch == "arm64" else None,
        )
    if not facts.is_own(arch) and spec.mode not in (Mode.AUTO, Mode.PARA):
        raise Unsupported(
            f"a VM of another architecture than the host's ({arch}) is not run in mode {spec.mode}",
            field="mode",
            expected="para",
        )
