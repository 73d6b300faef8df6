"""From what is kept of a VM to what a hypervisor needs: files, folders, kernel, disks."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hanok.config import Settings
from hanok.errors import Unsupported
from hanok.hypervisors.base import Boot, Disk, Machine, Nic, RunState
from hanok.model.hardware import DataDisk, NicRecord
from hanok.model.image import Base, DiskFormat, Image, Kernel
from hanok.model.vm import CloneKind, Display, Firmware, Mode, VmRecord, VmSpec
from hanok.proc import Account

# What a hypervisor says of a machine that is there and whose guest can go on.
RUNS = (RunState.RUNNING, RunState.PAUSED)
_LONGEST_SERIAL = 20


@dataclass(frozen=True)
class VmFiles:
    """Where the files of one VM are.

    The outer folder is the daemon's: no hypervisor process can put a link there under a name that
    the daemon opens. The inner one, ``machine``, belongs to the VM's account.
    """

    folder: Path

    @property
    def machine(self) -> Path:
        """Where the hypervisor's process writes: the disk, its sockets, its own log."""
        return self.folder / "m"

    @property
    def disk(self) -> Path:
        """The root disk, an overlay on the image's."""
        return self.machine / "disk.qcow2"

    def data_disk(self, number: int) -> Path:
        """A further disk, an overlay on the image's; ``number`` counts from 0."""
        return self.machine / f"disk-{number + 2}.qcow2"

    def attached_disk(self, name: str) -> Path:
        """A disk that was added to the VM, by its name."""
        return self.machine / f"added-{name}.qcow2"

    @property
    def seed(self) -> Path:
        """The NoCloud seed: host name, keys, user data."""
        return self.folder / "seed.iso"

    @property
    def variables(self) -> Path:
        """The variables of UEFI firmware: what it boots, and by whose keys."""
        return self.folder / "efivars.fd"

    @property
    def tpm(self) -> Path:
        """The folder of its TPM: state and socket."""
        return self.folder / "tpm"

    @property
    def host_key(self) -> Path:
        """The public SSH host key of the guest, when it has one."""
        return self.folder / "host_key.pub"

    @property
    def console_log(self) -> Path:
        """What the guest wrote to its console."""
        return self.folder / "console.log"


@dataclass(frozen=True)
class TemplateFiles:
    """Where the files of one template are: the daemon's own, never written again.

    The folder's name, a random uuid, is what keeps VMs that are no clones of it away from the
    disk; the memory and the devices' state are passed as descriptors.
    """

    folder: Path

    @property
    def disk(self) -> Path:
        """The frozen root disk, an overlay on the image's."""
        return self.folder / "disk.qcow2"

    @property
    def memory(self) -> Path:
        """The guest's RAM."""
        return self.folder / "memory"

    @property
    def state(self) -> Path:
        """The state of the devices."""
        return self.folder / "state"


# Debian's cloud kernel lacks i6300esb, the driver of QEMU's watchdog; its full kernel has it.
_WITHOUT_WATCHDOG = "cloud"


def template_files(settings: Settings, ident: str) -> TemplateFiles:
    """Return where the files of template ``ident`` are."""
    return TemplateFiles(settings.templates / ident)


def files_of(settings: Settings, uuid: str) -> VmFiles:
    """Return where the files of VM ``uuid`` are."""
    return VmFiles(settings.vms / uuid)


def account_of(uid: int) -> Account | None:
    """Return the account that ``uid`` stands for; None when the daemon is an ordinary user."""
    return Account(uid, uid) if os.geteuid() == 0 else None


def make_folders(files: VmFiles, account: Account | None) -> None:
    """Make the VM's folders; the inner one is readable by its account alone."""
    files.folder.mkdir(mode=0o711, exist_ok=True)
    files.folder.chmod(0o711)  # a service's umask may be stricter, and then its account stays out
    files.machine.mkdir(mode=0o700, exist_ok=True)
    if account is not None:
        os.chown(files.machine, account.uid, account.gid)


def remove_folder(files: VmFiles) -> None:
    """Remove everything of the VM; nothing happens when it is gone."""
    if files.folder.is_symlink():
        files.folder.unlink()
    elif files.folder.exists():
        shutil.rmtree(files.folder)


def choose_kernel(image: Image, mode: Mode, *, watchdog: bool = False) -> Kernel | None:
    """Return the image's fastest kernel for ``mode``; None when its firmware boots the disk.

    Raises Unsupported when the image has kernels, but none for this mode, or none with a driver
    for a watchdog that is asked for.
    """
    if not image.kernels:
        return None
    suiting = [kernel for kernel in image.kernels if mode in kernel.modes]
    for kernel in suiting:
        if not (watchdog and kernel.name == _WITHOUT_WATCHDOG):
            return kernel
    if suiting:
        raise Unsupported(
            f"the kernel of the image {image.ref} has no driver for a watchdog",
            field="watchdog",
            expected="none, or an image with Debian's full kernel, such as debian:12",
        )
    offered = sorted({str(mode) for kernel in image.kernels for mode in kernel.modes})
    raise Unsupported(
        f"the image {image.ref} has no kernel for mode {mode}",
        field="mode",
        expected=" or ".join(offered),
        hint="it is started as it is, on hardware that it knows"
        if image.kernels[0].bare
        else f"'hanok image inspect {image.ref}' says why, 'hanok image paravirtualize {image.ref}'"
        " makes an image with one",
    )


