"""From what mmdebstrap and apt print to a message and a fraction. Pure."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable

Report = Callable[[str, float | None], None]

_KEPT_LINES = 15
# The phases of mmdebstrap 1.3 and later, with the share of the build that is over when they begin.
_PHASES = (
    ("I: running apt-get update", "reading the package lists", 0.02),
    ("I: downloading packages", "downloading the base system", 0.06),
    ("I: extracting archives", "unpacking the base system", 0.16),
    ("hanok: fetching", "downloading packages", 0.20),
    ("I: installing essential", "installing the base system", 0.30),
    ("I: installing remaining", "installing packages", 0.38),
    ("hanok: assembling", "setting the guest up", 0.82),
    ("hanok: packing", "writing the disk", 0.90),
)
_UNTRUSTED_FROM = ("I: installing essential", "hanok: assembling")
_NEW_PACKAGES = re.compile(r"(\d+) newly installed")
_STEP = re.compile(r"(Unpacking|Setting up) ([a-z0-9][a-z0-9+.-]*)")
_DEB = re.compile(r"([0-9a-f]{64}) [ *].*/([A-Za-z0-9][A-Za-z0-9+.~%_-]*\.deb)")
_NOISE = re.compile(r"\(Reading database|debconf:|W: |\s*$")


class BuildProgress:
    """Reads the lines of a build and reports; the fraction never goes back."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._fraction = 0.0
        self._begin = 0.0
        self._end = 1.0
        self._steps = 0
        self._expected = 0
        self._debs: dict[str, str] = {}
        self._is_trusted = True
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)

    @property
    def tail(self) -> str:
        """The last lines that say something, for the error of a failed build."""
        return "\n".join(self._lines)

    @property
    def debs(self) -> dict[str, str]:
        """SHA-256 by file name of the packages that apt has checked."""
        return dict(self._debs)

    def feed(self, line: str) -> None:
        """Take one line of output."""
        if _NOISE.match(line) is None:
            self._lines.append(line[:300])
        # What is printed after the first maintainer script may be anybody's.
        self._is_trusted = self._is_trusted and not line.startswith(_UNTRUSTED_FROM)
        if self._is_trusted and (deb := _DEB.fullmatch(line)):
            self._debs[deb[2]] = deb[1]
            return
        for number, (prefix, message, begin) in enumerate(_PHASES):
            if line.startswith(prefix):
                self._begin = begin
                self._end = _PHASES[number + 1][2] if number + 1 < len(_PHASES) else 1.0
                self._steps = 0
                self._tell(message, begin)
                return
        if found := _NEW_PACKAGES.search(line):
            self._expected = 2 * int(found[1])
        elif found := _STEP.match(line):
            self._steps += 1
            done = min(1.0, self._steps / self._expected) if self._expected else 0.0
            self._tell(
                f"{found[1].lower()} {found[2]}", self._begin + done * (self._end - self._begin)
            )

    def _tell(self, message: str, fraction: float) -> None:
        self._fraction = max(self._fraction, round(fraction, 3))
        self._report(message, self._fraction)
