"""What an OVF descriptor says of an appliance: CPUs, memory, disks, network cards. Pure.

Source: DMTF DSP0243, Open Virtualization Format 1.1 and 2.1; VMware and VirtualBox add elements of
their own, of which only the firmware is looked at. Elements are found by their local names: the
namespaces differ between versions, the names do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from hanok.errors import InvalidInput
from hanok.images.foreign.formats import check_size
from hanok.model.vm import Firmware
from hanok.units import GIB, KIB, MIB, TIB

LARGEST = 4 * MIB
MOST_DISKS = 4
_MOST_NICS = 8
_MOST_CPUS = 256
_LARGEST_MEMORY = 4096 * GIB
_CPU, _MEMORY, _NIC, _DISK = "3", "4", "10", "17"
_POWER = re.compile(r"(?:byte)?\s*\*?\s*(\d+)\s*\^\s*(\d+)", re.I)
_UNITS = {
    **dict.fromkeys(("", "byte", "bytes"), 1),
    **dict.fromkeys(("kilobytes", "kb"), KIB),
    **dict.fromkeys(("megabytes", "mb"), MIB),
    **dict.fromkeys(("gigabytes", "gb"), GIB),
    **dict.fromkeys(("terabytes", "tb"), TIB),
}


@dataclass(frozen=True)
class ApplianceDisk:
    """A disk: the name of its file, None for an empty one; ``size`` is its capacity in bytes."""

    file: str | None
    size: int


@dataclass(frozen=True)
class Appliance:
    """A virtual machine as a descriptor tells of it; what it does not say is None.

    ``memory`` in bytes; ``disks`` in the order of their places, the first boots; ``nics`` are the
    names of the networks that its cards were on.
    """

    name: str | None
    os: str | None
    cpus: int | None
    memory: int | None
    disks: tuple[ApplianceDisk, ...]
    nics: tuple[str, ...]
    firmware: Firmware | None = None


def read_ovf(text: bytes) -> Appliance:
    """Return what the descriptor ``text`` says. Raises InvalidInput."""
    if len(text) > LARGEST:
        raise _bad("it is larger than 4 MiB")
    try:
        root = fromstring(text, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, LookupError) as error:
        raise _bad(f"it is not XML that can be trusted ({type(error).__name__})") from None
    systems = [one for one in root.iter() if _local(one.tag) == "VirtualSystem"]
    if _local(root.tag) != "Envelope" or len(systems) != 1:
        raise _bad(f"it describes {len(systems)} machines, not one")
    return _read_system(root, systems[0])


def _read_system(root: Element, system: Element) -> Appliance:
    items = list(_items(system, _configuration(root)))
    nics = [item for item in items if item.get("ResourceType") == _NIC]
    return Appliance(
        name=_text(system, "Name") or _attribute(system, "id"),
        os=_operating_system(system),
        cpus=_quantity(items, _CPU, 1, _MOST_CPUS),
        memory=_quantity(items, _MEMORY, MIB, _LARGEST_MEMORY),
        disks=_disks(root, items),
        nics=tuple(item.get("Connection", "")[:80] for item in nics[:_MOST_NICS]),
        firmware=_firmware(system),
    )


def _bad(why: str) -> InvalidInput:
    return InvalidInput(
        f"the descriptor of the appliance cannot be taken: {why}",
        field="file",
        expected="an OVF descriptor of one virtual machine",
    )


def _local(tag: object) -> str:
    return str(tag).rpartition("}")[2]


def _attribute(element: Element, name: str) -> str | None:
    return next((value for key, value in element.attrib.items() if _local(key) == name), None)


def _children(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element if _local(child.tag) == name)


def _all(element: Element, name: str) -> Iterator[Element]:
    return (child for child in element.iter() if _local(child.tag) == name)


def _text(element: Element, name: str) -> str | None:
    return next((child.text or "" for child in _children(element, name)), "").strip()[:200] or None


def _configuration(root: Element) -> str | None:
    """Return the deployment option that counts: the default one, else the first."""
    found = list(_all(root, "Configuration"))
    for one in found:
        if _attribute(one, "default") in ("true", "1"):
            return _attribute(one, "id")
    return _attribute(found[0], "id") if found else None


def _items(system: Element, configuration: str | None) -> Iterator[dict[str, str]]:
    """Yield the virtual hardware, each piece as its fields."""
    for section in _children(system, "VirtualHardwareSection"):
        for item in section:
            if _local(item.tag) not in ("Item", "StorageItem", "EthernetPortItem"):
                continue
            wanted = (_attribute(item, "configuration") or "").split()
            if wanted and configuration not in wanted:
                continue
            yield {_local(child.tag): (child.text or "").strip() for child in item}


def _operating_system(system: Element) -> str | None:
    for section in _children(system, "OperatingSystemSection"):
        if found := _text(section, "Description"):
            return found[:100]
    return None


def _number(text: str, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text, re.A):
        raise _bad(f"{text[:40]!r} is no {what}")
    return int(text)


def _unit(text: str) -> int:
    """Return the bytes of an allocation unit: ``byte * 2^20``, or an older ``MegaBytes``."""
    if match := _POWER.fullmatch(text.strip()):
        base, exponent = int(match[1]), int(match[2])
        if base in (2, 10) and exponent <= 50:
            return int(base**exponent)
    factor = _UNITS.get(text.strip().lower())
    if factor is None:
        raise _bad(f"{text[:40]!r} is no unit of memory")
    return factor


def _quantity(items: list[dict[str, str]], kind: str, unit: int, most: int) -> int | None:
    found = [item for item in items if item.get("ResourceType") == kind]
    if not found or not found[0].get("VirtualQuantity"):
        return None
    amount = _number(found[0]["VirtualQuantity"], "quantity")
    if kind == _MEMORY:
        told = found[0].get("AllocationUnits", "")
        amount *= _unit(told) if told else unit
    if not 0 < amount <= most:
        raise _bad("it asks for more CPUs or memory than a machine can have, or for none")
    return amount


def _disks(root: Element, items: list[dict[str, str]]) -> tuple[ApplianceDisk, ...]:
    files = {str(_attribute(file, "id")): file for file in _all(root, "File")}
    known: dict[str, ApplianceDisk] = {}
    for section in _children(root, "DiskSection"):
        for disk in _children(section, "Disk"):
            known[str(_attribute(disk, "diskId"))] = _disk(disk, files)
    placed = [
        item["HostResource"].rpartition("/")[2]
        for item in items
        if item.get("ResourceType") == _DISK and item.get("HostResource")
    ]
    for name in placed:
        if name not in known:
            raise _bad(f"it places a disk {name[:40]!r} that it does not describe")
    found = tuple(known[name] for name in dict.fromkeys(placed or known))
    if not 0 < len(found) <= MOST_DISKS or found[0].file is None:
        raise _bad(f"it has {len(found)} disks; 1 to {MOST_DISKS} can be, and the first has a file")
    return found


def _disk(disk: Element, files: dict[str, Element]) -> ApplianceDisk:
    if _attribute(disk, "parentRef"):
        raise _bad("a disk of it stands on another one")
    unit = _attribute(disk, "capacityAllocationUnits")
    capacity = _number(_attribute(disk, "capacity") or "", "capacity") * (
        _unit(unit) if unit else 1
    )
    check_size(capacity)
    reference = _attribute(disk, "fileRef")
    if not reference:
        return ApplianceDisk(None, capacity)
    file = files.get(reference)
    if file is None:
        raise _bad(f"a disk of it is in a file {reference[:40]!r} that it does not list")
    if _attribute(file, "compression") not in (None, "identity") or _attribute(file, "chunkSize"):
        raise _bad("a file of it is compressed or in pieces")
    return ApplianceDisk(plain_name(_attribute(file, "href") or ""), capacity)


def plain_name(name: str) -> str:
    """Return ``name`` when it can only be that of a file beside the descriptor.

    Raises InvalidInput.
    """
    if not name or name.startswith(".") or re.search(r"[/\\:\0]", name) or len(name) > 255:
        raise _bad(f"the file {name[:60]!r} is not beside it")
    return name


def _firmware(system: Element) -> Firmware | None:
    """Return what boots it, where VMware or VirtualBox has said so."""
    for config in _all(system, "Config"):
        if _attribute(config, "key") == "firmware":
            efi = _attribute(config, "value") == "efi"
            return Firmware.UEFI if efi else Firmware.BIOS
    for firmware in _all(system, "Firmware"):
        kind = _attribute(firmware, "type") or ""
        return Firmware.UEFI if kind.upper().startswith("EFI") else Firmware.BIOS
    return None