def choose_firmware(spec: VmSpec, image: Image) -> Firmware | None:
    """Return what boots the disk of ``image``; None when its own kernel is booted directly."""
    if image.kernels:
        return None
    return spec.firmware or (image.firmware[0] if image.firmware else Firmware.BIOS)


def boot_of(spec: VmSpec, image: Image, files: VmFiles) -> Boot | None:
    """Return how the disk of ``image`` is booted; None when its own kernel is, directly."""
    firmware = choose_firmware(spec, image)
    if firmware is None:
        return None
    tpm = files.tpm if spec.tpm else None
    return Boot(firmware, files.variables, secure=spec.secure_boot, tpm=tpm)


def has_screen(spec: VmSpec, mode: Mode) -> bool:
    """Whether a VM in ``mode`` has a graphics card, where its hypervisor can show one.

    A PC has one: without it a guest in mode full may not even start. Others only if asked.
    """
    return mode is Mode.FULL if spec.display is None else spec.display is Display.VGA


def machine_of(settings: Settings, record: VmRecord, image: Image, image_folder: Path) -> Machine:
    """Return the machine that ``record`` describes, its disks on ``image``."""
    files = files_of(settings, record.uuid)
    kernel = choose_kernel(image, record.mode, watchdog=record.spec.watchdog.wanted)
    root = Disk(
        name="root",
        path=files.disk,
        format=DiskFormat.QCOW2,
        bases=_bases(settings, record, Base(image_folder / image.disk, image.disk_format)),
    )
    more = (
        Disk(name=name, path=image_folder / name, format=DiskFormat.RAW, read_only=True)
        for name in image.more_disks
    )
    data = (
        Disk(
            name=f"data-{number}",
            path=files.data_disk(number),
            format=DiskFormat.QCOW2,
            bases=(Base(image_folder / disk.file, DiskFormat.QCOW2),),
        )
        for number, disk in enumerate(image.data_disks)
    )
    seed = Disk(name="seed", path=files.seed, format=DiskFormat.RAW, read_only=True)
    added = (added_disk(files, disk) for disk in record.disks if disk.attached)
    disks = (root, *data, *more, seed, *added)
    if kernel is not None and kernel.bare:
        disks = ()  # nothing is said to such a kernel, and it may wait for minutes for empty drives
    return Machine(
        uuid=record.uuid,
        name=record.spec.name,
        cpus=record.spec.cpus,
        memory=record.spec.memory,
        mode=record.mode,
        folder=files.machine,
        account=account_of(record.uid),
        disks=disks,
        nics=tuple(nic_of(nic) for nic in record.nics),
        kernel=_named_kernel(kernel, record),
        kernel_folder=image_folder,
        boot=boot_of(record.spec, image, files),
        machine_type=record.machine_type,
        tcg_buffer=record.spec.tcg_buffer,
        nested=record.spec.nested,
        watchdog=record.spec.watchdog.action if record.spec.watchdog.wanted else None,
        architecture=image.architecture,
        screen=has_screen(record.spec, record.mode),
    )


def added_disk(files: VmFiles, disk: DataDisk) -> Disk:
    """Return a data disk that was added to a VM, as a hypervisor knows it."""
    return Disk(
        name=f"added-{disk.name}",
        path=files.attached_disk(disk.name),
        format=DiskFormat.QCOW2,
        serial=serial_of(disk.name),
        port=disk.port,
    )


def nic_of(nic: NicRecord) -> Nic:
    """Return a network card as a hypervisor knows it."""
    return Nic(nic.mac, nic.network, nic.port)


def serial_of(name: str) -> str:
    """Return the serial number by which a guest knows an added disk: virtio has 20 characters."""
    if len(name) <= _LONGEST_SERIAL:
        return name
    return f"{name[:11]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _bases(settings: Settings, record: VmRecord, image: Base) -> tuple[Base, ...]:
    """Return what the VM's root disk stands on, the nearest first."""
    if record.clone is None:
        return (image,)
    if record.clone.kind is CloneKind.FULL:
        return ()
    disk = template_files(settings, record.clone.template).disk
    return (Base(disk, DiskFormat.QCOW2), image)


def _named_kernel(kernel: Kernel | None, record: VmRecord) -> Kernel | None:
    """Return the kernel with the machine's identity on its command line (machine-id(5)).

    And with how often its watchdog is to be fed: systemd 250 and newer do so themselves
    (kernel-command-line(7)), and so does micro.
    """
    if kernel is None or kernel.bare:
        return kernel
    cmdline = f"{kernel.cmdline} systemd.machine_id={record.uuid.replace('-', '')}"
    if record.spec.watchdog.wanted:
        cmdline += f" systemd.watchdog_sec={record.spec.watchdog.timeout}"
    return kernel.model_copy(update={"cmdline": cmdline})
