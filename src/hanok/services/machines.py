"""From what is kept of a VM to what a hypervisor needs: files, folders, kernel, disks."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from hanok.config import Settings
from hanok.errors import Unsupported
from hanok.hypervisors.base import Disk, Machine, Nic
from hanok.model.image import Base, DiskFormat, Image, Kernel
from hanok.model.vm import CloneKind, Mode, VmRecord
from hanok.proc import Account


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

    @property
    def seed(self) -> Path:
        """The NoCloud seed: host name, keys, user data."""
        return self.folder / "seed.iso"

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
    def overlay(self) -> Path:
        """An empty overlay on ``disk``: each clone gets a copy of it."""
        return self.folder / "overlay.qcow2"

    @property
    def memory(self) -> Path:
        """The guest's RAM."""
        return self.folder / "memory"

    @property
    def state(self) -> Path:
        """The state of the devices."""
        return self.folder / "state"


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


def give_file(path: Path, data: bytes, account: Account | None, *, size: int = 0) -> None:
    """Write ``data`` to ``path``, 0600, owned by ``account``; whole or not at all.

    Zeros follow up to ``size`` bytes.
    """
    draft = path.with_suffix(".new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.truncate(max(size, len(data)))
        file.flush()
        os.fsync(file.fileno())
        if account is not None:
            os.fchown(file.fileno(), account.uid, account.gid)
    draft.rename(path)


def remove_folder(files: VmFiles) -> None:
    """Remove everything of the VM; nothing happens when it is gone."""
    if files.folder.is_symlink():
        files.folder.unlink()
    elif files.folder.exists():
        shutil.rmtree(files.folder)


def choose_kernel(image: Image, mode: Mode) -> Kernel | None:
    """Return the image's fastest kernel for ``mode``; None when its firmware boots the disk.

    Raises Unsupported when the image has kernels, but none for this mode.
    """
    if not image.kernels:
        return None
    for kernel in image.kernels:
        if mode in kernel.modes:
            return kernel
    offered = sorted({str(mode) for kernel in image.kernels for mode in kernel.modes})
    raise Unsupported(
        f"the image {image.ref} has no kernel for mode {mode}",
        field="mode",
        expected=" or ".join(offered),
    )


def machine_of(settings: Settings, record: VmRecord, image: Image, image_folder: Path) -> Machine:
    """Return the machine that ``record`` describes, its disks on ``image``."""
    files = files_of(settings, record.uuid)
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
    seed = Disk(name="seed", path=files.seed, format=DiskFormat.RAW, read_only=True)
    return Machine(
        uuid=record.uuid,
        name=record.spec.name,
        cpus=record.spec.cpus,
        memory=record.spec.memory,
        mode=record.mode,
        folder=files.machine,
        account=account_of(record.uid),
        disks=(root, *more, seed),
        nics=tuple(Nic(mac=nic.mac, network=nic.network) for nic in record.nics),
        kernel=_named_kernel(choose_kernel(image, record.mode), record.uuid),
        kernel_folder=image_folder,
        agent=image.agent,
        machine_type=record.machine_type,
        tcg_buffer=record.spec.tcg_buffer,
        nested=record.spec.nested,
    )


def _bases(settings: Settings, record: VmRecord, image: Base) -> tuple[Base, ...]:
    """Return what the VM's root disk stands on, the nearest first."""
    if record.clone is None:
        return (image,)
    if record.clone.kind is CloneKind.FULL:
        return ()
    disk = template_files(settings, record.clone.template).disk
    return (Base(disk, DiskFormat.QCOW2), image)


def _named_kernel(kernel: Kernel | None, uuid: str) -> Kernel | None:
    """Return the kernel with the machine's identity on its command line (machine-id(5))."""
    if kernel is None:
        return None
    cmdline = f"{kernel.cmdline} systemd.machine_id={uuid.replace('-', '')}"
    return kernel.model_copy(update={"cmdline": cmdline})
