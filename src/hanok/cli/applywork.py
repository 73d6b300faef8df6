"""What ``hanok apply`` does: which VMs are wanted, whether hosts can take them, and making them.

A VM is noted before it is asked for, once its daemon has answered, and once it is ready, so that
whatever ends the command, the next run neither makes a VM twice nor leaves one out.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hanok.cli.applystate import State, Wanted
from hanok.cli.base import Session
from hanok.cli.output import Output
from hanok.client.wire import FINAL_STATES, FitWire, OperationWire
from hanok.errors import Conflict, HanokError, InvalidInput, NotAdmitted, NotFound, NotReady
from hanok.units import MIB, format_size

if TYPE_CHECKING:
    from hanok.model.apply import Applied, ApplyMap
    from hanok.model.plan import PlanFile
    from hanok.model.views import VmView

_NAMED = 10


@dataclass(frozen=True)
class Found:
    """A VM that a host has: what tells whether it is the one that a plan wants. ``memory``: bytes.

    ``reason`` says why it is in its state, where that was told.
    """

    uuid: str
    state: str
    cpus: int
    memory: int
    image: str
    reason: str | None = None

    def is_like(self, wanted: Wanted) -> bool:
        """Return whether it has the size and the image that ``wanted`` asks for."""
        ours = (wanted.vcpus, wanted.memory, wanted.image)
        return (self.cpus, self.memory, self.image) == ours


class Maker(Protocol):
    """Makes VMs on one host. Every method raises HanokError."""

    def look(self) -> dict[str, Found]:
        """Return the VMs of the host by name; it is reached for that."""
        ...

    def fit(self, wanted: Wanted) -> FitWire:
        """Return how many VMs like ``wanted`` the host takes."""
        ...

    def find(self, name: str) -> Found | None:
        """Return the VM ``name``, or None when there is none."""
        ...

    def ask(self, wanted: Wanted) -> OperationWire:
        """Ask for the VM; once this is answered the daemon makes it, whatever becomes of us."""
        ...

    def wait(self, operation: OperationWire) -> None:
        """Wait until what was asked for is done."""
        ...

    def go_on(self, name: str) -> None:
        """Wait for what a daemon still does to a VM that is there; start it if it is down."""
        ...


class DaemonMaker:
    """Makes VMs by the daemon of one host, here or remote."""

    def __init__(self, out: Output, remote: str) -> None:
        self._session = Session()
        self._session.out = out
        self._session.remote_name = remote

    def look(self) -> dict[str, Found]:
        """See Maker.look."""
        return {vm["name"]: _found(vm) for vm in self._session.client.vms()}

    def fit(self, wanted: Wanted) -> FitWire:
        """See Maker.fit."""
        shape: dict[str, object] = {"cpus": wanted.vcpus, "memory": wanted.memory}
        if wanted.disk is not None:
            shape["disk"] = wanted.disk
        return self._session.client.fit(shape)

    def find(self, name: str) -> Found | None:
        """See Maker.find."""
        try:
            return _found(self._session.client.vm(name))
        except NotFound:
            return None

    def ask(self, wanted: Wanted) -> OperationWire:
        """See Maker.ask."""
        spec: dict[str, object] = {
            "name": wanted.name,
            "image": wanted.image,
            "cpus": wanted.vcpus,
            "memory": wanted.memory,
            "packages": list(wanted.packages),
        }
        if wanted.disk is not None:
            spec["disk"] = wanted.disk
        return self._session.client.run(spec)

    def wait(self, operation: OperationWire) -> None:
        """See Maker.wait."""
        from hanok.cli.progress import follow

        follow(self._session, operation)

    def go_on(self, name: str) -> None:
        """See Maker.go_on."""
        client = self._session.client
        for operation in client.operations():
            if operation["target"] == name and operation["state"] not in FINAL_STATES:
                self.wait(operation)
        there = self.find(name)
        if there is not None and there.state in ("stopped", "failed"):
            self.wait(client.change(name, "start"))


def _found(vm: VmView) -> Found:
    return Found(vm["uuid"], vm["state"], vm["cpus"], vm["memory"], vm["image"], vm["reason"])


# Which VMs are wanted


def pairs(words: Sequence[str], option: str) -> dict[str, str]:
    """Return ``NAME=VALUE`` words as a mapping. Raises InvalidInput."""
    found = {}
    for word in words:
        name, separator, value = word.partition("=")
        if not separator or not name or not value:
            raise InvalidInput(f"{word!r} is no pair", field=option, expected="NAME=VALUE")
        found[name] = value
    return found


def wanted_vms(plan: PlanFile, how: ApplyMap, only: Sequence[str] = ()) -> list[Wanted]:
    """Return the VMs to make, host by host as the plan has them, in its order on each.

    Raises InvalidInput for hosts and VMs that the plan does not have, and without an image.
    """
    order = {host.name: number for number, host in enumerate(plan.used)}
    check_names(plan, hosts=how.hosts, vms=how.vms)
    _refuse_unknown("host", "--only", only, order)
    found = []
    for vm in sorted(plan.vms, key=lambda one: order[one.host]):
        if only and vm.host not in only:
            continue
        own = how.vms.get(vm.name)
        image = (own and own.image) or how.image
        if image is None:
            raise InvalidInput(
                f"nothing says what {vm.name} is made of",
                field="--image",
                expected="an image for all VMs, or --image-of for each",
            )
        packages = how.packages if own is None or own.packages is None else own.packages
        found.append(
            Wanted(
                vm.name,
                vm_name(vm.name),
                vm.host,
                how.hosts.get(vm.host, vm.host),
                image,
                vm.vcpus,
                vm.memory,
                packages,
                (own and own.disk) or how.disk or _whole(vm.disk),
            )
        )
    _refuse_same(found)
    return found


def _whole(disk: int | None) -> int | None:
    """Return what a server's disks hold as the size of a VM's disk: whole MiB."""
    return None if not disk else -(-disk // MIB) * MIB


def disk_note(wanted: Sequence[Wanted]) -> str | None:
    """Return what a person should know of VMs whose disks nobody gave a size."""
    names = [one.name for one in wanted if one.disk is None]
    if not names:
        return None
    return (
        f"neither plan nor map says how large a disk {_some(names)} "
        f"{'has' if len(names) == 1 else 'have'}: each gets its host's default, 4 GiB"
    )


def check_names(
    plan: PlanFile,
    *,
    hosts: Iterable[str],
    vms: Iterable[str],
    fields: tuple[str, str] = ("hosts", "vms"),
) -> None:
    """Raise InvalidInput, naming the one of ``fields``, for what the plan does not have."""
    _refuse_unknown("host", fields[0], hosts, {host.name for host in plan.used})
    _refuse_unknown("VM", fields[1], vms, {vm.name for vm in plan.vms})


def _refuse_unknown(what: str, field: str, names: Iterable[str], known: Iterable[str]) -> None:
    from hanok.model.validation import did_you_mean

    have = sorted(known)
    for name in names:
        if name not in have:
            raise InvalidInput(
                f"the plan has no {what} {name!r}",
                field=field if field.startswith("-") else f"{field}.{name}",
                expected=f"one of {_some(have)}",
                hint=did_you_mean(name, have),
            )


def vm_name(server: str) -> str:
    """Return the name of the VM of ``server``: lower case, with '-' for what no name may have."""
    name = re.sub(r"[^a-z0-9]+", "-", server.lower()).strip("-")[:63].strip("-")
    return name if name[:1].isalpha() else f"vm-{name}"[:63].strip("-")


def _refuse_same(wanted: Sequence[Wanted]) -> None:
    seen: dict[tuple[str, str], str] = {}
    for one in wanted:
        other = seen.setdefault((one.remote, one.name), one.plan_name)
        if other != one.plan_name:
            raise InvalidInput(
                f"{other} and {one.plan_name} would both be called {one.name} on {one.remote}",
                field="vms",
                expected="names that differ in more than case and punctuation",
            )


# Before the first one


def check_all(wanted: Sequence[Wanted], state: State, makers: Mapping[str, Maker]) -> list[str]:
    """Ask every host before anything is made; return what a person should know.

    Raises HanokError when one is not reached, Conflict for VMs in the way, NotAdmitted when the
    VMs that are to be made do not fit.
    """
    _refuse_moved(wanted, state)
    there = _reach(wanted, makers)
    notes = []
    missing: dict[str, list[Wanted]] = {}
    for one in wanted:
        found = there[one.remote].get(one.name)
        if state.is_done(one):
            if found is None:
                notes.append(f"{one.name} on {one.remote} was made and is gone: it is left so")
        elif found is not None:
            refuse_stranger(one, state.vms.get(one.plan_name), found)
        else:
            missing.setdefault(one.remote, []).append(one)
    for remote, several in missing.items():
        _check_room(remote, several, makers[remote])
    return notes


def _refuse_moved(wanted: Sequence[Wanted], state: State) -> None:
    """Refuse another remote for a host whose VMs are begun: they would be made a second time."""
    for one in wanted:
        noted = state.vms.get(one.plan_name)
        if noted is not None and noted.remote != one.remote:
            raise Conflict(
                f"{one.name} was begun on {noted.remote}, and {one.host} is to be {one.remote} now",
                field="--host",
                expected=f"{one.host}={noted.remote}",
                hint="delete its VM there and move apply.json away to begin anew",
            )


def _reach(wanted: Sequence[Wanted], makers: Mapping[str, Maker]) -> dict[str, dict[str, Found]]:
    """Return what VMs each host has. Raises HanokError that names every host without an answer."""
    there: dict[str, dict[str, Found]] = {}
    errors: dict[str, HanokError] = {}
    for remote in dict.fromkeys(one.remote for one in wanted):
        try:
            there[remote] = makers[remote].look()
        except HanokError as error:
            errors[remote] = error
    if errors:
        first = next(iter(errors.values()))
        hosts = {one.remote: one.host for one in wanted}
        told = "; ".join(f"{hosts[remote]}: {error.message}" for remote, error in errors.items())
        raise type(first)(
            f"nothing was made, since not every host can be used: {told}",
            field=first.field,
            expected=first.expected,
            hint=first.hint or "--host HOST=REMOTE says where a host is, --only leaves others out",
        )
    return there


def refuse_stranger(wanted: Wanted, noted: Applied | None, there: Found) -> None:
    """Refuse a VM of that name that is not the one which this plan began. Raises Conflict.

    The mark is the uuid that apply.json has. Where a run ended before it could note that, nobody
    had that name a moment before, and size and image must be those that were asked for.
    """
    where = f"{wanted.name} on {wanted.remote}"
    is_ours = noted is not None and (
        there.is_like(wanted) if noted.uuid is None else there.uuid == noted.uuid
    )
    if not is_ours:
        raise Conflict(
            f"there is a VM {where} that this plan did not make",
            hint="rename or delete it, then run apply again",
        )
    if not there.is_like(wanted):
        raise Conflict(
            f"{where} was begun with {there.cpus} vCPUs, {format_size(there.memory)} and the image "
            f"{there.image}, which is not what is wanted now",
            hint=f"delete it: hanok --remote {wanted.remote} delete --force {wanted.name}",
        )


def _check_room(remote: str, wanted: Sequence[Wanted], maker: Maker) -> None:
    """Refuse what cannot fit. What passes may still be refused: others can take the room."""
    fits: FitWire | None = None
    for shape, count in Counter((one.vcpus, one.memory, one.disk) for one in wanted).items():
        one = next(each for each in wanted if (each.vcpus, each.memory, each.disk) == shape)
        fits = maker.fit(one)
        if fits["count"] < count:
            vms = f"{count} VM{'s' * (count != 1)} of {one.vcpus} vCPUs and"
            on_disk = f" with a disk of {format_size(one.disk)}" if one.disk is not None else ""
            raise _no_room(
                f"{one.host} ({remote}) has no room for {vms} {format_size(one.memory)}{on_disk}: "
                f"{fits['count']} fit, by {fits['limit']}"
            )
    rooms = {} if fits is None else {room["resource"]: room["free"] for room in fits["rooms"]}
    sums = {
        "cpus": sum(one.vcpus for one in wanted),
        "memory": sum(one.memory for one in wanted),
        "disk": sum(one.disk or 0 for one in wanted),
    }
    for resource, needed in sums.items():
        free = rooms.get(resource)
        if free is not None and needed > free:
            shown = (f"{needed} vCPUs", f"{free:.0f}")
            if resource != "cpus":
                shown = (format_size(needed), format_size(int(free)))
            of = " of disk" if resource == "disk" else ""
            what = f"{len(wanted)} VMs need {shown[0]}{of}, {shown[1]} are free"
            raise _no_room(f"{wanted[0].host} ({remote}) has no room: {what}")


def _no_room(message: str) -> NotAdmitted:
    return NotAdmitted(
        f"{message}; nothing was made",
        hint="make room there, give the host another remote, or --only other hosts",
    )


# Making


def make_all(
    wanted: Sequence[Wanted], state: State, makers: Mapping[str, Maker], out: Output
) -> list[str]:
    """Make what is not done yet, and return the names. Raises HanokError at the first failure."""
    made: list[str] = []
    for number, one in enumerate(wanted):
        if state.is_done(one):
            continue
        out.note(f"{one.name} on {one.remote} ({number + 1} of {len(wanted)})")
        try:
            uuid = _make(one, state, makers[one.remote])
        except HanokError as error:
            raise _stopped(error, one, wanted, state) from error
        state.note(one, "done", uuid)
        made.append(one.name)
    return made


def _make(wanted: Wanted, state: State, maker: Maker) -> str:
    """Make one VM, or go on with it, and return its uuid."""
    there = maker.find(wanted.name)
    if there is None:
        state.note(wanted, "started")
        operation = maker.ask(wanted)
        there = maker.find(wanted.name)
        if there is not None:
            state.note(wanted, "started", there.uuid)
        maker.wait(operation)
    else:
        refuse_stranger(wanted, state.vms.get(wanted.plan_name), there)
        state.note(wanted, "started", there.uuid)
        if there.state != "ready":
            maker.go_on(wanted.name)
    there = maker.find(wanted.name)
    if there is None or there.state != "ready":
        seen = "gone" if there is None else there.state
        why = f" ({there.reason})" if there is not None and there.reason else ""
        raise NotReady(f"it is {seen}{why}, not ready")
    return there.uuid


def _stopped(error: HanokError, at: Wanted, wanted: Sequence[Wanted], state: State) -> HanokError:
    """Return ``error`` with what was done, what is left, and how to go on."""
    done = [one.name for one in wanted if state.is_done(one)]
    left = [one.name for one in wanted if not state.is_done(one)]
    named = f" ({_some(done)})" if done else ""
    hint = (
        f"{len(done)} of {len(wanted)} VMs are made{named}, left: {_some(left)}; "
        "run it again to go on"
    )
    return type(error)(
        f"{at.name} on {at.remote}: {error.message}",
        field=error.field,
        expected=error.expected,
        hint=f"{error.hint}; {hint}" if error.hint else hint,
    )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
