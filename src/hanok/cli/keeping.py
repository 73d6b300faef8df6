"""Options and words of how a VM is kept running: restarts, health, autostart, watchdog."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from hanok.model.views import VmDetail, VmView

F = TypeVar("F", bound=Callable[..., Any])


def keeping_options(function: F) -> F:
    """Add the options of how a VM is kept running; they come as keyword arguments."""
    seconds: dict[str, Any] = {"type": float, "metavar": "SECONDS"}
    for option in (
        click.option(
            "--restart",
            "restart_policy",
            metavar="POLICY[:TIMES]",
            help="Start it again: no (default), on-failure or always; at most TIMES in a row.",
        ),
        click.option("--restart-delay", **seconds, help="Pause before the first (1); it doubles."),
        click.option("--restart-longest", **seconds, help="The longest pause (300)."),
        click.option("--restart-reset", **seconds, help="Good running that ends a row (600)."),
        click.option(
            "--health",
            metavar="CHECK",
            help="Check it as long as it runs: agent, tcp:PORT or a URL, http://...",
        ),
        click.option("--health-command", metavar="CMD", help="Healthy when CMD succeeds in it."),
        click.option("--health-interval", **seconds, help="Between checks (10)."),
        click.option("--health-timeout", **seconds, help="That a check may take (5)."),
        click.option("--health-retries", type=int, metavar="N", help="Unhealthy after N (3)."),
        click.option("--health-grace", **seconds, help="No failure counts that soon (10)."),
        click.option(
            "--on-unhealthy",
            type=click.Choice(("nothing", "restart")),
            help="What becomes of it then (default: nothing).",
        ),
        click.option(
            "--autostart",
            type=click.Choice(("last", "yes", "no")),
            help="Start it with the host; last (default): if it ran when that went down.",
        ),
        click.option("--autostart-order", type=int, metavar="N", help="Lower ones first (100)."),
        click.option("--autostart-delay", **seconds, help="Then wait before the next order (0)."),
        click.option(
            "--watchdog",
            metavar="ACTION[:SECONDS]",
            help="Of a guest that hangs: none (default), reset or stop, which is a failure.",
        ),
    )[::-1]:
        function = option(function)
    return function


def keeping_fields(given: Mapping[str, Any]) -> dict[str, object]:
    """Return the fields of a definition that the options ask for; the daemon checks them."""
    restart = _restart(given["restart_policy"]) | _said(
        delay=given["restart_delay"],
        longest=given["restart_longest"],
        reset_after=given["restart_reset"],
    )
    health = _said(
        command=given["health_command"],
        interval=given["health_interval"],
        timeout=given["health_timeout"],
        retries=given["health_retries"],
        grace=given["health_grace"],
        on_unhealthy=given["on_unhealthy"],
    )
    autostart = _said(
        start=given["autostart"], order=given["autostart_order"], delay=given["autostart_delay"]
    )
    fields: dict[str, object] = {"restart": restart, "autostart": autostart}
    if given["health"] is not None or health:
        fields["health"] = _check(given["health"]) | health
    if given["watchdog"] is not None:
        fields["watchdog"] = given["watchdog"]
    return {key: value for key, value in fields.items() if value or key == "health"}


def _said(**fields: object) -> dict[str, object]:
    return {key: value for key, value in fields.items() if value is not None}


def _restart(text: str | None) -> dict[str, object]:
    if text is None:
        return {}
    policy, colon, times = text.partition(":")
    return {"policy": policy, **({"retries": times} if colon else {})}


def _check(text: str | None) -> dict[str, object]:
    if text is None or text == "agent":
        return {}
    kind, _, rest = text.partition(":")
    return {"port": rest} if kind == "tcp" else {"url": text}


def restart_text(vm: VmDetail) -> str | None:
    """Return a VM's restart policy, and what it has done; None without one."""
    policy, seen = vm.get("restart"), vm.get("restarts")
    if policy is None or policy["policy"] == "no":
        return None
    text = str(policy["policy"])
    text += "" if policy["retries"] is None else f", at most {policy['retries']} in a row"
    if seen is None:
        return text
    if seen["total"]:
        text += f"; {seen['total']} so far, {seen['streak']} in a row"
        text += f", the last {_moment(seen['last'])}: {seen['reason']}"
    if seen["next"] is not None:
        text += f"; next {_moment(seen['next'])}"
    return text


def health_text(vm: VmDetail) -> str | None:
    """Return what a VM's health check is and says; None without one."""
    check, seen = vm.get("health_check"), vm.get("health_seen")
    if check is None:
        return None
    what = next(
        (f"{key} {check[key]}" for key in ("port", "url", "command") if check.get(key) is not None),
        "its agent",
    )
    rule = f"{what} every {check['interval']:g} s; {check['on_unhealthy']} when unhealthy"
    if seen is None:
        return f"{rule}; not known yet"
    said = f": {seen['message']}" if seen["message"] else ""
    return f"{seen['state']} since {_moment(seen['since'])}{said} ({rule})"


def autostart_text(vm: VmDetail) -> str | None:
    """Return a VM's part in its host's start; None when nothing was said about it."""
    auto = vm.get("autostart")
    if auto is None or (auto["start"], auto["order"], auto["delay"]) == ("last", 100, 0):
        return None
    return f"{auto['start']}, order {auto['order']}, then {auto['delay']:g} s"


def watchdog_text(vm: VmDetail) -> str | None:
    """Return what a VM's watchdog does; None without one."""
    dog = vm.get("watchdog")
    if dog is None or dog["action"] == "none":
        return None
    return f"{dog['action']} after {dog['timeout']} s"


def state_of(vm: VmView) -> str:
    """Return a VM's state; one that is ready and not well is unhealthy."""
    unhealthy = vm["state"] == "ready" and vm.get("health") == "unhealthy"
    return "unhealthy" if unhealthy else vm["state"]


def _moment(value: float | None) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(value or 0))
