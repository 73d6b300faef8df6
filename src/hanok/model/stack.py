"""Stack files: several VMs that belong together, in one file.

    name: shop
    networks: [backstage]            # or a mapping: name -> {subnet, outward}
    vms:
      db:  {image: "debian:13", memory: 512M}
      web: {image: "debian:12", publish: ["8080:80"], depends_on: [db], ready: 80}

A stack that names no network gets one with its own name, so that stacks are apart.
"""

from __future__ import annotations

import graphlib
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import Field, field_validator

from hanok.errors import InvalidInput
from hanok.model.base import Frozen, Name
from hanok.model.network import NetworkSpec
from hanok.model.validation import did_you_mean, shown, validated
from hanok.model.vm import Publish, VmSpec

_ANY_ADDRESS = "0.0.0.0"  # noqa: S104  compared with, never bound
_READY = (
    "a port, tcp:PORT, console:TEXT, a URL that starts with http://, or a mapping with port, url,"
    " command or console"
)
_QUOTED_PORTS = 'quoted text, such as "2222:22" (YAML reads some of them as numbers without quotes)'


class StackNetwork(NetworkSpec):
    """A network of a stack; its name is the key in the file."""

    name: Name = Field(exclude=True)


class StackVm(VmSpec):
    """A VM of a stack: a VmSpec whose name is the key in the file, with the stack's own fields."""

    name: Name = Field(exclude=True)
    networks: tuple[Name, ...] = Field(
        default=(), max_length=8, description="none: the stack's only network"
    )
    depends_on: tuple[Name, ...] = Field(
        default=(), max_length=64, description="VMs that are ready before this one starts"
    )
    replicas: int = Field(default=1, ge=1, le=100, description="VMs like this: name-1 to name-N")

    @field_validator("ready", mode="before")
    @classmethod
    def _short_ready(cls, value: object) -> object:
        """Accept a port number and texts beside the mapping."""
        if isinstance(value, int) and not isinstance(value, bool):
            return {"port": value}
        if isinstance(value, str) and not value.startswith(("http://", "tcp:", "console:")):
            raise ValueError(f"{shown(value)} is no readiness check; expected {_READY}")
        return value

    @field_validator("publish", mode="before")
    @classmethod
    def _quoted_publish(cls, value: object) -> object:
        """Tell of the trap that YAML reads 2222:22 as the number 133342, in base 60."""
        if isinstance(value, list) and any(isinstance(entry, int) for entry in value):
            raise ValueError(f"a number is no published port; expected {_QUOTED_PORTS}")
        return value

    def names(self) -> tuple[str, ...]:
        """Return the names of the VMs that this entry stands for."""
        if self.replicas == 1:
            return (self.name,)
        return tuple(f"{self.name}-{number}" for number in range(1, self.replicas + 1))


class StackMachine(Frozen):
    """One VM to be made: its definition, and the VMs that must be ready before it starts.

    ``like`` is the first of the replicas, of which the others are clones.
    """

    spec: VmSpec
    like: Name | None = None
    depends_on: tuple[Name, ...] = ()


class Stack(Frozen):
    """A stack file. Build it with parse_stack, which also checks what spans several VMs."""

    name: Name
    networks: dict[str, StackNetwork] = Field(default_factory=dict, max_length=16)
    vms: dict[str, StackVm] = Field(min_length=1, max_length=100)

    @field_validator("networks", mode="before")
    @classmethod
    def _name_networks(cls, value: object) -> object:
        """Accept a list of names; the key of a mapping is the name."""
        if isinstance(value, list) and all(isinstance(entry, str) for entry in value):
            return {entry: {"name": entry} for entry in value}
        if isinstance(value, Mapping):
            value = {key: {} if body is None else body for key, body in value.items()}
        return _with_names(value)

    @field_validator("vms", mode="before")
    @classmethod
    def _name_vms(cls, value: object) -> object:
        """The key of the mapping is the name."""
        return _with_names(value)

    def network_specs(self) -> tuple[NetworkSpec, ...]:
        """Return the networks to make: those of the file, else one named like the stack."""
        if not self.networks:
            return (NetworkSpec(name=self.name),)
        return tuple(
            NetworkSpec(name=network.name, subnet=network.subnet, outward=network.outward)
            for network in self.networks.values()
        )

    def machines(self) -> tuple[StackMachine, ...]:
        """Return every VM to be made, each after those that it depends on.

        Raises InvalidInput, as parse_stack does, when they contradict each other.
        """
        return tuple(machine for level in self.levels() for machine in level)

    def levels(self) -> tuple[tuple[StackMachine, ...], ...]:
        """Return the VMs in levels: those of one level depend on earlier levels only.

        Raises InvalidInput for an unknown or circular dependency, an unknown network, a name or a
        published port that two VMs share, and published ports of replicas.
        """
        _check_names(self)
        _check_publish(self)
        made = {name: self._machines_of(vm) for name, vm in self.vms.items()}
        return tuple(
            tuple(machine for name in names for machine in made[name]) for names in _order(self.vms)
        )

    def _machines_of(self, vm: StackVm) -> tuple[StackMachine, ...]:
        after = tuple(
            dict.fromkeys(one for name in vm.depends_on for one in self.vms[name].names())
            if _known_dependencies(vm, self.vms)
            else ()
        )
        # Only what was said: an image may have something to say about the rest.
        said = vm.model_fields_set & set(VmSpec.model_fields) - {"name"}
        fields: dict[str, Any] = {name: getattr(vm, name) for name in said}
        fields["networks"] = self._networks_of(vm)
        return tuple(
            StackMachine(
                spec=validated(VmSpec, {**fields, "name": name}, f"vms.{vm.name}"),
                depends_on=after,
                like=vm.names()[0] if name != vm.names()[0] and not vm.cold else None,
            )
            for name in vm.names()
        )

    def _networks_of(self, vm: StackVm) -> tuple[str, ...]:
        known = tuple(spec.name for spec in self.network_specs())
        for place, name in enumerate(vm.networks):
            if name not in known:
                raise InvalidInput(
                    f"the network {name!r} is not in this stack",
                    field=f"vms.{vm.name}.networks.{place}",
                    expected=f"one of {', '.join(known)}",
                    hint=did_you_mean(name, known) or f"add it to the stack's networks: [{name}]",
                )
        if vm.networks:
            return vm.networks
        if len(known) > 1:
            raise InvalidInput(
                f"{vm.name} names no network, and the stack has {len(known)}",
                field=f"vms.{vm.name}.networks",
                expected=f"a list with some of {', '.join(known)}",
            )
        return known


