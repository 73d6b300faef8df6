"""A console that ends while its guest goes on is opened again, and so its log goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tenacity import AsyncRetrying, retry_if_result, wait_fixed

from hanok.guest.console import ConsoleHub
from hanok.hypervisors.base import RunState
from hanok.model.vm import VmRecord
from tests.daemon.keeping import House, house
from tests.machine import patient

_LIMIT = patient(30.0)


async def hang_up(here: House, record: VmRecord) -> ConsoleHub:
    """End the console as whoever serves it does when he ends; return it, which has ended."""
    hub = here.services.guests.console(record)
    hub._reader.feed_eof()
    async with asyncio.timeout(_LIMIT):
        await hub.wait_ended()
    return hub


async def another(here: House, record: VmRecord, hub: ConsoleHub) -> ConsoleHub:
    """Return the console that has taken the place of this one."""

    async def look() -> ConsoleHub:
        return here.services.guests.console(record)

    unchanged = retry_if_result(lambda found: found is hub)
    async with asyncio.timeout(_LIMIT):
        return await AsyncRetrying(wait=wait_fixed(0.05), retry=unchanged)(look)


async def test_a_console_that_ends_is_opened_again_each_time(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run()
        for _ in range(2):
            hub = await another(here, record, await hang_up(here, record))
            async with hub.attach() as client, asyncio.timeout(_LIMIT):
                await client.write(b"x\n")
                assert await client.read()


async def test_the_console_of_a_guest_that_ends_is_not_opened(
    short_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = asyncio.Semaphore(0)

    async def ended(uuid: str) -> RunState:
        tries.release()
        return RunState.CRASHED

    async with house(short_tmp) as here:
        record = await here.run()
        hub = await hang_up(here, record)
        with monkeypatch.context() as patch:
            patch.setattr(here.fake, "state", ended)
            async with asyncio.timeout(_LIMIT):
                for _ in range(2):  # a second one shows that the first was given up
                    await tries.acquire()
            assert here.services.guests.console(record) is hub
        assert not (await another(here, record, hub)).ended


async def test_nobody_waits_for_the_console_of_a_vm_that_was_stopped(short_tmp: Path) -> None:
    async with house(short_tmp) as here:
        record = await here.run()
        await hang_up(here, record)
        await here.done(await here.services.vms.stop("web", force=True, timeout=1))
        waiting = [task.get_name() for task in asyncio.all_tasks()]
        assert not [name for name in waiting if name.startswith("reopen")]
