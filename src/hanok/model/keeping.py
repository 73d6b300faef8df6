"""How a VM is kept running: restarts, health, start with the host, watchdog; and what was seen."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

from pydantic import Field, model_validator

from hanok.model.base import Frozen


class RestartWhen(StrEnum):
    """After which ends a VM is started again; a user's stop is never one of them."""

    NO = "no"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


class Restart(Frozen):
    """Whether a VM that has ended is started again, how often, and after which pauses.

    The pauses double from ``delay`` to ``longest``. A VM that was ready for ``reset_after`` seconds
    begins to count anew.
    """

    policy: RestartWhen = RestartWhen.NO
    retries: int | None = Field(
        default=None, ge=1, le=10_000, description="restarts in a row; null: without end"
    )
    delay: float = Field(default=1, ge=0.1, le=3600, description="seconds before the first one")
    longest: float = Field(default=300, ge=0.1, le=86_400, description="seconds, the longest pause")
    reset_after: float = Field(
        default=600, ge=1, le=86_400, description="seconds of good running that end a row"
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Accept ``no``, ``on-failure``, ``always`` and ``on-failure:5``."""
        if value is False:  # what YAML 1.1 makes of no
            return {"policy": "no"}
        if not isinstance(value, str):
            return value
        policy, colon, retries = value.partition(":")
        known = policy in tuple(RestartWhen)
        if not known or (colon and not (retries.isascii() and retries.isdecimal())):
            raise ValueError("expected no, on-failure or always, or with a limit: on-failure:5")
        return {"policy": policy, **({"retries": int(retries)} if colon else {})}


class OnUnhealthy(StrEnum):
    """What becomes of a VM whose health check fails."""

    NOTHING = "nothing"
    RESTART = "restart"


HEALTH_TEXTS = "agent, tcp:PORT or a URL that starts with http://"


class Health(Frozen):
    """What must hold as long as a VM is ready; without port, url or command: its agent answers."""

    port: int | None = Field(default=None, ge=1, le=65535)
    url: str | None = Field(default=None, max_length=2048, pattern=r"^http://[^\s]*$")
    command: str | None = Field(default=None, max_length=4096, min_length=1)
    interval: float = Field(default=10, ge=0.5, le=3600, description="seconds between checks")
    timeout: float = Field(default=5, ge=0.1, le=300, description="seconds that a check may take")
    retries: int = Field(default=3, ge=1, le=100, description="failures in a row: unhealthy")
    grace: float = Field(
        default=10, ge=0, le=3600, description="seconds after it is ready in which none counts"
    )
    on_unhealthy: OnUnhealthy = OnUnhealthy.NOTHING

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Accept ``agent``, ``tcp:80`` and ``http://HOST/``."""
        if not isinstance(value, str):
            return value
        kind, _, rest = value.partition(":")
        if value == "agent":
            return {}
        if kind == "tcp" and rest.isascii() and rest.isdecimal():
            return {"port": int(rest)}
        if kind == "http":
            return {"url": value}
        raise ValueError(f"expected {HEALTH_TEXTS}, or a mapping with command")

    @model_validator(mode="after")
    def _at_most_one(self) -> Self:
        if sum(check is not None for check in (self.port, self.url, self.command)) > 1:
            raise ValueError("expected one of port, url and command")
        return self

    @property
    def needs_agent(self) -> bool:
        """Whether the guest's agent takes part."""
        return self.port is None and self.url is None

    @property
    def text(self) -> str:
        """The check in words."""
        if self.port is not None:
            return f"port {self.port}"
        if self.url is not None:
            return self.url
        return "its agent" if self.command is None else f"command {self.command}"


class StartWhen(StrEnum):
    """Whether a VM is started when its host starts; last: if it ran when the host went down."""

    LAST = "last"
    YES = "yes"
    NO = "no"


class Autostart(Frozen):
    """A VM's part in the start of its host: lower ``order`` first.

    VMs of one order start together; those of the next order start ``delay`` seconds after these
    are ready or have failed.
    """

    start: StartWhen = StartWhen.LAST
    order: int = Field(default=100, ge=0, le=10_000)
    delay: float = Field(default=0, ge=0, le=3600, description="seconds before the next order")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Accept ``last``, ``yes`` and ``no``."""
        if isinstance(value, bool):
            return {"start": "yes" if value else "no"}
        if not isinstance(value, str):
            return value
        if value not in tuple(StartWhen):
            raise ValueError("expected last, yes or no, or a mapping with start, order and delay")
        return {"start": value}


class WatchdogAction(StrEnum):
    """What becomes of a guest that feeds its watchdog no more."""

    NONE = "none"
    RESET = "reset"
    STOP = "stop"


class Watchdog(Frozen):
    """A watchdog device: none, one that resets a guest that hangs, or one that ends it.

    One that is ended has failed: its restart policy says what follows.
    """

    action: WatchdogAction = WatchdogAction.NONE
    timeout: int = Field(default=30, ge=5, le=600, description="seconds, asked of Hanok's guests")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Accept ``none``, ``reset``, ``stop`` and ``reset:60``."""
        if not isinstance(value, str):
            return value
        action, colon, seconds = value.partition(":")
        known = action in tuple(WatchdogAction)
        if not known or (colon and not (seconds.isascii() and seconds.isdecimal())):
            raise ValueError("expected none, reset or stop, or with seconds: reset:60")
        return {"action": action, **({"timeout": int(seconds)} if colon else {})}

    @property
    def wanted(self) -> bool:
        """Whether there is to be such a device."""
        return self.action is not WatchdogAction.NONE


class RestartsSeen(Frozen):
    """What the restart policy has done since a user last started the VM.

    ``streak``: restarts since it last ran well. ``next``: when the next one is due; null: none is.
    ``last``: when the last one was. ``reason``: why. Times are seconds since the epoch.
    """

    streak: int = 0
    total: int = 0
    next: float | None = None
    last: float | None = None
    reason: str | None = None


class HealthState(StrEnum):
    """What the health check says."""

    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class HealthSeen(Frozen):
    """What the health check said last that was new, since when (epoch), and what it saw."""

    state: HealthState
    since: float
    message: str = ""
