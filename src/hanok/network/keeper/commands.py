"""Running ip, bridge and nft inside the namespace."""

from __future__ import annotations

import asyncio

from hanok.errors import CommandFailed, HostError

_TIMEOUT = 20
_TAIL = 1000


async def run(*argv: str, text: str = "") -> str:
    """Run a command with ``text`` as its input and return its output.

    Raises HostError when it is missing, CommandFailed with what it said when it fails.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except FileNotFoundError:
        raise HostError(
            f"the program {argv[0]} is not installed",
            hint="apt-get install iproute2 nftables, or run 'make setup'",
        ) from None
    try:
        async with asyncio.timeout(_TIMEOUT):
            output, _ = await process.communicate(text.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    said = output.decode("utf-8", "replace")
    if process.returncode != 0:
        raise CommandFailed(f"{argv[0]} failed: {said.strip()[-_TAIL:] or 'no message'}")
    return said


async def ip(*lines: str) -> None:
    """Run lines of ``ip -batch``, stopping at the first that fails."""
    await run("ip", "-batch", "-", text="".join(f"{line}\n" for line in lines))


async def bridge(*lines: str) -> None:
    """Run lines of ``bridge -batch``, stopping at the first that fails."""
    await run("bridge", "-batch", "-", text="".join(f"{line}\n" for line in lines))


async def nft(rules: str) -> None:
    """Apply nftables ``rules`` in one transaction."""
    await run("nft", "-f", "-", text=rules)
