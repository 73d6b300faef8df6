"""The files of ``hanok plan``: reads what is planned from, writes what came of it.

An error names the file, its line where it has lines, and the field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel

from hanok.cli.stackfile import FileKind, line_of, read_yaml_file
from hanok.errors import InvalidInput
from hanok.model.fleet import DEFAULT_HOSTS, HostsFile, ServersFile
from hanok.model.plan import HandMade, Inputs, PlanFile
from hanok.model.usage import Usage
from hanok.model.validation import validated

if TYPE_CHECKING:
    from hanok.model.apply import ApplyMap

T = TypeVar("T", bound=BaseModel)

LARGEST = 64 * 1024 * 1024
MOST_NODES = 5_000_000
PLAN_LARGEST = 1024 * 1024 * 1024
PLAN_NAME = "plan.json"

SERVERS = FileKind(
    "a servers file",
    "servers and rules",
    "docs/plan.md shows one; examples/fleet/servers.yaml is one",
    "SERVERS",
    LARGEST,
    MOST_NODES,
)
HOSTS = FileKind(
    "a hosts file",
    "kinds, at_hand and offers",
    "docs/plan.md shows one; examples/fleet/hosts.yaml is one",
    "--hosts",
    LARGEST,
    MOST_NODES,
)
HAND = FileKind(
    "a plan",
    "assignment, buy and spares",
    "name plan.json, or a file with assignment: {VM: HOST}",
    "PLAN",
    LARGEST,
    MOST_NODES,
)

MAP = FileKind(
    "a map of a plan",
    "hosts, image, packages, disk and vms",
    "docs/plan.md shows one",
    "--map",
    LARGEST,
    MOST_NODES,
)


@dataclass(frozen=True)
class Source:
    """A file that was read: its name, and the line of each key when it has lines."""

    path: Path
    lines: dict[str, int]

    def place_of(self, field: str) -> str:
        """Return ``FILE:LINE`` of ``field``, or the file where no line is known."""
        line = line_of(self.lines, field)
        return str(self.path) if line is None else f"{self.path}:{line}"


@dataclass(frozen=True, eq=False)
class Read:
    """What is planned from, as it was read; ``named`` are the files themselves."""

    servers: ServersFile
    hosts: HostsFile
    usages: list[Usage]
    named: tuple[Source, Source | None]
    paths: tuple[Path, Path | None, Path | None]

    def inputs(self, folder: Path, fold: bool) -> Inputs:
        """Return the names of the files, relative to ``folder``, for plan.json."""
        servers, usage, hosts = (
            None if path is None else os.path.relpath(path, folder) for path in self.paths
        )
        assert servers is not None  # noqa: S101  the first of them always is
        return Inputs(servers=servers, usage=usage, hosts=hosts, fold=fold)

    @contextmanager
    def places(self) -> Iterator[None]:
        """Give errors about a field of one of the files the file and the line."""
        try:
            yield
        except InvalidInput as error:
            source = self._source_of(error.field)
            if source is None or error.field is None:
                raise
            raise _placed(source, error) from None

    def _source_of(self, field: str | None) -> Source | None:
        start = (field or "").split(".")[0]
        if start in ("servers", "rules", "rightsizing"):
            return self.named[0]
        return self.named[1] if start in ("kinds", "at_hand", "offers", "costs") else None


def read_inputs(servers: Path, usage: Path | None, hosts: Path | None) -> Read:
    """Read all that is planned from. Raises InvalidInput with the file and the field."""
    from hanok.assess.folder import read_usages

    servers_file, servers_source = read_model(servers, SERVERS, ServersFile)
    hosts_file, hosts_source = DEFAULT_HOSTS, None
    if hosts is not None:
        hosts_file, hosts_source = read_model(hosts, HOSTS, HostsFile)
    usages = [] if usage is None else read_usages(usage)
    return Read(
        servers_file,
        hosts_file,
        usages,
        (servers_source, hosts_source),
        (servers, usage, hosts),
    )


def read_model(path: Path, kind: FileKind, model: type[T]) -> tuple[T, Source]:
    """Return the file ``path`` as a ``model``; JSON where its name ends so, else YAML."""
    if path.suffix == ".json":
        content: object = _read_json(path, kind)
        source = Source(path, {})
    else:
        content, lines = read_yaml_file(path, kind)
        source = Source(path, lines)
    try:
        return validated(model, content), source
    except InvalidInput as error:
        raise _placed(source, error) from None


@contextmanager
def placed(source: Source) -> Iterator[None]:
    """Give errors about a field of ``source`` the file and the line."""
    try:
        yield
    except InvalidInput as error:
        raise _placed(source, error) from None


def _placed(source: Source, error: InvalidInput) -> InvalidInput:
    return type(error)(
        f"{source.place_of(error.field or '')}: {error.message}",
        field=error.field,
        expected=error.expected,
        hint=error.hint,
    )


def _read_json(path: Path, kind: FileKind, largest: int = LARGEST) -> object:
    try:
        with path.open("rb") as file:
            text = file.read(largest + 1)
    except FileNotFoundError:
        raise InvalidInput(
            f"there is no file {path}", field=kind.argument, expected=kind.what, hint=kind.hint
        ) from None
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}"
        raise InvalidInput(why, field=kind.argument) from None
    if len(text) > largest:
        most = f"at most {largest // 2**20} MiB"
        raise InvalidInput(f"{path} is too large", field=kind.argument, expected=most)
    try:
        content: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path} is not JSON: {error}", field=kind.argument) from None
    return content


def plan_path(path: Path) -> Path:
    """Return the plan that ``path`` names: a file, or the folder that it is in."""
    return path / PLAN_NAME if path.is_dir() else path


def read_plan(path: Path) -> PlanFile:
    """Read a plan.json, or the one in the folder ``path``. Raises InvalidInput."""
    found = plan_path(path)
    try:
        return validated(PlanFile, _read_json(found, HAND, PLAN_LARGEST))
    except InvalidInput as error:
        if error.field == HAND.argument:
            raise
        raise _placed(Source(found, {}), error) from None


def read_any_plan(path: Path) -> tuple[PlanFile | HandMade, Source]:
    """Read a plan.json, or a plan that a person wrote in YAML or JSON. Raises InvalidInput."""
    found = plan_path(path)
    if found.suffix == ".json":
        content = _read_json(found, HAND, PLAN_LARGEST)
        if not isinstance(content, dict) or "assignment" not in content:
            return read_plan(found), Source(found, {})
    return read_model(found, HAND, HandMade)


def read_map(path: Path) -> tuple[ApplyMap, Source]:
    """Read where a plan's hosts are and what its VMs are made of. Raises InvalidInput."""
    from hanok.model.apply import ApplyMap

    return read_model(path, MAP, ApplyMap)


def read_inputs_of(plan: PlanFile, path: Path) -> Read:
    """Read what the plan at ``path`` was made of. Raises InvalidInput."""
    folder = plan_path(path).parent
    named = plan.inputs
    return read_inputs(
        _beside(folder, named.servers),
        None if named.usage is None else _beside(folder, named.usage),
        None if named.hosts is None else _beside(folder, named.hosts),
    )


def _beside(folder: Path, name: str) -> Path:
    return Path(os.path.normpath(folder / name))


def make_folder(path: Path) -> Path:
    """Make the folder that results go to. Raises InvalidInput when it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidInput(
            f"the folder {path} cannot be made: {error.strerror}",
            field="--out",
            expected="a folder that can be written",
        ) from None
    return path


def write(path: Path, content: bytes) -> None:
    """Write a whole file, or leave the old one. Raises InvalidInput when that cannot be."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        new.write_bytes(content)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise InvalidInput(f"{path} cannot be written: {error.strerror}", field="--out") from None
