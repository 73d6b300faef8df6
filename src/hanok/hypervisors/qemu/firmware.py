"""UEFI firmware of this host, found as QEMU's own description files tell.

Source: QEMU, docs/interop/firmware.json. The files of /etc count before those of the same name in
/usr/share, and names are an order of preference.
"""

from __future__ import annotations

import fnmatch
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from hanok.errors import HostError
from hanok.hypervisors.qemu.arch import Architecture

FOLDERS = (Path("/etc/qemu/firmware"), Path("/usr/share/qemu/firmware"))
_log = logging.getLogger(__name__)
_LARGEST = 64 * 1024


class _File(BaseModel):
    filename: Path
    format: str = "raw"


class _Mapping(BaseModel):
    device: str
    executable: _File | None = None
    template: _File | None = Field(default=None, alias="nvram-template")


class _Target(BaseModel):
    architecture: str
    machines: list[str]


class _Description(BaseModel):
    interfaces: list[str] = Field(alias="interface-types")
    mapping: _Mapping
    targets: list[_Target]
    features: frozenset[str]


@dataclass(frozen=True)
class UefiFiles:
    """Firmware in flash: its program and the variables that a new machine begins with.

    ``smm``: it wants System Management Mode, which keeps its variables from the guest.
    """

    code: Path
    template: Path
    smm: bool = False


_SECURE = {"secure-boot", "enrolled-keys"}


def find_uefi(
    architecture: Architecture,
    machine_type: str,
    folders: Sequence[Path] = FOLDERS,
    *,
    secure: bool = False,
) -> UefiFiles:
    """Return the firmware for a machine; ``secure``: with Secure Boot on, by the usual keys.

    Raises HostError when this host has none.
    """
    for found in _descriptions(folders):
        files = _files_of(found, architecture, machine_type)
        fits = found.features >= _SECURE if secure else "secure-boot" not in found.features
        if files is not None and fits and (secure or not files.smm):
            return files
    what = "UEFI firmware with Secure Boot and its keys" if secure else "UEFI firmware"
    raise HostError(
        f"this host has no {what} for {machine_type}",
        hint="apt-get install ovmf, or boot by --firmware bios",
    )


def _descriptions(folders: Sequence[Path]) -> Iterator[_Description]:
    paths: dict[str, Path] = {}
    for folder in folders:
        for path in folder.glob("*.json") if folder.is_dir() else ():
            paths.setdefault(path.name, path)
    for name in sorted(paths):
        try:
            with paths[name].open("rb") as file:
                data: Any = json.loads(file.read(_LARGEST) or b"null")  # empty: it masks another
                if data is not None:
                    yield _Description.model_validate(data)
        except (OSError, ValueError, ValidationError) as error:
            # Of firmware that is not in flash, or of a newer QEMU: not for us.
            _log.debug("%s: %s", paths[name], error)


def _files_of(
    found: _Description, architecture: Architecture, machine_type: str
) -> UefiFiles | None:
    mapping = found.mapping
    if "uefi" not in found.interfaces or mapping.device != "flash":
        return None
    code, template = mapping.executable, mapping.template
    if code is None or template is None or (code.format, template.format) != ("raw", "raw"):
        return None
    fits = any(
        target.architecture == architecture.name
        and any(fnmatch.fnmatchcase(machine_type, pattern) for pattern in target.machines)
        for target in found.targets
    )
    if not fits or not code.filename.is_file() or not template.filename.is_file():
        return None
    return UefiFiles(code.filename, template.filename, "requires-smm" in found.features)
