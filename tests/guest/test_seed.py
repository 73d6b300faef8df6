"""The seed image: read back, the same for the same input, and user data that is refused."""

from __future__ import annotations

import email
import io
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
import yaml
from pycdlib import PyCdlib

from hanok.errors import InvalidInput, Unsupported
from hanok.guest.seed import SeedData, build_seed

DATA = SeedData(
    instance_id="7d9f4b1e-8a52-4f0e-9a52-0f9b8f3d7a11",
    host_name="web",
    authorized_keys=("ssh-ed25519 AAAA hanok",),
    host_key_private="-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n",
    host_key_public="ssh-ed25519 BBBB hanok",
    ssh_user="root",
)
SCRIPT = "#!/bin/sh\necho 'größer' > /etc/motd\n"


def read_files(image: bytes, facade: str = "rr") -> dict[str, bytes]:
    """Return the files of an image by the names of Rock Ridge or Joliet."""
    iso = PyCdlib()
    iso.open_fp(io.BytesIO(image))
    found = {}
    try:
        paths: dict[str, Any] = {f"{facade}_path": "/"}
        for child in iso.list_children(**paths):
            if child is None or child.is_dir():
                continue
            name = (
                child.rock_ridge.name().decode()
                if facade == "rr"
                else child.file_identifier().decode("utf-16-be")
            )
            target = io.BytesIO()
            where: dict[str, Any] = {f"{facade}_path": f"/{name}"}
            iso.get_file_from_iso_fp(target, **where)
            found[name] = target.getvalue()
    finally:
        iso.close()
    return found


def parts_of(image: bytes) -> list[Message]:
    """Return the parts of an image's user-data archive."""
    archive = email.message_from_bytes(read_files(image)["user-data"])
    assert archive.get_content_type() == "multipart/mixed"
    parts = archive.get_payload()
    assert isinstance(parts, list)
    return [part for part in parts if isinstance(part, Message)]


def text_of(part: Message) -> str:
    """Return a part's text, its transfer encoding undone."""
    content = part.get_payload(decode=True)
    assert isinstance(content, bytes)
    return content.decode()


def config_of(image: bytes) -> dict[str, Any]:
    """Return Hanok's own cloud-config in an image."""
    found = yaml.safe_load(text_of(parts_of(image)[-1]))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("facade", ["rr", "joliet"])
def test_names_are_those_that_cloud_init_looks_for(facade: str) -> None:
    files = read_files(build_seed(DATA), facade)
    assert set(files) == {"meta-data", "user-data"}
    meta = yaml.safe_load(files["meta-data"])
    assert meta == {"instance-id": DATA.instance_id, "local-hostname": "web"}


def test_a_network_config_is_there_only_when_wanted() -> None:
    image = build_seed(replace(DATA, network_config="version: 2\n"))
    assert read_files(image)["network-config"] == b"version: 2\n"


