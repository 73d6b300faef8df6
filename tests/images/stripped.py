"""An image without a driver for any paravirtual device: a Debian whose modules were taken out."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from hanok.images.filing import hash_file
from hanok.model.image import Image
from hanok.model.vm import Mode

ID = "5171bbed00000000"
_GONE = ("virtio", "xen-blkfront", "xen-netfront")


def make_stripped(source: Path, image: Image, target: Path, work: Path) -> Image:
    """Put into the new folder ``target`` what ``image`` is without drivers of virtio and Xen."""
    target.mkdir(mode=0o755)
    target.chmod(0o755)
    old = next(kernel for kernel in image.kernels if Mode.FULL in kernel.modes)
    shutil.copyfile(source / old.vmlinuz, target / old.vmlinuz)
    _strip_initrd(source / old.initrd, target / old.initrd, work)
    _strip_disk(source / image.disk, target / image.disk, work)
    kernel = old.model_copy(update={"name": "old", "modes": (Mode.FULL,)})
    files = list(target.iterdir())
    stripped = image.model_copy(
        update={
            "id": ID,
            "ref": "own:stripped",
            "made_from": image.id,
            "kernels": (kernel,),
            "checksums": {path.name: hash_file(path) for path in files},
        }
    )
    (target / "image.json").write_text(stripped.model_dump_json())
    return stripped


def _strip_initrd(source: Path, target: Path, work: Path) -> None:
    tree = work / "tree"
    tree.mkdir()
    with source.open("rb") as file:
        unpack = ["cpio", "--quiet", "-idm", "--no-absolute-filenames"]
        subprocess.run(unpack, stdin=file, cwd=tree, check=True)
    for path in tree.rglob("*.ko"):
        if path.name.startswith(_GONE):
            path.unlink()
    names = b"\0".join(bytes(path.relative_to(tree)) for path in sorted(tree.rglob("*")))
    with target.open("wb") as file:
        pack = ["cpio", "--quiet", "-0", "-o", "-H", "newc"]
        subprocess.run(pack, input=names, stdout=file, cwd=tree, check=True)
    shutil.rmtree(tree)


def _strip_disk(source: Path, target: Path, work: Path) -> None:
    raw = work / "disk.raw"
    convert = ["qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(source), str(raw)]
    subprocess.run(convert, check=True)
    commands = work / "commands"
    commands.write_text("".join(f"rm {path}\n" for path in _drivers_on(raw)))
    subprocess.run(
        ["debugfs", "-w", "-f", str(commands), str(raw)], check=True, capture_output=True
    )
    assert _drivers_on(raw) == []
    back = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", str(raw), str(target)]
    subprocess.run(back, check=True)
    raw.unlink()


def _drivers_on(raw: Path) -> list[str]:
    """Return the modules of virtio and Xen on a disk, as its modules.dep files list them."""
    found = []
    for release in _listed(raw, "/usr/lib/modules"):
        folder = f"/usr/lib/modules/{release}"
        for kind in ("drivers/virtio", "drivers/block", "drivers/net", "drivers/char/hw_random"):
            names = _listed(raw, f"{folder}/kernel/{kind}")
            found += [f"{folder}/kernel/{kind}/{name}" for name in names if name.startswith(_GONE)]
    return found


def _listed(raw: Path, folder: str) -> list[str]:
    # -p: /inode/mode/uid/gid/name/size/
    done = subprocess.run(
        ["debugfs", "-R", f"ls -p {folder}", str(raw)], check=True, capture_output=True, text=True
    )
    rows = [line.split("/") for line in done.stdout.splitlines() if line.startswith("/")]
    return [row[5] for row in rows if len(row) > 5 and row[5] not in (".", "..")]


def share(source: Path, target: Path) -> None:
    """Have the image folder ``source`` in another library, without copying its files."""
    target.mkdir(mode=0o755)
    target.chmod(0o755)
    for path in source.iterdir():
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copyfile(path, target / path.name)
