"""Records of new VMs: checked, admitted, with names, uids and addresses of their own."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from hanok.errors import Conflict, InvalidInput
from hanok.model.template import TemplateRecord
from hanok.model.vm import Clone, CloneKind, NicRecord, VmRecord, VmSpec, Wanted
from hanok.network.base import free_addresses, make_mac
from hanok.services.capacity import CapacityService
from hanok.services.networks import NetworkService
from hanok.services.parts import Parts, new_uuid
from hanok.services.shape import claimed_nics
from hanok.services.suiting import check_offered

_EVERYWHERE = "0.0.0.0"  # noqa: S104  compared with, never bound
_UIDS = 50_000


class Drafts:
    """Drafts VMs. The caller holds the admission lock until the records are durable."""

    def __init__(self, parts: Parts, capacity: CapacityService, networks: NetworkService) -> None:
        self._parts = parts
        self._capacity = capacity
        self._networks = networks

    async def draft(
        self,
        specs: Sequence[VmSpec],
        *,
        template: TemplateRecord | None = None,
        kind: CloneKind = CloneKind.INSTANT,
        stack: str | None = None,
        internal: bool = False,
    ) -> list[VmRecord]:
        """Return records of new VMs, all admitted together, not yet kept.

        With ``template`` they are clones of it, of ``kind``. Makes nothing but the network named
        default. Raises InvalidInput, NotFound, Conflict or NotAdmitted.
        """
        modes = [self._parts.hypervisor.choose_mode(spec.mode) for spec in specs]
        for spec in specs:
            check_offered(spec, self._parts.hypervisor)
        everyone = await self._parts.store.vms()
        _check_names(specs, everyone)
        for spec in specs:
            check_publish(spec, everyone)
        shares = template.id if template and kind is CloneKind.INSTANT else None
        await self._capacity.admit_many(specs, everyone, shares)
        uuids = [new_uuid() for _ in specs]
        nics = await self._nics(specs, uuids, everyone)
        uids = self._free_uids(everyone)
        return [
            VmRecord(
                uuid=uuid,
                spec=spec,
                wanted=Wanted.RUNNING,
                created=time.time(),
                uid=next(uids),
                mode=mode,
                hypervisor=self._parts.hypervisor.name,
                nics=cards,
                stack=stack,
                internal=internal,
                **_of_template(template, kind),
            )
            for spec, mode, uuid, cards in zip(specs, modes, uuids, nics, strict=True)
        ]

    def _free_uids(self, everyone: list[VmRecord]) -> Iterator[int]:
        taken = {vm.uid for vm in everyone}
        base = self._parts.settings.uid_base
        return (uid for uid in range(base, base + _UIDS) if uid not in taken)

    async def _nics(
        self, specs: Sequence[VmSpec], uuids: Sequence[str], everyone: list[VmRecord]
    ) -> list[tuple[NicRecord, ...]]:
        free: dict[str, Iterator[str]] = {}
        for name in dict.fromkeys(name for spec in specs for name in spec.networks):
            network = await self._networks.find_or_default(name)
            taken = [
                nic.address for vm in everyone for nic in claimed_nics(vm) if nic.network == name
            ]
            wanted = sum(name in spec.networks for spec in specs)
            free[name] = iter(free_addresses(network.subnet, taken, wanted))
        return [
            tuple(
                NicRecord(network=name, mac=make_mac(uuid, index), address=next(free[name]))
                for index, name in enumerate(spec.networks)
            )
            for spec, uuid in zip(specs, uuids, strict=True)
        ]


def _of_template(template: TemplateRecord | None, kind: CloneKind) -> dict[str, Any]:
    """Return what a clone's record has of its template."""
    if template is None:
        return {}
    return {
        "image_id": template.image_id,
        "machine_type": template.machine_type,
        "clone": Clone(template=template.id, kind=kind),
        # Only one that goes on from memory is the same machine to its cloud-init.
        "instance_id": template.instance_id if kind is CloneKind.INSTANT else None,
    }


def _check_names(specs: Sequence[VmSpec], everyone: list[VmRecord]) -> None:
    existing = {vm.spec.name for vm in everyone}
    taken = [spec.name for spec in specs if spec.name in existing]
    if taken:
        raise Conflict(
            f"a VM named {taken[0]} exists already"
            + (f", and {len(taken) - 1} more of these names" if len(taken) > 1 else ""),
            field="name",
            hint=f"choose another name, or 'hanok delete {taken[0]}' first",
        )


def check_publish(spec: VmSpec, everyone: list[VmRecord]) -> None:
    """Raise Conflict when a host port of ``spec`` is published by another VM."""
    for port in spec.publish:
        for vm in everyone:
            for other in vm.spec.publish:
                same = port.address == other.address or _EVERYWHERE in (
                    port.address,
                    other.address,
                )
                if port.host_port == other.host_port and same:
                    raise Conflict(
                        f"port {port.host_port} is published by {vm.spec.name} already",
                        field="publish",
                        hint="choose another host port",
                    )


def check_duplicates(spec: VmSpec) -> None:
    """Raise InvalidInput when a definition names a network or a host port twice."""
    if len(set(spec.networks)) != len(spec.networks):
        raise InvalidInput(
            "a network is named twice", field="networks", expected="each network once"
        )
    published = [(port.address, port.host_port) for port in spec.publish]
    if len(set(published)) != len(published):
        raise InvalidInput(
            "a host port is published twice", field="publish", expected="each host port once"
        )
    if spec.publish and not spec.networks:
        raise InvalidInput(
            "ports are published, but the VM is on no network",
            field="publish",
            expected="a VM with a network",
        )
