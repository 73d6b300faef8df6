"""What a server was measured to use, over time: the file format ``NAME.usage.json``.

One server a file. Time is cut into intervals of the same length; sample number n of every metric is
about ``start + n * interval`` to ``start + (n + 1) * interval``. Files of several servers line up:
what Hanok writes starts at a whole multiple of the interval since 1970.

| metric | unit | of |
|---|---|---|
| ``cpu`` | cores in use | the mean of the interval |
| ``memory`` | bytes in use, that no program could be given | the mean of what was seen in it |
| ``disk_read`` ``disk_write`` | bytes a second | the mean of the interval |
| ``network_receive`` ``network_send`` | bytes a second | the mean of the interval |
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    Field,
    StringConstraints,
    field_serializer,
    model_validator,
)

from hanok.model.base import Frozen

# A month at 5 s; six metrics of it are about 25 MB of JSON.
MAX_SAMPLES = 600_000
MAX_INTERVAL = 86_400.0
MAX_CORES = 65_536
MAX_BYTES = 1 << 60
SERVER_PATTERN = r"^[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9_-])?$"
_EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)
_LATEST = datetime(2200, 1, 1, tzinfo=UTC)


class Metric(StrEnum):
    """What is measured of a server."""

    CPU = "cpu"
    MEMORY = "memory"
    DISK_READ = "disk_read"
    DISK_WRITE = "disk_write"
    NETWORK_RECEIVE = "network_receive"
    NETWORK_SEND = "network_send"

    @property
    def limit(self) -> float:
        """The largest value that can be true, in the metric's unit; above it is nonsense."""
        return float({"cpu": MAX_CORES, "memory": MAX_BYTES}.get(self.value, MAX_RATE))


MAX_RATE = 1e13  # bytes a second; a thousand network cards of 80 Gbit/s


def _in_utc(moment: datetime) -> datetime:
    if not _EARLIEST <= moment < _LATEST:
        raise ValueError("expected a time from 1990 to 2199")
    return moment.astimezone(UTC)


# A name that is a file name everywhere, is no option and is no formula in a spreadsheet.
ServerName = Annotated[str, StringConstraints(pattern=SERVER_PATTERN)]
Moment = Annotated[AwareDatetime, AfterValidator(_in_utc)]
Sample = Annotated[float, Field(strict=True, ge=0, le=MAX_BYTES, allow_inf_nan=False)]
Code = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z-]{0,39}$")]


class Finding(Frozen):
    """Something about the data that a person should know: what, how often, and in words."""

    code: Code
    count: int = Field(ge=0)
    text: str = Field(max_length=500)


class Sizes(Frozen):
    """What the server has; None where nobody said. ``memory`` and ``disk`` are bytes."""

    cores: int | None = Field(default=None, ge=1, le=MAX_CORES)
    memory: int | None = Field(default=None, ge=1, le=MAX_BYTES)
    disk: int | None = Field(default=None, ge=1, le=MAX_BYTES)


class Usage(Frozen):
    """The measured use of one server. A sample of None is a gap: nobody knows.

    ``interval`` is in seconds; ``source`` says who measured.
    """

    format: Literal[1] = 1
    server: ServerName
    start: Moment
    interval: float = Field(gt=0, le=MAX_INTERVAL, allow_inf_nan=False)
    samples: dict[Metric, Annotated[tuple[Sample | None, ...], Field(max_length=MAX_SAMPLES)]]
    sizes: Sizes = Sizes()
    source: str = Field(default="", max_length=200)
    findings: tuple[Finding, ...] = Field(default=(), max_length=1000)

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        lengths = {metric.value: len(series) for metric, series in self.samples.items()}
        if len(set(lengths.values())) > 1:
            told = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise ValueError(f"series of different lengths ({told}); expected the same for all")
        for metric, series in self.samples.items():
            limit = metric.limit
            if any(value is not None and value > limit for value in series):
                raise ValueError(f"{metric} is too large; expected at most {limit:g}")
        if self.start + timedelta(seconds=self.length * self.interval) > _LATEST:
            raise ValueError("it ends too late; expected samples of times before 2200")
        return self

    @field_serializer("samples", when_used="json")
    def _shortly(
        self, samples: Mapping[Metric, tuple[float | None, ...]]
    ) -> dict[str, list[float | int | None]]:
        """Write whole numbers without ``.0``: two of eleven characters in most files."""
        return {
            metric.value: [
                value if value is None or not value.is_integer() else int(value)
                for value in samples[metric]
            ]
            for metric in by_metric(samples)
        }

    @property
    def length(self) -> int:
        """The number of intervals."""
        return len(next(iter(self.samples.values()), ()))

    @property
    def end(self) -> datetime:
        """The end of the last interval."""
        return self.start + timedelta(seconds=self.length * self.interval)

    def gaps(self, metric: Metric) -> int:
        """Return in how many intervals nobody knows ``metric``; all, where it was not measured."""
        series = self.samples.get(metric)
        return self.length if series is None else series.count(None)


def by_metric(samples: Mapping[Metric, object]) -> list[Metric]:
    """Return the metrics of ``samples`` in the order of :class:`Metric`."""
    return [metric for metric in Metric if metric in samples]
