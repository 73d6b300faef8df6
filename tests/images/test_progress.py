"""From a build's output to progress and to the reason of a failure."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from hanok.images.progress import BuildProgress

_SHA = "ab" * 32
_LINES = [
    "I: running apt-get update...",
    "I: downloading packages with apt...",
    "I: extracting archives...",
    "hanok: fetching",
    f"{_SHA}  /x/out/debs/nginx_1.22.1-9_amd64.deb",
    "I: installing essential packages...",
    "0 upgraded, 2 newly installed, 0 to remove and 0 not upgraded.",
    "Unpacking nginx (1.22.1-9) ...",
    "Setting up nginx (1.22.1-9) ...",
    "hanok: assembling",
    "hanok: packing",
]


def test_a_build_goes_forward_to_its_end() -> None:
    told: list[tuple[str, float | None]] = []
    progress = BuildProgress(lambda message, fraction: told.append((message, fraction)))
    for line in _LINES:
        progress.feed(line)
    fractions = [fraction for _, fraction in told if fraction is not None]
    assert fractions == sorted(fractions)
    assert "setting up nginx" in [message for message, _ in told]
    assert told[-1] == ("writing the disk", 0.9)


def test_packages_are_believed_only_before_foreign_code_runs() -> None:
    progress = BuildProgress(lambda message, fraction: None)
    for line in [*_LINES, f"{'cd' * 32}  /x/out/debs/evil_1_amd64.deb"]:
        progress.feed(line)
    assert progress.debs == {"nginx_1.22.1-9_amd64.deb": _SHA}


def test_a_package_cannot_name_another_folder() -> None:
    progress = BuildProgress(lambda message, fraction: None)
    for name in ("..deb", ".deb", "a/../b c.deb"):
        progress.feed(f"{_SHA}  /x/{name}")
    assert progress.debs == {}


def test_tail_keeps_the_last_lines_without_noise() -> None:
    progress = BuildProgress(lambda message, fraction: None)
    for number in range(100):
        progress.feed(f"line {number}")
        progress.feed("")
    assert progress.tail.splitlines() == [f"line {number}" for number in range(85, 100)]


@given(st.lists(st.text(max_size=60)))
def test_any_output_gives_fractions_that_grow(lines: list[str]) -> None:
    told: list[float] = []
    progress = BuildProgress(lambda message, fraction: told.append(fraction or 0))
    for line in lines:
        progress.feed(line)
    assert told == sorted(told)
    assert all(0 <= fraction <= 1 for fraction in told)
