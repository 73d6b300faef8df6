"""Panics of kernels, as their consoles tell them.

A hypervisor learns of a panic only from a guest with the device for it (pvpanic), which mode full
has not and few systems know. Their last words say it too, but a console may show the same words
for other reasons, such as a log that someone reads there. So they count when they are the very
last line, with nothing after them for a while: a prompt, or a kernel that starts again, is no
panic. Sources: Linux, kernel/panic.c; GNU Mach, kern/debug.c.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from hanok.guest.console import ConsoleClient, ConsoleHub
from hanok.guest.text import printable

SILENCE = 2.0
_LOOKED_AT = 2048
_LONGEST = 300
_ESCAPE = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[@-Z\\-_]")
_KNOWN = (
    re.compile(rb"---\[ end (Kernel panic - not syncing.*)"),
    re.compile(rb"^(panic (?:\(cpu \d+\) )?\S+:\d+: .+)"),
)


def find_panic(said: bytes) -> str | None:
    """Return with what words the kernel panicked, if these were the last that it said."""
    lines = [line.strip() for line in _ESCAPE.sub(b"", said[-_LOOKED_AT:]).splitlines()]
    last = next((line for line in reversed(lines) if line), b"")
    for known in _KNOWN:
        if (match := known.search(last)) is not None:
            return printable(match[1].removesuffix(b"]---"), _LONGEST)
    return None


class PanicWatch:
    """Looks at the console ``hub`` from now on; tells ``notify`` once, with the kernel's words."""

    def __init__(self, hub: ConsoleHub, notify: Callable[[str], None]) -> None:
        self.panic: str | None = None
        self._notify = notify
        self._task = asyncio.create_task(self._watch(hub.attach()), name="panic watch")

    async def close(self) -> None:
        """Look no more."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self, client: ConsoleClient) -> None:
        said = b""
        async with client:
            while self.panic is None:
                new = await self._read(client, find_panic(said))
                if new == b"":
                    return
                said = (said + new)[-_LOOKED_AT:] if new is not None else said
        self._notify(self.panic)

    async def _read(self, client: ConsoleClient, suspicion: str | None) -> bytes | None:
        """Return what is said next, b"" at the end; None once it was silent after a panic."""
        if suspicion is None:
            return await client.read()
        try:
            async with asyncio.timeout(SILENCE):
                return await client.read()
        except TimeoutError:
            self.panic = suspicion
            return None
