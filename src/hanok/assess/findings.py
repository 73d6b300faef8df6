"""What is worth telling about data: counted by code, with the first case in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from hanok.model.usage import Finding, Metric, by_metric

GAPS = "gaps"
_LONGEST = 480


class Notes:
    """Findings as they come: of each code the number and the first text are kept."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def add(self, code: str, text: str, count: int = 1) -> None:
        """Count ``code``; ``text`` says what it is about, if it is the first."""
        before, first = self._found.get(code, (0, text))
        self._found[code] = (before + count, first)

    def extend(self, findings: Iterable[Finding]) -> None:
        """Count all of ``findings``."""
        for one in findings:
            self.add(one.code, one.text, one.count)

    def most(self, findings: Iterable[Finding]) -> None:
        """Count ``findings`` where they are more than what was found so far: not twice."""
        for one in findings:
            before, first = self._found.get(one.code, (0, one.text))
            self._found[one.code] = (max(before, one.count), first)

    def count(self, code: str) -> int:
        """Return how often ``code`` was found."""
        return self._found.get(code, (0, ""))[0]

    def findings(self) -> tuple[Finding, ...]:
        """Return all, by code."""
        return tuple(
            Finding(code=code, count=count, text=text[:_LONGEST])
            for code, (count, text) in sorted(self._found.items())
        )


def with_gaps(
    findings: Iterable[Finding], samples: Mapping[Metric, Sequence[float | None]]
) -> tuple[Finding, ...]:
    """Return ``findings`` with the one about gaps made anew from ``samples``."""
    kept = [one for one in findings if one.code != GAPS]
    counts = {metric: samples[metric].count(None) for metric in by_metric(samples)}
    missing = {metric: count for metric, count in counts.items() if count}
    if missing:
        length = len(next(iter(samples.values())))
        text = ", ".join(f"{metric} {count}" for metric, count in missing.items())
        kept.append(
            Finding(
                code=GAPS,
                count=max(missing.values()),
                text=f"intervals of {length} in which nothing was measured: {text}",
            )
        )
    return tuple(sorted(kept, key=lambda one: one.code))
