"""Recipes: which images there are, what their ids depend on, what is refused."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import InvalidInput, Unsupported
from hanok.images import recipes
from hanok.images.builder import kernels_of, mmdebstrap_argv
from hanok.images.recipes import guest_files, known_refs, resolve
from hanok.images.sandbox import Sandbox
from hanok.model.architecture import Arch

_POLICY = re.compile(r"[a-z0-9][a-z0-9+.-]+", re.A)


def test_known_images() -> None:
    assert known_refs() == (
        *("micro", "debian:11", "debian:12", "debian:13", "lab", "lab-xen", "micro:arm64"),
    )
    assert [resolve(ref).ref for ref in known_refs()] == list(known_refs())


def test_plain_debian_is_debian_12() -> None:
    assert resolve("debian") == resolve("debian:12")


def test_micro_of_another_architecture_is_another_image() -> None:
    arm64 = resolve("micro:arm64")
    assert arm64.architecture is Arch.ARM64
    assert arm64.kind == "micro"
    assert "linux-image-cloud-arm64" in arm64.base_packages
    assert {"assemble-here", "applets", "inittab"} <= guest_files(arm64.files_kind).keys()
    assert arm64.id != resolve("micro").id
    argv = mmdebstrap_argv(arm64, Sandbox(Path("/b"), Path("/b/scratch"), None, 0))
    assert "--architectures=arm64" in argv
    assert not [word for word in argv if "chroot" in word], "nothing of it can be run here"
    (kernel,) = kernels_of(arm64)
    assert kernel.cmdline.startswith("console=ttyAMA0")


def test_micro_is_that_of_the_hosts_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("micro:amd64") == resolve("micro")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert resolve("micro") == resolve("micro:arm64")
    assert resolve("micro:amd64").architecture is Arch.AMD64


def test_order_and_repetition_of_packages_do_not_matter() -> None:
    one = resolve("debian:12", ("nginx", "curl", "nginx"))
    assert one == resolve("debian:12", ("curl", "nginx"))
    assert one.packages == ("curl", "nginx")


def test_package_that_every_image_has_changes_nothing() -> None:
    assert resolve("debian:12", ("sudo",)).id == resolve("debian:12").id


def test_ids_differ_by_what_is_in_the_image() -> None:
    ids = {
        resolve(ref, packages).id
        for ref in ("debian:11", "debian:12", "debian:13")
        for packages in ((), ("nginx",), ("nginx", "curl"))
    }
    assert len(ids) == 9
    assert all(re.fullmatch("[0-9a-f]{16}", found) for found in ids)


def test_id_depends_on_builder_and_guest_files(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resolve("micro").id
    monkeypatch.setattr(recipes, "BUILDER_REVISION", recipes.BUILDER_REVISION + 1)
    after = resolve("micro").id
    assert after != before
    changed = {**guest_files("micro"), "boot": b"#!/bin/sh\n"}
    monkeypatch.setattr(recipes, "guest_files", lambda kind: changed)
    assert resolve("micro").id not in (before, after)


def test_unknown_image_names_the_nearest_and_all() -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve("debain:12")
    assert caught.value.field == "image"
    assert caught.value.hint == "did you mean debian:12?"
    assert caught.value.expected is not None
    assert all(ref in caught.value.expected for ref in known_refs())


def test_micro_takes_no_packages() -> None:
    with pytest.raises(Unsupported) as caught:
        resolve("micro", ("nginx",))
    assert caught.value.field == "packages"


@pytest.mark.parametrize(
    "name",
    [
        "",
        "-",
        "a b",
        "nginx-",
        "Nginx",
        "a;b",
        "$(id)",
        "a,b",
        "../x",
        "./x.deb",
        "?all",
        "a\n",
        "é",
    ],
)
def test_what_is_no_package_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        resolve("debian:12", (name,))
    assert caught.value.field == "packages"


@given(st.text(max_size=12))
def test_only_names_by_policy_pass(name: str) -> None:
    try:
        recipe = resolve("debian:12", (name,))
    except InvalidInput:
        return
    assert _POLICY.fullmatch(name)
    assert not name.endswith("-")
    assert name in (*recipe.packages, *recipe.base_packages)


@given(st.from_regex(r"\A[a-z0-9][a-z0-9+.-]{0,20}[a-z0-9+.]\Z"))
def test_every_usual_name_passes(name: str) -> None:
    assert resolve("debian:12", (name,)).id == resolve("debian:12", (name, name)).id
