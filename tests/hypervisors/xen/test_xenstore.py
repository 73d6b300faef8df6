"""The socket of xenstored: what is asked and answered, and a daemon that is not well."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from hanok.errors import HostError, HypervisorError, TimedOut
from hanok.hypervisors.xen import xenstore as module
from hanok.hypervisors.xen.toolstack import Toolstack, is_dom0
from hanok.hypervisors.xen.xenstore import SOCKET, XenStore
from tests.hypervisors.xen.stand_in import FakeXen, PlayedXenstored

UUID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def played(xen: FakeXen) -> PlayedXenstored:
    return xen.xenstored


@pytest.fixture
async def store(played: PlayedXenstored, xenstore: Path) -> AsyncIterator[XenStore]:
    made = XenStore(xenstore)
    yield made
    made.close()


async def test_values_are_written_read_and_listed(store: XenStore, played: PlayedXenstored) -> None:
    await store.write("/libxl/7/hanok", f"{UUID}:/a folder/é")
    assert played.store == {"/libxl/7/hanok": f"{UUID}:/a folder/é"}
    assert await store.read("/libxl/7/hanok") == f"{UUID}:/a folder/é"
    assert await store.children("/libxl") == ["7"]
    assert played.connections == 1


async def test_a_domain_is_found_among_too_many_for_one_answer(
    xen: FakeXen, played: PlayedXenstored, xenstore: Path
) -> None:
    xen.create(f'name = "a"\nuuid = "{UUID}"\nmemory = 1\nvcpus = 1\n', (), {}, paused=False)
    toolstack = Toolstack(xen, xenstore)
    assert await toolstack.domid_of(UUID) == 1
    assert await toolstack.domid_of(UUID.replace("1", "2")) is None
    assert xen.calls == []
    played.refuses = b"E2BIG\0"
    assert await toolstack.domid_of(UUID) == 1
    assert await toolstack.domid_of(UUID.replace("1", "2")) is None
    toolstack.close()


async def test_what_is_not_there_is_none(store: XenStore) -> None:
    assert await store.read("/local/domain/7/vm") is None
    assert await store.children("/local/domain") == []


async def test_a_refusal_says_what_was_asked_and_why(
    store: XenStore, played: PlayedXenstored
) -> None:
    played.refuses = b"EACCES\0"
    with pytest.raises(HypervisorError, match="write /local/domain/7: EACCES"):
        await store.write("/local/domain/7", "x")
    played.refuses = b""
    assert await store.read("/local/domain/7") is None


async def test_requests_at_once_get_their_own_answers(
    store: XenStore, played: PlayedXenstored
) -> None:
    played.store.update({f"/n/{number}": str(number) for number in range(50)})
    told = await asyncio.gather(*(store.read(f"/n/{number}") for number in range(50)))
    assert told == [str(number) for number in range(50)]


async def test_a_daemon_that_was_restarted_is_asked_again(
    store: XenStore, played: PlayedXenstored, xenstore: Path
) -> None:
    played.store["/n"] = "1"
    assert await store.read("/n") == "1"
    await played.stop()
    await played.start(xenstore)
    assert await store.read("/n") == "1"
    assert played.connections == 2


async def test_without_a_daemon_the_error_says_what_to_look_at(
    store: XenStore, played: PlayedXenstored
) -> None:
    await store.read("/n")
    await played.stop()
    with pytest.raises(HostError, match="xenstored does not answer") as caught:
        await store.read("/n")
    assert "systemctl status xen" in (caught.value.hint or "")


async def test_a_mute_daemon_is_not_waited_for_for_ever(
    store: XenStore, played: PlayedXenstored, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it says after all is not taken for the answer to the next request."""
    played.store.update({"/n": "1", "/other": "2"})
    played.mute = True
    with monkeypatch.context() as short:
        short.setattr(module, "_LIMIT", 0.2)
        with pytest.raises(TimedOut):
            await store.read("/other")
    played.speak()
    assert await store.read("/n") == "1"
    assert played.connections == 2


async def test_a_watch_tells_of_each_change_until_the_daemon_ends(
    store: XenStore, played: PlayedXenstored
) -> None:
    seen: asyncio.Queue[None] = asyncio.Queue()
    watching = asyncio.create_task(store.watch("@releaseDomain", lambda: seen.put_nowait(None)))
    async with asyncio.timeout(10):
        await seen.get()
        await seen.get()  # a new watch fires once by itself
        assert seen.empty()
        played.tell("@releaseDomain")
        await seen.get()
        await played.stop()
        await watching


async def test_a_watch_that_is_refused_ends(store: XenStore, played: PlayedXenstored) -> None:
    played.refuses = b"EQUOTA\0"
    async with asyncio.timeout(10):
        await store.watch("@releaseDomain", lambda: None)


async def test_a_watch_without_a_daemon_ends(tmp_path: Path) -> None:
    await XenStore(tmp_path / "none").watch("@releaseDomain", lambda: None)


@pytest.mark.skipif(not is_dom0(), reason="the real one runs in Dom0 only")
async def test_the_real_one_understands() -> None:
    store = XenStore(SOCKET)
    try:
        assert await store.read("/local/domain/0/name") == "Domain-0"
        assert "0" in await store.children("/local/domain")
        await store.write("/tool/hanok-test", "é")
        assert await store.read("/tool/hanok-test") == "é"
        await store.write("/tool/hanok-test", "")
        with pytest.raises(HypervisorError, match="EINVAL"):
            await store.read("no//path")
    finally:
        store.close()
        subprocess.run(["xenstore-rm", "/tool/hanok-test"], check=True)