def parse_stack(data: object) -> Stack:
    """Return the stack that ``data``, a stack file's content, describes.

    Raises InvalidInput that names the field and what was expected; see Stack.levels.
    """
    stack = validated(Stack, data)
    stack.levels()
    return stack


def _with_names(value: object) -> object:
    """Give each entry of a mapping its key as its name."""
    if not isinstance(value, Mapping):
        return value
    for key, body in value.items():
        if isinstance(body, Mapping) and body.get("name", key) != key:
            raise ValueError(f"{shown(key)} has another name inside; expected its key alone")
    return {
        key: {**body, "name": key} if isinstance(body, Mapping) else body
        for key, body in value.items()
    }


def _known_dependencies(vm: StackVm, vms: Mapping[str, StackVm]) -> bool:
    """Return whether ``vm`` depends on others; raises InvalidInput for an unknown one."""
    for place, name in enumerate(vm.depends_on):
        if name not in vms:
            raise InvalidInput(
                f"{vm.name} depends on {name!r}, which is not in this stack",
                field=f"vms.{vm.name}.depends_on.{place}",
                expected=f"one of {', '.join(other for other in vms if other != vm.name)}",
                hint=did_you_mean(name, (other for other in vms if other != vm.name)),
            )
    return bool(vm.depends_on)


def _order(vms: Mapping[str, StackVm]) -> Iterable[tuple[str, ...]]:
    """Yield the names of ``vms`` in levels, each in the file's order."""
    sorter = graphlib.TopologicalSorter({name: vm.depends_on for name, vm in vms.items()})
    try:
        sorter.prepare()
    except graphlib.CycleError as error:
        # graphlib names each before the one that needs it; people read "a needs b".
        cycle: list[str] = list(reversed(error.args[1]))
        raise InvalidInput(
            f"the VMs depend on each other in a circle: {' → '.join(cycle)}",
            field=f"vms.{cycle[0]}.depends_on",
            expected="dependencies without a circle",
            hint="remove one of these dependencies",
        ) from None
    place = {name: number for number, name in enumerate(vms)}
    while sorter.is_active():
        ready = tuple(sorted(sorter.get_ready(), key=place.__getitem__))
        yield ready
        sorter.done(*ready)


def _check_names(stack: Stack) -> None:
    owner: dict[str, str] = {}
    for vm in stack.vms.values():
        for name in vm.names():
            if owner.setdefault(name, vm.name) != vm.name:
                raise InvalidInput(
                    f"{name!r} would be a VM of {owner[name]} and of {vm.name}",
                    field=f"vms.{vm.name}",
                    expected="names that the replicas of others do not take",
                )


def _check_publish(stack: Stack) -> None:
    taken: dict[int, list[tuple[str, str]]] = {}
    for vm in stack.vms.values():
        if vm.publish and vm.replicas > 1:
            raise InvalidInput(
                f"{vm.name} has {vm.replicas} replicas, which cannot share a published port",
                field=f"vms.{vm.name}.publish",
                expected="no published ports with replicas above 1",
            )
        for place, port in enumerate(vm.publish):
            _check_port(
                port, taken.setdefault(port.host_port, []), f"vms.{vm.name}.publish.{place}"
            )
            taken[port.host_port].append((port.address, vm.name))


def _check_port(port: Publish, taken: Iterable[tuple[str, str]], field: str) -> None:
    for address, name in taken:
        if address == port.address or _ANY_ADDRESS in (address, port.address):
            raise InvalidInput(
                f"port {port.host_port} of the host is published by {name} already",
                field=field,
                expected="another host port",
            )
