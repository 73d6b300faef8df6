"""What is left of Dom0 before one more domain."""

from __future__ import annotations

import pytest

from hanok.errors import HostError
from hanok.hypervisors.xen.overhead import LEAST_IN_DOM0, check_dom0
from hanok.units import MIB


def test_a_dom0_with_just_enough_memory_takes_one_more() -> None:
    check_dom0(LEAST_IN_DOM0)


def test_a_dom0_short_of_memory_says_how_much_and_what_to_do() -> None:
    with pytest.raises(HostError) as caught:
        check_dom0(40 * MIB)
    assert "40 MiB" in caught.value.message
    assert "at least 64 MiB" in (caught.value.expected or "")
    assert "--dom0-memory" in (caught.value.hint or "")
