"""A seed with another name is the seed that would have been made with it."""

from __future__ import annotations

import dataclasses

import pytest

from hanok.errors import HostError
from hanok.guest.seed import SeedData, build_seed, renamed_seed
from hanok.units import MIB

PLAIN = SeedData(instance_id="i", host_name="web", user_data="#!/bin/sh\nhostname: web\n")
CLOUD = SeedData(
    instance_id="i",
    host_name="web",
    user_data="#cloud-config\nhostname: web\nruncmd: [[echo, ö]]\n",
    authorized_keys=("ssh-ed25519 AAAA x",),
    host_key_private="secret\nlines\n",
    host_key_public="public",
    ssh_user="debian",
    network_config="version: 2\n",
)


@pytest.mark.parametrize(
    "data",
    [
        dataclasses.replace(PLAIN, cloud_init=False),
        PLAIN,
        CLOUD,
        dataclasses.replace(CLOUD, user_data=None),
        dataclasses.replace(PLAIN, user_data=None, cloud_init=False),
    ],
)
def test_all_but_the_name_stays(data: SeedData) -> None:
    padded = build_seed(data).ljust(MIB, b"\0")  # as it lies on disk
    assert renamed_seed(padded, "shop") == build_seed(dataclasses.replace(data, host_name="shop"))


@pytest.mark.parametrize("image", [b"", b"\0" * MIB])
def test_what_is_no_seed_is_refused(image: bytes) -> None:
    with pytest.raises(HostError, match="seed"):
        renamed_seed(image, "shop")
