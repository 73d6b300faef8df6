"""apply.json, beside a plan: what of it was done, whole on disk before and after each step."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hanok.errors import Conflict, HostError, InvalidInput

if TYPE_CHECKING:
    from hanok.model.apply import Applied, ApplyFile

STATE_NAME = "apply.json"
_LARGEST = 256 * 1024 * 1024
Step = Literal["started", "done"]


@dataclass(frozen=True)
class Wanted:
    """A VM to make: its name as the plan has it and as a VM's, the host, and where that is.

    ``memory`` and ``disk`` are bytes; ``disk`` None is what the daemon gives.
    """

    plan_name: str
    name: str
    host: str
    remote: str
    image: str
    vcpus: int
    memory: int
    packages: tuple[str, ...] = ()
    disk: int | None = None


class State:
    """What of a plan was done. ``vms`` is by the plan's names."""

    def __init__(self, path: Path, digest: str) -> None:
        self._path = path
        self._digest = digest
        self.vms: dict[str, Applied] = {}

    def load(self) -> None:
        """Read what was done. Raises Conflict when the file is broken or of another plan."""
        found = read_state(self._path)
        if found is None:
            return
        if found.digest != self._digest:
            raise Conflict(
                f"{self._path} is of another plan",
                hint="finish that one, or move the file away to begin anew",
            )
        self.vms = dict(found.vms)

    def is_done(self, wanted: Wanted) -> bool:
        """Return whether the VM was made, by this run or an earlier one."""
        noted = self.vms.get(wanted.plan_name)
        return noted is not None and noted.step == "done"

    def note(self, wanted: Wanted, step: Step, uuid: str | None = None) -> None:
        """Write down, to survive a power cut, that a VM is begun or done. Raises HostError."""
        from hanok.durable import give_file, sync_path
        from hanok.model.apply import Applied, ApplyFile

        at = datetime.now(UTC).replace(microsecond=0)
        self.vms[wanted.plan_name] = Applied(
            step=step, name=wanted.name, host=wanted.host, remote=wanted.remote, uuid=uuid, at=at
        )
        text = ApplyFile(digest=self._digest, vms=self.vms).model_dump_json(indent=1)
        draft = self._path.with_name(f".{self._path.name}.new")
        try:
            give_file(self._path, f"{text}\n".encode(), None, mode=0o644, draft=draft)
            sync_path(self._path.parent)
        except OSError as error:
            raise HostError(
                f"{self._path} cannot be written: {error.strerror}",
                hint="apply does nothing that it cannot note; make room, then run it again",
            ) from None


def read_state(path: Path) -> ApplyFile | None:
    """Return what ``path`` says was done, None without such a file. Raises Conflict."""
    from hanok.model.apply import ApplyFile
    from hanok.model.validation import validated

    try:
        with path.open("rb") as file:
            return validated(ApplyFile, json.loads(file.read(_LARGEST)))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, InvalidInput) as error:
        raise Conflict(
            f"{path} does not say what was done: {error}",
            hint="look which VMs there are, then move that file away",
        ) from None


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold the plan in ``folder`` against a second ``apply``. Raises Conflict, InvalidInput.

    The lock is on the folder itself: it leaves no file, and ends with the process.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise InvalidInput(f"{folder} cannot be read: {error.strerror}", field="PLAN") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(
                f"another hanok apply is at the plan in {folder}",
                hint="wait until that one has ended",
            ) from None
        yield
    finally:
        os.close(descriptor)