def test_the_label_is_what_blkid_and_cloud_init_search(tmp_path: Path) -> None:
    path = tmp_path / "seed.iso"
    path.write_bytes(build_seed(DATA))
    done = subprocess.run(
        ["/usr/sbin/blkid", "-p", "-o", "export", str(path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "LABEL=cidata" in done.stdout.splitlines()
    assert "TYPE=iso9660" in done.stdout.splitlines()


@pytest.fixture
def time_zone() -> Iterator[pytest.MonkeyPatch]:
    """Undo what a test does to the clock and the time zone of this process."""
    with pytest.MonkeyPatch.context() as patch:
        yield patch
    time.tzset()


def test_the_same_input_gives_the_same_bytes_at_any_time(time_zone: pytest.MonkeyPatch) -> None:
    first = build_seed(replace(DATA, user_data=SCRIPT))
    for now, zone in ((1.0, "UTC"), (1_000_000_000.0, "Asia/Seoul"), (4e9, "America/Lima")):
        time_zone.setattr("time.time", lambda now=now: now)
        time_zone.setenv("TZ", zone)
        time.tzset()
        assert build_seed(replace(DATA, user_data=SCRIPT)) == first
    assert build_seed(replace(DATA, host_name="db")) != first


def test_hanoks_part_sets_name_keys_and_leaves_packages_alone() -> None:
    config = config_of(build_seed(DATA))
    assert config["hostname"] == "web"
    assert config["package_upgrade"] is False
    assert config["package_update"] is False
    assert config["apt"] == {"preserve_sources_list": True}
    assert config["ssh_keys"]["ed25519_private"] == DATA.host_key_private
    assert config["ssh_keys"]["ed25519_public"] == DATA.host_key_public
    assert config["users"] == [
        "default",
        {"name": "root", "ssh_authorized_keys": ["ssh-ed25519 AAAA hanok"]},
    ]
    assert config["disable_root"] is False


def test_a_script_and_hanoks_part_are_both_in_the_archive() -> None:
    script, ours = parts_of(build_seed(replace(DATA, user_data=SCRIPT)))
    assert script.get_content_type() == "text/x-shellscript"
    assert text_of(script) == SCRIPT
    assert ours.get_content_type() == "text/cloud-config"


def test_a_users_cloud_config_comes_first_and_as_it_was_written() -> None:
    text = "#cloud-config\n# mine\npackages: [nginx]\n"
    user, ours = parts_of(build_seed(replace(DATA, user_data=text)))
    assert user.get_content_type() == "text/cloud-config"
    assert text_of(user) == text
    assert yaml.safe_load(text_of(ours))["merge_how"][0]["settings"] == [
        "no_replace",
        "recurse_list",
    ]


def test_the_keys_that_a_user_gave_the_same_account_are_kept() -> None:
    text = "#cloud-config\nusers:\n- name: admin\n  ssh_authorized_keys: [ssh-rsa CCCC me]\n- bob\n"
    config = config_of(build_seed(replace(DATA, ssh_user="admin", user_data=text)))
    (ours,) = config["users"]
    assert ours["ssh_authorized_keys"] == ["ssh-ed25519 AAAA hanok", "ssh-rsa CCCC me"]
    assert ours["sudo"] == "ALL=(ALL) NOPASSWD:ALL"


def test_a_guest_without_cloud_init_gets_the_script_as_it_is() -> None:
    plain = replace(DATA, cloud_init=False)
    assert read_files(build_seed(replace(plain, user_data=SCRIPT)))["user-data"] == SCRIPT.encode()
    assert read_files(build_seed(plain))["user-data"] == b""
    with pytest.raises(Unsupported) as caught:
        build_seed(replace(plain, user_data="#cloud-config\npackages: []\n"))
    assert caught.value.field == "user_data"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("#cloud-config\n", 1),
        ("#cloud-config\n- a\n- b\n", 2),
        ("#cloud-config\n\njust text\n", 3),
        ("#cloud-config\na: 1\nb: [1, 2\nc: 3\n", 4),
        ("#cloud-config\na: 1\n\tb: 2\n", 3),
        ("#cloud-config\na: 1\n? [1]\n: 2\n", 3),
        ("#cloud-config\na: 1\nb: \x01\n", 3),
        ("#cloud-config\na: !!python/object:os.system 1\n", 2),
        ("#cloud-config\na: " + "[" * 5000 + "\n", 1),
        ("#cloud-config\nusers: {bob: true}\n", 1),
        ("#cloud-config\na: 2024-99-99\n", 1),
    ],
)
def test_cloud_config_that_is_none_names_field_and_line(text: str, line: int) -> None:
    with pytest.raises(InvalidInput) as caught:
        build_seed(replace(DATA, user_data=text))
    assert caught.value.field == "user_data"
    assert f"line {line} " in caught.value.message
    assert caught.value.expected


@pytest.mark.parametrize("text", ["#cloud-config-archive\n[]\n", "hello", "\n#!/bin/sh\n"])
def test_other_user_data_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="starts with") as caught:
        build_seed(replace(DATA, user_data=text))
    assert caught.value.field == "user_data"


def test_yaml_aliases_do_not_blow_up() -> None:
    lines = ["#cloud-config", "a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    assert build_seed(replace(DATA, user_data="\n".join(lines) + "\n"))


def test_a_boundary_inside_the_user_data_changes_nothing() -> None:
    image = build_seed(replace(DATA, user_data=SCRIPT))
    boundary = email.message_from_bytes(read_files(image)["user-data"]).get_boundary()
    hostile = f"{SCRIPT}--{boundary}\n--{boundary}--\n"
    script, _ours = parts_of(build_seed(replace(DATA, user_data=hostile)))
    assert text_of(script) == hostile


def test_secrets_are_not_in_the_representation() -> None:
    shown = repr(replace(DATA, user_data="#!/bin/sh\necho hunter2\n"))
    assert "OPENSSH" not in shown
    assert "hunter2" not in shown
