"""The daemon's side of the talk with a keeper."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hanok.errors import HanokError, HostError, TimedOut, all_error_types
from hanok.network import wire


async def ask(
    path: Path,
    op: str,
    body: Mapping[str, Any] | None = None,
    *,
    descriptors: Sequence[int] = (),
    timeout: float = 30,
) -> wire.Message:
    """Send request ``op`` to the keeper at ``path`` and return its answer.

    Raises the keeper's own error, HostError when no keeper answers there, TimedOut.
    """
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await loop.sock_connect(sock, str(path))
                await wire.send(sock, {"op": op, **(body or {})}, descriptors)
                answer = await wire.receive(sock)
        except TimeoutError:
            raise TimedOut(
                f"the keeper of network {path.parent.name} did not answer within {timeout:g} s",
                hint=f"see {path.parent / 'keeper.log'}",
            ) from None
        except (OSError, EOFError, ValueError) as error:
            raise HostError(
                f"network {path.parent.name} is not running: its keeper does not answer ({error})",
                hint="a restart of the daemon brings it up again",
            ) from error
    failure = answer.body.get("error")
    if failure is not None:
        wire.close_all(answer.descriptors)
        raise _rebuild(failure)
    return answer


def _rebuild(failure: Mapping[str, Any]) -> HanokError:
    kind = all_error_types().get(str(failure.get("code")), HanokError)
    return kind(
        str(failure.get("message")),
        field=failure.get("field"),
        expected=failure.get("expected"),
        hint=failure.get("hint"),
    )
