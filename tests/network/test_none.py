"""Networks of the fake hypervisor."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hanok.errors import Conflict, GuestError, HostError, NotFound
from hanok.network.base import Networks
from hanok.network.none import NoNetworks
from tests.network.conftest import RECORD, make_port


async def test_the_life_of_a_port() -> None:
    networks = NoNetworks()
    _: Networks = networks
    with pytest.raises(HostError, match="not running"):
        await networks.attach("default", make_port(2))
    assert (await networks.ensure(RECORD, [])).running
    descriptor = await networks.attach("default", make_port(2, "8080:80"))
    assert os.fstat(descriptor).st_rdev == Path(os.devnull).stat().st_rdev
    os.close(descriptor)
    with pytest.raises(Conflict) as caught:
        os.close(await networks.attach("default", make_port(3, "8080:80")))
    assert caught.value.field == "publish"
    with pytest.raises(NotFound):
        await networks.publish("default", make_port(3))
    with pytest.raises(GuestError):
        await networks.connect("default", "10.87.0.2", 80, 1)
    await networks.detach("default", make_port(2).vm)
    await networks.detach("default", make_port(2).vm)
    os.close(await networks.attach("default", make_port(3, "8080:80")))
    await networks.sweep({"default"})
    assert (await networks.status("default")).running
    await networks.sweep(())
    assert not (await networks.status("default")).running
    await networks.close()
