"""A runner whose detached processes get scopes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from hanok.proc import Account, Owner, SystemRunner
from hanok.systemd.scopes import NoScopes, Scopes


class ScopedRunner(SystemRunner):
    """Starts processes as SystemRunner does, and has the detached ones put into their scopes."""

    def __init__(self) -> None:
        self.scopes: Scopes = NoScopes()

    async def spawn(
        self,
        argv: Sequence[str],
        *,
        owner: Owner,
        output: Path | int | None = None,
        env: Mapping[str, str] | None = None,
        account: Account | None = None,
        pass_fds: Sequence[int] = (),
        umask: int = 0o077,
    ) -> int:
        """See Runner.spawn."""
        pid = await super().spawn(
            argv,
            owner=owner,
            output=output,
            env=env,
            account=account,
            pass_fds=pass_fds,
            umask=umask,
        )
        self.scopes.put_soon(owner, pid)
        return pid
