"""Definitions of restarts, health, autostart and watchdog: short forms, limits, named fields."""

from __future__ import annotations

from typing import Any

import pytest

from hanok.cli.keeping import keeping_fields
from hanok.errors import InvalidInput
from hanok.model.keeping import RestartWhen, StartWhen, WatchdogAction
from hanok.model.stack import parse_stack
from hanok.model.validation import validated
from hanok.model.vm import VmRecord, VmSpec
from hanok.services.suiting import check_keeping

_OPTIONS = (
    *("restart_policy", "restart_delay", "restart_longest", "restart_reset"),
    *("health", "health_command", "health_interval", "health_timeout", "health_retries"),
    *("health_grace", "on_unhealthy", "autostart", "autostart_order", "autostart_delay"),
    "watchdog",
)


def spec(**fields: Any) -> VmSpec:
    return validated(VmSpec, {"name": "web", "image": "micro", **fields})


def test_nothing_is_kept_running_unless_that_is_asked_for() -> None:
    made = spec()
    assert made.restart.policy is RestartWhen.NO
    assert made.health is None
    assert made.autostart.start is StartWhen.LAST
    assert not made.watchdog.wanted


@pytest.mark.parametrize(
    ("text", "policy", "retries"),
    [
        ("no", "no", None),
        (False, "no", None),
        ("always", "always", None),
        ("on-failure", "on-failure", None),
        ("on-failure:5", "on-failure", 5),
        ({"policy": "always", "retries": 3}, "always", 3),
    ],
)
def test_restart(text: object, policy: str, retries: int | None) -> None:
    made = spec(restart=text).restart
    assert (made.policy, made.retries) == (policy, retries)


@pytest.mark.parametrize(
    ("text", "check"),
    [
        ("agent", (None, None, None)),
        ({}, (None, None, None)),
        ("tcp:80", (80, None, None)),
        ("http://web/", (None, "http://web/", None)),
        ({"command": "true"}, (None, None, "true")),
    ],
)
def test_health(text: object, check: tuple[object, ...]) -> None:
    made = spec(health=text).health
    assert made is not None
    assert (made.port, made.url, made.command) == check
    assert made.needs_agent == (made.port is None and made.url is None)


def test_autostart_and_watchdog() -> None:
    assert spec(autostart="yes").autostart.start is StartWhen.YES
    assert spec(autostart=False).autostart.start is StartWhen.NO
    assert spec(autostart={"order": 5, "delay": 2}).autostart.order == 5
    assert spec(watchdog="reset").watchdog.action is WatchdogAction.RESET
    made = spec(watchdog="stop:60").watchdog
    assert (made.action, made.timeout) == (WatchdogAction.STOP, 60)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"restart": "sometimes"}, "restart"),
        ({"restart": "on-failure:many"}, "restart"),
        ({"restart": "on-failure:0"}, "restart.retries"),
        ({"restart": {"policy": "always", "delay": -1}}, "restart.delay"),
        ({"restart": {"polcy": "always"}}, "restart.polcy"),
        ({"health": "ping"}, "health"),
        ({"health": {"port": 0}}, "health.port"),
        ({"health": {"port": 80, "command": "true"}}, "health"),
        ({"health": {"interval": 0}}, "health.interval"),
        ({"health": {"on_unhealthy": "explode"}}, "health.on_unhealthy"),
        ({"autostart": "maybe"}, "autostart"),
        ({"autostart": {"order": -1}}, "autostart.order"),
        ({"watchdog": "bark"}, "watchdog"),
        ({"watchdog": "reset:1"}, "watchdog.timeout"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        spec(**fields)
    assert caught.value.field == field
    assert caught.value.expected


def test_a_restart_of_the_unhealthy_needs_a_policy() -> None:
    health = {"on_unhealthy": "restart"}
    check_keeping(spec(restart="on-failure", health=health))
    with pytest.raises(InvalidInput) as caught:
        check_keeping(spec(health=health))
    assert caught.value.field == "health.on_unhealthy"
    assert "--restart" in (caught.value.hint or "")


def test_a_stack_file_takes_the_same_words() -> None:
    vm = {
        "image": "micro",
        "restart": "on-failure:3",
        "health": {"port": 80, "on_unhealthy": "restart"},
        "autostart": {"start": "yes", "order": 1},
        "watchdog": "reset",
    }
    (machine,) = parse_stack({"name": "shop", "vms": {"web": vm}}).machines()
    assert machine.spec.restart.retries == 3
    assert machine.spec.health is not None
    assert machine.spec.health.port == 80
    assert machine.spec.autostart.order == 1
    assert machine.spec.watchdog.wanted


def test_records_of_an_earlier_version_are_read() -> None:
    old = {
        "uuid": "u",
        "spec": {"name": "web", "image": "micro"},
        "wanted": "running",
        "created": 1.0,
        "uid": 1,
        "mode": "para",
        "hypervisor": "fake",
    }
    record = VmRecord.model_validate(old)
    assert record.restarts.total == 0
    assert record.health is None


def options(**given: Any) -> dict[str, object]:
    return keeping_fields({**dict.fromkeys(_OPTIONS), **given})


def test_options_say_what_a_definition_says() -> None:
    assert options() == {}
    given = options(
        restart_policy="on-failure:5",
        restart_delay=2.0,
        health="tcp:80",
        health_interval=3.0,
        on_unhealthy="restart",
        autostart="yes",
        autostart_order=7,
        watchdog="stop:60",
    )
    made = spec(**given)
    assert (made.restart.policy, made.restart.retries, made.restart.delay) == ("on-failure", 5, 2)
    assert made.health is not None
    assert (made.health.port, made.health.interval) == (80, 3)
    assert (made.autostart.start, made.autostart.order) == ("yes", 7)
    assert (made.watchdog.action, made.watchdog.timeout) == ("stop", 60)


def test_health_by_the_agent_alone_is_asked_for_by_name() -> None:
    assert options(health="agent") == {"health": {}}
    assert spec(**options(health="agent")).health is not None
