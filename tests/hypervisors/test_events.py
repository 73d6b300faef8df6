"""The queue of events: bounded, in order, and fair between machines."""

from __future__ import annotations

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from hanok.hypervisors.base import MachineEvent
from hanok.hypervisors.events import EventQueue

EVENTS = st.lists(
    st.builds(
        MachineEvent,
        uuid=st.sampled_from("abc"),
        name=st.sampled_from(["paused", "resumed", "reset"]),
        detail=st.text(max_size=2),
    )
)


async def taken(queue: EventQueue) -> list[MachineEvent]:
    """Return everything in a queue that is closed."""
    return [event async for event in queue.iterate()]


@given(events=EVENTS)
def test_the_newest_of_each_kind_stays_in_order(events: list[MachineEvent]) -> None:
    async def run() -> list[MachineEvent]:
        queue = EventQueue()
        for event in events:
            queue.put(event)
        queue.close()
        return await taken(queue)

    newest: dict[tuple[str, str], MachineEvent] = {}
    for event in events:
        newest.pop((event.uuid, event.name), None)
        newest[event.uuid, event.name] = event
    assert asyncio.run(run()) == list(newest.values())


async def test_a_flood_pushes_out_nobody_else() -> None:
    queue = EventQueue()
    queue.put(MachineEvent("quiet", "stopped"))
    for count in range(100_000):
        queue.put(MachineEvent("loud", "reset", str(count)))
    queue.close()
    assert await taken(queue) == [
        MachineEvent("quiet", "stopped"),
        MachineEvent("loud", "reset", "99999"),
    ]


async def test_who_waits_is_woken_by_an_event_and_by_the_end() -> None:
    queue = EventQueue()
    taking = asyncio.create_task(taken(queue))
    await asyncio.sleep(0)
    queue.put(MachineEvent("a", "paused"))
    await asyncio.sleep(0)
    queue.close()
    queue.put(MachineEvent("a", "resumed"))
    async with asyncio.timeout(5):
        assert await taking == [MachineEvent("a", "paused")]
