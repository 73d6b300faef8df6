"""Bad input gets an error that names the field, what was expected and the nearest known key."""

from __future__ import annotations

import pytest

from hanok.errors import InvalidInput
from hanok.model.validation import validated
from hanok.model.vm import Mode, VmSpec
from hanok.units import GIB, MIB

GOOD = {"name": "web", "image": "debian:12"}


def _refusal(prefix: str = "", **fields: object) -> InvalidInput:
    with pytest.raises(InvalidInput) as caught:
        validated(VmSpec, {**GOOD, **fields}, prefix)
    return caught.value


def test_good_input_with_units() -> None:
    spec = validated(VmSpec, {**GOOD, "memory": "1.5G", "disk": "8GiB", "mode": "full"})
    assert (spec.memory, spec.disk, spec.mode) == (GIB + 512 * MIB, 8 * GIB, Mode.FULL)


def test_size() -> None:
    error = _refusal("vms.web", memory="lots")
    assert error.field == "vms.web.memory"
    assert error.message == "'lots' is not a size"
    assert error.expected == "a number with K, M, G or T, such as 512M or 4G"


def test_limits_of_a_size_are_told_as_sizes() -> None:
    assert _refusal(memory="4M").expected == "at least 64 MiB"
    assert _refusal(tcg_buffer="4G").expected == "at most 2 GiB"
    assert _refusal(memory=[1]).expected == "a size such as 512M or 4G"


def test_numbers() -> None:
    assert _refusal(cpus="two").expected == "a whole number"
    assert _refusal(cpus=0).expected == "at least 1"
    assert _refusal(cpus=1000).expected == "at most 256"
    assert _refusal(ready={"timeout": float("nan")}).field == "ready.timeout"


def test_entries_of_a_list_are_named_by_their_place() -> None:
    error = _refusal(publish=["8080:80", "web:80"])
    assert error.field == "publish.1"
    assert error.expected == "HOST:GUEST or ADDRESS:HOST:GUEST, such as 8080:80"
    assert _refusal(packages=["nginx", "rm -rf"]).field == "packages.1"
    assert _refusal(publish=["99999:80"]).field == "publish.0.host_port"
    assert _refusal(publish="8080:80").expected == "a list"


def test_unknown_key_names_the_nearest() -> None:
    error = _refusal(memroy="1G")
    assert error.field == "memroy"
    assert error.hint == "did you mean 'memory'?"
    assert "memory" in (error.expected or "")
    inner = _refusal("vms.web", ready={"prot": 80})
    assert (inner.field, inner.hint) == ("vms.web.ready.prot", "did you mean 'port'?")
    assert _refusal(zzz=1).hint is None


def test_enumeration_names_what_there_is() -> None:
    error = _refusal(mode="parra")
    assert error.expected == "one of full, para, hybrid, auto"
    assert error.hint == "did you mean 'para'?"


def test_names() -> None:
    assert "lower-case" in (_refusal(name="Web Server").expected or "")
    assert _refusal(name="web\n").field == "name"
    assert _refusal(networks=["ok", "-"]).field == "networks.1"
    assert _refusal(image="Debian 12").expected == "an image such as micro or debian:12"


def test_missing_field() -> None:
    with pytest.raises(InvalidInput) as caught:
        validated(VmSpec, {"name": "web"})
    assert (caught.value.field, caught.value.message) == ("image", "image is missing")
    assert caught.value.expected == "an image such as micro or debian:12"


def test_several_errors_are_counted_and_named() -> None:
    error = _refusal(cpus=0, memory="lots", disk="none", mode="x", publish=[1])
    assert error.field == "cpus"
    assert error.message.endswith("(and 4 more errors: memory, disk, mode, …)")


def test_secrets_are_not_shown() -> None:
    error = _refusal(user_data="password: hunter2")
    assert "hunter2" not in f"{error.message} {error.expected} {error.hint}"
    error = _refusal(user_data=["hunter2"])
    assert "hunter2" not in f"{error.message} {error.expected} {error.hint}"


@pytest.mark.parametrize("data", [None, [], "x", 3, {1: 2}, {"name": 10**5000}])
def test_what_is_no_mapping(data: object) -> None:
    with pytest.raises(InvalidInput):
        validated(VmSpec, data)
