"""What would be changed on a server: plans are pure."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hanok.errors import HanokError, HostError, InvalidInput, Unsupported
from hanok.preparation.apply import variables
from hanok.preparation.facts import GRUB_CFG, GRUBENV, Server
from hanok.preparation.plan import (
    DROP_IN,
    ENTRY,
    OWN_PATHS,
    PATHS,
    UNIT,
    Command,
    FileChange,
    Plan,
    Wanted,
    plan_type1,
    plan_type2,
)
from hanok.units import GIB, MIB

PLAIN = Server(
    system="debian",
    version="12",
    architecture="amd64",
    is_root=True,
    secure_boot=False,
    on_xen=False,
    memory=16 * GIB,
    cpus=8,
    files={**dict.fromkeys(PATHS), GRUB_CFG: b'set default="0"\n', GRUBENV: b"# GRUB"},
)
DROP_IN_TEXT = """\
# Made by 'hanok host prepare --type 1'; '--type 2' removes it.
# Debian's own entry for Xen has no fall-back: it does not become the default.
XEN_OVERRIDE_GRUB_DEFAULT=0
GRUB_CMDLINE_XEN_DEFAULT="$GRUB_CMDLINE_XEN_DEFAULT dom0_mem=1638M,max:1638M dom0_max_vcpus=4"
HANOK_DOM0_CMDLINE="panic=30"
HANOK_LINUX_DEFAULT="${GRUB_DEFAULT:-0}"
export HANOK_DOM0_CMDLINE HANOK_LINUX_DEFAULT
GRUB_DEFAULT=hanok-xen
"""


def files_of(plan: Plan) -> dict[str, FileChange]:
    return {step.path: step for step in plan.steps if isinstance(step, FileChange)}


def commands_of(plan: Plan) -> list[str]:
    return [" ".join(step.argv) for step in plan.steps if isinstance(step, Command)]


def after(server: Server, plan: Plan) -> Server:
    """The server once a plan was carried out, as far as a plan can know."""
    files = dict(server.files)
    packages = set(server.packages)
    for step in plan.steps:
        if isinstance(step, FileChange):
            assert step.old == files[step.path]
            files[step.path] = step.new
        elif "install" in step.argv:
            packages |= set(step.argv[step.argv.index("install") + 1 :])
        elif "purge" in step.argv:
            packages -= set(step.argv[step.argv.index("purge") + 1 :])
    has_entry = files[ENTRY] is not None
    files[GRUB_CFG] = (
        b"set default=\"hanok-xen\" 'hanok-xen'" if has_entry else b'set default="0"\n'
    )
    return replace(server, files=files, packages=frozenset(packages))


def test_a_plain_server_gets_xen_and_an_entry_with_a_fall_back() -> None:
    plan = plan_type1(PLAIN, Wanted())
    files = files_of(plan)
    assert set(files) == set(OWN_PATHS)
    assert files[DROP_IN].new == DROP_IN_TEXT.encode()
    assert files[ENTRY].mode == 0o755
    assert commands_of(plan) == [
        "apt-get -y --no-install-recommends -o Dpkg::Options::=--force-confold install"
        " xen-system-amd64 qemu-system-xen isolinux syslinux-common",
        "systemctl daemon-reload",
        "systemctl enable hanok-xen-healthy.service",
        "grub-editenv /boot/grub/grubenv unset hanok_xen_try",
        "update-grub",
    ]
    assert plan.reboot[0] == "Nothing changes until this server reboots."
    assert "Dom0, with this system, has 1.6 GiB and 4 vCPUs" in plan.reboot[1]


def test_files_come_before_packages_whose_own_scripts_run_update_grub() -> None:
    kinds = [type(step) for step in plan_type1(PLAIN, Wanted()).steps]
    assert kinds.index(Command) == len(OWN_PATHS)


def test_the_plan_is_shown_as_a_diff() -> None:
    shown = plan_type1(PLAIN, Wanted(memory=2 * GIB, cpus=2)).diff()
    assert f"--- /dev/null\n+++ {DROP_IN}\n" in shown
    assert "+GRUB_DEFAULT=hanok-xen\n" in shown
    assert "dom0_mem=2048M,max:2048M dom0_max_vcpus=2" in shown
    assert "# GRUB's entries are made again\n$ update-grub\n" in shown


def test_a_serial_console_goes_through_xen() -> None:
    text = files_of(plan_type1(replace(PLAIN, serial=115200), Wanted()))[DROP_IN].new
    assert text is not None
    assert b"com1=115200,8n1 console=com1,vga" in text
    assert b'HANOK_DOM0_CMDLINE="panic=30 console=tty0 console=hvc0"' in text


def test_a_prepared_server_has_nothing_to_change() -> None:
    ready = after(PLAIN, plan_type1(PLAIN, Wanted()))
    assert plan_type1(ready, Wanted()).steps == ()
    changed = plan_type1(ready, Wanted(cpus=1))
    assert set(files_of(changed)) == {DROP_IN}
    assert "-GRUB_CMDLINE_XEN_DEFAULT" in changed.diff()


def test_after_a_start_that_failed_it_is_tried_again_when_asked() -> None:
    ready = after(PLAIN, plan_type1(PLAIN, Wanted()))
    failed = replace(ready, files={**ready.files, GRUBENV: b"# GRUB\nhanok_xen_try=1\n###"})
    assert commands_of(plan_type1(failed, Wanted())) == [
        "grub-editenv /boot/grub/grubenv unset hanok_xen_try"
    ]
    # In Dom0 that is the start under way, which the unit will speak for.
    assert plan_type1(replace(failed, on_xen=True), Wanted()).steps == ()


@given(st.sets(st.sampled_from(OWN_PATHS)), st.booleans(), st.booleans())
def test_whatever_was_done_of_it_the_rest_is_planned(
    done: set[str], has_packages: bool, has_grub: bool
) -> None:
    whole = after(PLAIN, plan_type1(PLAIN, Wanted()))
    files = {path: whole.files[path] if path in done else None for path in OWN_PATHS}
    cfg = whole.files[GRUB_CFG] if has_grub else PLAIN.files[GRUB_CFG]
    half = replace(
        PLAIN,
        files={**PLAIN.files, **files, GRUB_CFG: cfg},
        packages=whole.packages if has_packages else PLAIN.packages,
    )
    plan = plan_type1(half, Wanted())
    ready = after(half, plan)
    assert {path: ready.files[path] for path in OWN_PATHS} == {
        path: whole.files[path] for path in OWN_PATHS
    }
    assert ready.packages == whole.packages
    if plan.steps:
        assert commands_of(plan)[-1] == "update-grub"


@given(
    st.dictionaries(st.sampled_from(OWN_PATHS), st.none() | st.binary(max_size=20)),
    st.frozensets(st.sampled_from(("vim", "xen-system-amd64", "qemu-system-xen"))),
)
def test_undo_restores_what_was(was: dict[str, bytes | None], packages: frozenset[str]) -> None:
    before = replace(PLAIN, files={**PLAIN.files, **was}, packages=packages)
    saved = {path: FileChange(path, old, None) for path, old in before.files.items()}
    ready = after(before, plan_type1(before, Wanted()))
    added = tuple(sorted(ready.packages - packages))
    undone = after(ready, plan_type2(ready, saved, added))
    assert {path: undone.files[path] for path in OWN_PATHS} == {
        path: before.files[path] for path in OWN_PATHS
    }
    assert undone.packages == packages


@given(st.integers(0, 64 * GIB), st.integers(-2, 64), st.integers(0, 64 * GIB), st.integers(1, 32))
def test_dom0_always_leaves_room_for_guests(memory: int, cpus: int, total: int, has: int) -> None:
    server = replace(PLAIN, memory=total, cpus=has)
    try:
        plan = plan_type1(server, Wanted(memory, cpus))
    except InvalidInput as error:
        assert error.field in ("dom0_memory", "dom0_cpus")  # noqa: PT017
        return
    text = files_of(plan)[DROP_IN].new
    assert text is not None
    found = re.search(rb"dom0_mem=(\d+)M,max:\1M dom0_max_vcpus=(\d+)", text)
    assert found is not None
    assert 512 <= int(found[1]) <= (total - 256 * MIB) // MIB
    assert 1 <= int(found[2]) <= has


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_root": False}, "only root"),
        ({"system": "alpine"}, "this is alpine"),
        ({"version": "10"}, "debian 10"),
        ({"architecture": "arm64"}, "arm64"),
        ({"missing": ("update-grub",)}, "no update-grub"),
        ({"secure_boot": True}, "Secure Boot"),
        ({"grubenv_problem": "/boot/grub is on lvm"}, "is on lvm"),
        ({"files": dict.fromkeys(PATHS)}, "another boot loader"),
        ({"memory": 700 * MIB}, "Dom0 cannot have"),
    ],
)
def test_servers_that_cannot_come_back_by_themselves_are_refused(
    change: dict[str, object], message: str
) -> None:
    with pytest.raises(HanokError, match=message) as caught:
        plan_type1(replace(PLAIN, **change), Wanted())  # type: ignore[arg-type]
    assert isinstance(caught.value, HostError | Unsupported | InvalidInput)
    assert caught.value.hint or caught.value.expected


def test_debian_11_has_its_device_model_in_another_package() -> None:
    assert "qemu-system-x86" in commands_of(plan_type1(replace(PLAIN, version="11"), Wanted()))[0]


def test_the_unit_tells_grub_only_when_xen_answers() -> None:
    unit = files_of(plan_type1(PLAIN, Wanted()))[UNIT].new
    assert unit is not None
    assert b"ExecCondition=/usr/sbin/xl info" in unit


def test_an_environment_block_is_compared_by_what_it_says() -> None:
    block = b"# GRUB Environment Block\n# WARNING: ...\nnext_entry=x\n" + b"#" * 900
    assert variables(block) == [b"next_entry=x"]
    assert variables(b"# GRUB Environment Block\n" + b"#" * 999) == []
