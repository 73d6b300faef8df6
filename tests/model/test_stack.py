"""Stack files: what they mean, and what is refused with which words."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from hanok.errors import InvalidInput
from hanok.model.stack import Stack, parse_stack
from hanok.model.vm import Mode, Publish, Ready
from hanok.units import GIB, MIB

SHOP = """
name: shop
vms:
  web:
    image: debian:12
    cpus: 2
    memory: 1G
    packages: [nginx]
    publish: ["8080:80"]
    depends_on: [db]
    ready: http://127.0.0.1/
  db:
    image: debian:13
    ready: {command: pg_isready, timeout: 60}
  legacy:
    image: micro
    mode: full
    memory: 128M
    ready: 7000
"""


def _stack(text: str) -> Stack:
    return parse_stack(yaml.safe_load(text))


def _refusal(text: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        _stack(text)
    return caught.value


def test_three_servers() -> None:
    machines = {machine.spec.name: machine for machine in _stack(SHOP).machines()}
    web, legacy = machines["web"].spec, machines["legacy"].spec
    assert (web.cpus, web.memory, web.disk) == (2, GIB, 4 * GIB)
    assert web.publish == (Publish(host_port=8080, guest_port=80),)
    assert web.ready == Ready(url="http://127.0.0.1/")
    assert machines["db"].spec.ready == Ready(command="pg_isready", timeout=60)
    assert (legacy.mode, legacy.memory, legacy.ready) == (Mode.FULL, 128 * MIB, Ready(port=7000))
    assert machines["web"].depends_on == ("db",)


def test_dependencies_come_first_and_the_rest_keeps_the_order_of_the_file() -> None:
    levels = _stack(SHOP).levels()
    assert [[machine.spec.name for machine in level] for level in levels] == [
        ["db", "legacy"],
        ["web"],
    ]


def test_a_stack_has_its_own_network() -> None:
    stack = _stack(SHOP)
    assert [network.name for network in stack.network_specs()] == ["shop"]
    assert {machine.spec.networks for machine in stack.machines()} == {("shop",)}


def test_named_networks() -> None:
    stack = _stack(
        """
        name: shop
        networks: {front: {subnet: 10.20.0.0/24}, back: {outward: false}, side: }
        vms:
          web: {image: micro, networks: [front, back]}
        """
    )
    front, back, side = stack.network_specs()
    assert (front.subnet, front.outward) == ("10.20.0.0/24", True)
    assert (back.subnet, back.outward, side.outward) == (None, False, True)
    assert stack.machines()[0].spec.networks == ("front", "back")


def test_replicas_are_numbered_and_waited_for() -> None:
    stack = _stack(
        """
        name: shop
        vms:
          web: {image: micro, replicas: 3}
          front: {image: micro, depends_on: [web]}
        """
    )
    machines = stack.machines()
    assert [machine.spec.name for machine in machines] == ["web-1", "web-2", "web-3", "front"]
    assert machines[-1].depends_on == ("web-1", "web-2", "web-3")


@pytest.mark.parametrize(
    ("text", "field", "hint"),
    [
        ("{name: a, vm: {b: {image: micro}}}", "vm", "did you mean 'vms'?"),
        ("{name: a, vms: {b: {image: micro, cpu: 1}}}", "vms.b.cpu", "did you mean 'cpus'?"),
        (
            "{name: a, networks: {n: {subent: x}}, vms: {b: {image: micro}}}",
            "networks.n.subent",
            "did you mean 'subnet'?",
        ),
        (
            "{name: a, vms: {b: {image: micro, ready: {cmd: x}}}}",
            "vms.b.ready.cmd",
            "did you mean 'command'?",
        ),
        (
            "{name: a, vms: {b: {image: micro, depends_on: [daba]}, data: {image: micro}}}",
            "vms.b.depends_on.0",
            "did you mean 'data'?",
        ),
        (
            "{name: a, networks: [front], vms: {b: {image: micro, networks: [fornt]}}}",
            "vms.b.networks.0",
            "did you mean 'front'?",
        ),
    ],
)
def test_unknown_names_are_told_with_the_nearest(text: str, field: str, hint: str) -> None:
    error = _refusal(text)
    assert (error.field, error.hint) == (field, hint)


def test_circle_is_named() -> None:
    error = _refusal(
        """
        name: a
        vms:
          x: {image: micro, depends_on: [y]}
          y: {image: micro, depends_on: [z]}
          z: {image: micro, depends_on: [x]}
        """
    )
    circle = error.message.rsplit(": ", 1)[1].split(" → ")
    assert len(circle) == 4
    assert {(one, other) for one, other in itertools.pairwise(circle)} == {
        ("x", "y"),
        ("y", "z"),
        ("z", "x"),
    }
    assert "x → x" in _refusal("{name: a, vms: {x: {image: micro, depends_on: [x]}}}").message


@pytest.mark.parametrize(
    ("text", "field", "says"),
    [
        ("{name: a, vms: {}}", "vms", "at least 1 entry"),
        ("{name: a, vms: [b]}", "vms", "a mapping"),
        ("{name: a, vms: {b: }}", "vms.b", "a mapping"),
        ("{name: a, vms: {B: {image: micro}}}", "vms.B.name", "lower-case"),
        ("{vms: {b: {image: micro}}}", "name", None),
        ("{name: a, vms: {b: {image: micro, name: c}}}", "vms", "its key alone"),
        ("{name: a, networks: [1], vms: {b: {image: micro}}}", "networks", "a mapping"),
        (
            "{name: a, networks: {n: {subnet: 8.8.8.0/24}}, vms: {b: {image: micro}}}",
            "networks.n.subnet",
            "private",
        ),
        (
            "{name: a, networks: {n: {subnet: 10.0.0.1/24}}, vms: {b: {image: micro}}}",
            "networks.n.subnet",
            "such as 10.20.0.0/24",
        ),
        ("{name: a, networks: [m, n], vms: {b: {image: micro}}}", "vms.b.networks", "m, n"),
        ("{name: a, vms: {b: {image: micro, ready: nginx}}}", "vms.b.ready", "a port"),
        ("{name: a, vms: {b: {image: micro, ready: true}}}", "vms.b.ready", "a mapping"),
        ("{name: a, vms: {b: {image: micro, publish: [2222:22]}}}", "vms.b.publish", "quoted"),
        (
            '{name: a, vms: {b: {image: micro, replicas: 2, publish: ["1:1"]}}}',
            "vms.b.publish",
            "no published ports",
        ),
        (
            '{name: a, vms: {b: {image: micro, publish: ["81:1"]}, '
            'c: {image: micro, publish: ["0.0.0.0:81:1"]}}}',
            "vms.c.publish.0",
            "another host port",
        ),
        (
            "{name: a, vms: {b: {image: micro, replicas: 2}, b-1: {image: micro}}}",
            "vms.b-1",
            "replicas",
        ),
        (
            f"{{name: a, vms: {{{'b' * 62}: {{image: micro, replicas: 2}}}}}}",
            f"vms.{'b' * 62}.name",
            "63",
        ),
    ],
)
def test_what_is_refused(text: str, field: str, says: str | None) -> None:
    error = _refusal(text)
    assert error.field == field
    assert says is None or says in (error.expected or "")


def test_a_port_may_be_published_on_two_addresses() -> None:
    _stack(
        '{name: a, vms: {b: {image: micro, publish: ["127.0.0.1:81:1"]}, '
        'c: {image: micro, publish: ["127.0.0.2:81:1"]}}}'
    )


names = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
readiness = st.one_of(
    st.integers(1, 65535),
    st.just("http://127.0.0.1:80/health"),
    st.fixed_dictionaries({"command": st.text(min_size=1, max_size=20)}),
    st.fixed_dictionaries({"port": st.integers(1, 65535), "timeout": st.integers(1, 3600)}),
)


@st.composite
def stack_files(draw: st.DrawFn) -> dict[str, Any]:
    """A stack file that is right: dependencies point backwards, ports and names differ."""
    vms: dict[str, Any] = {}
    networks = draw(st.lists(names, unique=True, max_size=3))
    for place, name in enumerate(draw(st.lists(names, unique=True, min_size=1, max_size=6))):
        body: dict[str, Any] = {
            "image": draw(st.sampled_from(["micro", "debian:12", "my.image_1:v2"])),
            "cpus": draw(st.integers(1, 8)),
            "memory": draw(st.sampled_from([64 * MIB, "512M", "1.5GiB"])),
            "mode": draw(st.sampled_from([mode.value for mode in Mode])),
        }
        if draw(st.booleans()):
            body["ready"] = draw(readiness)
        if draw(st.booleans()):
            body["publish"] = [f"{9000 + place}:80"]
        depends: bool = draw(st.booleans())
        if vms and depends:
            body["depends_on"] = draw(st.lists(st.sampled_from(sorted(vms)), unique=True))
        if len(networks) > 1:
            body["networks"] = draw(
                st.lists(st.sampled_from(networks), unique=True, min_size=1, max_size=3)
            )
        vms[name] = body
    return {"name": draw(names), "networks": networks, "vms": vms}


@given(stack_files())
def test_round_trip(data: dict[str, Any]) -> None:
    stack = parse_stack(data)
    assert parse_stack(stack.model_dump(mode="json")) == stack
    assert parse_stack(yaml.safe_load(yaml.safe_dump(data))) == stack
    assert sorted(machine.spec.name for machine in stack.machines()) == sorted(data["vms"])


@given(stack_files())
def test_each_vm_comes_after_what_it_depends_on(data: dict[str, Any]) -> None:
    seen: set[str] = set()
    for level in parse_stack(data).levels():
        assert all(set(machine.depends_on) <= seen for machine in level)
        seen |= {machine.spec.name for machine in level}
    assert seen == set(data["vms"])


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text() | st.integers(), inner, max_size=4)
    ),
    max_leaves=12,
)
KEYS = ["name", "networks", "vms", "subnet", "outward", "image", "cpus", "memory", "disk", "mode"]
KEYS += ["packages", "user_data", "publish", "depends_on", "ready", "replicas", "port", "web", "db"]
stackish = st.recursive(
    anything | st.sampled_from(["micro", "512M", "8080:80", "web", "db", "full"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=20,
)


@example({"": None, "\n": None})
@given(anything | stackish)
def test_whatever_comes_is_a_stack_or_invalid_input(data: object) -> None:
    _parse_or_refuse(data)


@given(stack_files(), st.sampled_from(KEYS), stackish)
def test_a_good_file_with_one_thing_wrong(data: dict[str, Any], key: str, value: object) -> None:
    _parse_or_refuse({**data, key: value})
    first = next(iter(data["vms"]))
    vms = {**data["vms"], first: {**data["vms"][first], key: value}}
    _parse_or_refuse({**data, "vms": vms})


def _parse_or_refuse(data: object) -> None:
    try:
        parse_stack(data).machines()
    except InvalidInput as error:
        refusal = error
    else:
        return
    assert refusal.message
    assert "\n" not in refusal.message
