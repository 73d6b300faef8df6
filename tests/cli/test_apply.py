"""``hanok apply``: VMs are made once, in order, and a stopped run goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest

from hanok.cli.applystate import State, Wanted, only_one
from hanok.cli.applywork import Found, check_all, disk_note, make_all, vm_name, wanted_vms
from hanok.cli.output import Output
from hanok.client.wire import FitWire, OperationWire
from hanok.errors import (
    Conflict,
    DaemonUnreachable,
    HostError,
    HypervisorError,
    InvalidInput,
    NotAdmitted,
    NotReady,
)
from hanok.model.apply import ApplyMap
from hanok.model.plan import PlanFile
from tests.cli.conftest import Hanok

SIDE = {
    "hosts": 1,
    "rack_units": 1,
    **{
        name: {"idle_share": 0.5, "watts": 1, "kwh_year": 1, "money_year": 1}
        for name in ("old_idle", "new_idle")
    },
}


def plan(*vms: tuple[str, str]) -> PlanFile:
    """Return a plan of VMs with their hosts."""
    hosts = sorted({host for _, host in vms})
    return PlanFile.model_validate(
        {
            "inputs": {"servers": "servers.yaml"},
            "search": {"effort": 1},
            "grid": {"start": "2026-01-01T00:00:00Z", "interval": 300, "intervals": 1},
            "vms": [
                {
                    "name": name,
                    "host": host,
                    "vcpus": 2,
                    "memory": 2**30,
                    "cores_before": 4,
                    "memory_before": 2**32,
                }
                for name, host in vms
            ],
            "hosts": [{"name": host, "kind": "small", "vms": 1} for host in hosts],
            "bound": {"hosts": 1, "reason": "there is a server", "gap": 0},
            "before": SIDE,
            "after": SIDE,
        }
    )


@dataclass
class Host:
    """A host in memory; ``fails`` names the VM at which it does, ``dies`` one after which we do."""

    fails: str = ""
    dies: str = ""
    dies_before_answer: str = ""
    fits: int = 9
    free: int = 2**40
    unreachable: bool = False
    resource: str = "memory"
    vms: dict[str, Found] = field(default_factory=dict)

    def look(self) -> dict[str, Found]:
        if self.unreachable:
            raise DaemonUnreachable("it does not answer")
        return dict(self.vms)

    def fit(self, wanted: Wanted) -> FitWire:
        return {
            "count": self.fits,
            "limit": "memory",
            "missing": 1,
            "by_resource": {},
            "rooms": [{"resource": self.resource, "capacity": 1, "used": 0, "free": self.free}],
        }

    def find(self, name: str) -> Found | None:
        return self.vms.get(name)

    def ask(self, wanted: Wanted) -> OperationWire:
        assert wanted.name not in self.vms, "a VM is made twice"
        state = "failed" if wanted.name == self.fails else "ready"
        self.vms[wanted.name] = Found(
            f"uuid-{wanted.name}", state, wanted.vcpus, wanted.memory, wanted.image
        )
        if wanted.name == self.dies_before_answer:
            raise KeyboardInterrupt
        return cast("OperationWire", {"target": wanted.name})

    def wait(self, operation: OperationWire) -> None:
        if operation["target"] == self.fails:
            raise HypervisorError("no luck")
        if operation["target"] == self.dies:
            raise KeyboardInterrupt

    def go_on(self, name: str) -> None:
        if name != self.fails:
            self.become(name, "ready")

    def become(self, name: str, state: str) -> None:
        """Let a VM be in another state."""
        self.vms[name] = replace(self.vms[name], state=state)


MICRO = ApplyMap(image="micro")
PLAN = plan(("a", "h1"), ("b", "h2"), ("c", "h1"))
QUIET = Output()
QUIET.as_json = True


def state(folder: Path) -> State:
    found = State(folder / "apply.json", "digest")
    found.load()
    return found


def run(folder: Path, makers: Mapping[str, Host], wanted: Sequence[Wanted] = ()) -> list[str]:
    """Do what the command does with a plan on these hosts; a new state file each time."""
    kept, todo = state(folder), wanted or wanted_vms(PLAN, ApplyMap(image="micro"))
    check_all(todo, kept, makers)
    return make_all(todo, kept, makers, QUIET)


def two() -> dict[str, Host]:
    """Two hosts under their own names."""
    return {"h1": Host(), "h2": Host()}


def test_vms_are_made_host_by_host_and_once(tmp_path: Path) -> None:
    how = {"hosts": {"h1": "local"}, "image": "micro", "disk": "8G"}
    own = {"image": "debian:12", "packages": ["nginx"], "disk": "20G"}
    wanted = wanted_vms(PLAN, ApplyMap.model_validate({**how, "vms": {"c": own}}))
    assert [(one.name, one.remote, one.image, one.packages, one.disk) for one in wanted] == [
        ("a", "local", "micro", (), 8 * 2**30),
        ("c", "local", "debian:12", ("nginx",), 20 * 2**30),
        ("b", "h2", "micro", (), 8 * 2**30),
    ]
    makers = {"local": Host(), "h2": Host()}
    assert run(tmp_path, makers, wanted) == ["a", "c", "b"]
    assert run(tmp_path, makers, wanted) == []
    kept = state(tmp_path).vms["c"]
    assert (kept.step, kept.remote, kept.uuid) == ("done", "local", "uuid-c")


def test_disks_are_those_of_the_map_or_else_of_the_plan() -> None:
    sizes = {"a": 5 * 2**30 + 1, "b": 2**40, "c": None}
    vms = [vm.model_copy(update={"disk": sizes[vm.name]}) for vm in PLAN.vms]
    found = PLAN.model_copy(update={"vms": tuple(vms)})
    plain = wanted_vms(found, ApplyMap(image="micro"))
    whole = 5 * 2**30 + 2**20
    assert {one.name: one.disk for one in plain} == {"a": whole, "b": 2**40, "c": None}
    assert disk_note(plain) == (
        "neither plan nor map says how large a disk c has: each gets its host's default, 4 GiB"
    )
    own = {"image": "micro", "disk": "8G", "vms": {"b": {"disk": "9G"}}}
    mapped = wanted_vms(found, ApplyMap.model_validate(own))
    assert {one.name: one.disk for one in mapped} == {"a": 2**33, "b": 9 * 2**30, "c": 2**33}
    assert disk_note(mapped) is None


def test_disks_count_for_room_together(tmp_path: Path) -> None:
    host = Host(resource="disk", free=10 * 2**30)
    wanted = [replace(one, disk=6 * 2**30, remote="h1") for one in wanted_vms(PLAN, MICRO)]
    with pytest.raises(NotAdmitted, match="3 VMs need 18 GiB of disk, 10 GiB are free"):
        check_all(wanted, state(tmp_path), {"h1": host})
    with pytest.raises(NotAdmitted, match="1 GiB with a disk of 6 GiB: 1 fit, by memory"):
        check_all(wanted, state(tmp_path), {"h1": Host(fits=1)})


def test_it_stops_at_the_first_failure_and_goes_on(tmp_path: Path) -> None:
    makers = two()
    makers["h1"].fails = "c"
    with pytest.raises(HypervisorError, match="c on h1: no luck") as caught:
        run(tmp_path, makers)
    assert caught.value.hint == "1 of 3 VMs are made (a), left: c, b; run it again to go on"
    assert makers["h2"].vms == {}
    with pytest.raises(NotReady, match="c on h1: it is failed, not ready"):
        run(tmp_path, makers)
    makers["h1"].fails = ""
    assert run(tmp_path, makers) == ["c", "b"]


@pytest.mark.parametrize("where", ["dies", "dies_before_answer"])
@pytest.mark.parametrize("left", ["ready", "starting", "failed"])
def test_a_run_that_died_goes_on_with_what_it_began(tmp_path: Path, where: str, left: str) -> None:
    makers = two()
    setattr(makers["h1"], where, "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, makers)
    assert (state(tmp_path).vms["a"].uuid is None) == (where == "dies_before_answer")
    makers["h1"].become("a", left)
    assert run(tmp_path, makers) == ["a", "c", "b"]
    assert [found.state for found in makers["h1"].vms.values()] == ["ready", "ready"]


def test_foreign_vms_are_left_alone_and_nothing_is_made(tmp_path: Path) -> None:
    makers = two()
    makers["h2"].vms["b"] = Found("other", "ready", 2, 2**30, "micro")
    with pytest.raises(Conflict, match="b on h2 that this plan did not make"):
        run(tmp_path, makers)
    assert makers["h1"].vms == {}


def test_a_vm_in_the_place_of_a_begun_one_is_foreign(tmp_path: Path) -> None:
    makers = two()
    makers["h1"].dies = "a"
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, makers)
    makers["h1"].vms["a"] = replace(makers["h1"].vms["a"], uuid="other")
    with pytest.raises(Conflict, match="this plan did not make"):
        run(tmp_path, makers)


def test_a_begun_vm_of_another_image_is_told(tmp_path: Path) -> None:
    makers = two()
    makers["h1"].fails = "a"
    with pytest.raises(HypervisorError):
        run(tmp_path, makers)
    with pytest.raises(Conflict, match="the image micro, which is not what is wanted") as caught:
        run(tmp_path, makers, wanted_vms(PLAN, ApplyMap(image="debian:12")))
    assert caught.value.hint == "delete it: hanok --remote h1 delete --force a"


def test_a_host_that_moved_is_refused(tmp_path: Path) -> None:
    run(tmp_path, two())
    moved = wanted_vms(PLAN, ApplyMap(image="micro", hosts={"h2": "h3"}))
    with pytest.raises(Conflict, match="b was begun on h2") as caught:
        run(tmp_path, {**two(), "h3": Host()}, moved)
    assert caught.value.expected == "h2=h2"


def test_what_was_deleted_since_is_told_and_left_so(tmp_path: Path) -> None:
    makers = two()
    run(tmp_path, makers)
    del makers["h2"].vms["b"]
    wanted = wanted_vms(PLAN, ApplyMap(image="micro"))
    assert check_all(wanted, state(tmp_path), makers) == [
        "b on h2 was made and is gone: it is left so"
    ]
    assert run(tmp_path, makers) == []


def test_nothing_is_made_unless_every_host_answers_and_has_room(tmp_path: Path) -> None:
    makers = two()
    makers["h2"].unreachable = True
    with pytest.raises(DaemonUnreachable, match="h2: it does not answer"):
        run(tmp_path, makers)
    makers = two()
    makers["h1"].fits = 1
    with pytest.raises(NotAdmitted, match=r"no room for 2 VMs of 2 vCPUs and 1 GiB: 1 fit"):
        run(tmp_path, makers)
    makers = two()
    makers["h1"].free = 2**30
    with pytest.raises(NotAdmitted, match="2 VMs need 2 GiB, 1 GiB are free"):
        run(tmp_path, makers)
    assert makers["h2"].vms == {}
    assert not (tmp_path / "apply.json").exists()


def test_two_at_once_are_refused(tmp_path: Path) -> None:
    second = only_one(tmp_path)
    with only_one(tmp_path), pytest.raises(Conflict, match="another hanok apply"):
        second.__enter__()
    with only_one(tmp_path):
        pass


def test_a_state_that_cannot_be_noted_stops_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / ".apply.json.new").mkdir()
    makers = two()
    with pytest.raises(HostError, match="cannot be written"):
        run(tmp_path, makers)
    assert makers["h1"].vms == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"vms": 3, "digest": "digest"}', '{"vms": {}}'])
def test_a_state_that_is_none_or_of_another_plan_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "apply.json").write_text(text)
    with pytest.raises(Conflict, match="does not say what was done"):
        state(tmp_path)
    (tmp_path / "apply.json").write_text('{"vms": {}, "digest": "other"}')
    with pytest.raises(Conflict, match="another plan"):
        state(tmp_path)


def test_names_of_servers_become_names_of_vms() -> None:
    assert vm_name("Web01.Example.org") == "web01-example-org"
    assert vm_name("7eleven") == "vm-7eleven"
    assert len(vm_name("x" * 200)) == 63
    with pytest.raises(InvalidInput, match="would both be called"):
        wanted_vms(plan(("a.b", "h1"), ("a-b", "h1")), ApplyMap(image="micro"))


@pytest.mark.parametrize(
    ("words", "field"),
    [
        ((), "--image"),
        (("--image", "m", "--host", "h9=x"), "--host.h9"),
        (("--image", "m", "--host", "h1"), "--host"),
        (("--image", "m", "--image-of", "z=x"), "--image-of.z"),
        (("--image", "m", "--only", "h9"), "--only"),
        (("--map", "none.yaml"), "--map"),
    ],
)
def test_what_is_missing_is_told(
    hanok: Hanok, tmp_path: Path, words: tuple[str, ...], field: str
) -> None:
    (tmp_path / "plan.json").write_text(PLAN.model_dump_json())
    done = hanok("apply", str(tmp_path), *words, "--json")
    assert done.returncode == 2
    assert json.loads(done.stderr)["field"].startswith(field.partition(".")[0])


def test_the_command(hanok: Hanok, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.model_dump_json())
    words = ("apply", str(tmp_path), "--image", "micro", "--dry-run")
    done = hanok(*words, "--on", "h1=local", "--json")
    assert [one["remote"] for one in json.loads(done.stdout)] == ["local", "local", "h2"]
    assert "to make" in hanok(*words).stdout
    missing = hanok("apply", str(tmp_path), "--image", "micro", "--only", "h2")
    assert missing.returncode == 1
    assert "h2" in missing.stderr
    assert not (tmp_path / "apply.json").exists()


def test_a_map_says_all_and_options_win(hanok: Hanok, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(PLAN.model_dump_json())
    where = tmp_path / "where.yaml"
    where.write_text("hosts: {h1: rack7}\nimage: micro\nvms:\n  c: {packages: [nginx]}\n")
    words = ("apply", str(tmp_path), "--map", str(where), "--dry-run", "--json")
    vms = json.loads(hanok(*words, "--host", "h2=local").stdout)
    assert [(one["remote"], one["packages"]) for one in vms] == [
        ("rack7", []),
        ("rack7", ["nginx"]),
        ("local", []),
    ]
    other = json.loads(hanok(*words, "--image-of", "c=debian:12").stdout)[1]
    assert (other["image"], other["packages"]) == ("debian:12", ["nginx"])
    where.write_text("image: micro\nvms:\n  c: {image: micro}\n  cc: {}\n")
    wrong = hanok(*words)
    assert wrong.returncode == 2
    assert "where.yaml:4: the plan has no VM 'cc'" in wrong.stderr.replace("\\n", " ")
