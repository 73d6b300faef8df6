"""The store of one host: SQLite, one connection in one thread, ``synchronous=FULL``.

One connection is also what keeps clear of SQLite's WAL reset bug (several connections that
checkpoint, versions 3.7.0 to 3.51.2). Records are JSON documents beside the columns that are
searched by.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from hanok.errors import Conflict, DiskFull, HostError
from hanok.filesystems import disk_full, file_system_of
from hanok.model.network import NetworkRecord
from hanok.model.operation import KEPT, Event, Operation
from hanok.model.template import TemplateRecord
from hanok.model.token import TokenRecord
from hanok.model.vm import VmRecord
from hanok.store.base import (
    AddEvent,
    AddToken,
    Change,
    DeleteNetwork,
    DeleteTemplate,
    DeleteToken,
    DeleteVm,
    PutNetwork,
    PutOperation,
    PutTemplate,
    PutVm,
    TouchToken,
)
from hanok.units import MIB

_T = TypeVar("_T")

# Room of our own on the database's file system, given up when that is full: what ends, stops or
# deletes something can then still be written, and makes room. A commit takes some 10 to 50 KiB.
_RESERVE = 4 * MIB
_NEEDED = 1 * MIB
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR_SHMSIZE, sqlite3.SQLITE_CANTOPEN)
_MAKES_ROOM = frozenset({"delete", "down", "stop", "pause", "resume"})

# Migration number n brings the schema from version n to n + 1. Never change one, add another.
_MIGRATIONS = (
    """
    CREATE TABLE vms (uuid TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, data TEXT NOT NULL);
    CREATE TABLE networks (name TEXT PRIMARY KEY, data TEXT NOT NULL);
    CREATE TABLE operations (
        id TEXT PRIMARY KEY, created REAL NOT NULL, final INTEGER NOT NULL, data TEXT NOT NULL);
    CREATE INDEX operations_by_time ON operations (final, created);
    CREATE TABLE events (
        number INTEGER PRIMARY KEY AUTOINCREMENT, data TEXT NOT NULL);
    """,
    """
    CREATE TABLE templates (id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, data TEXT NOT NULL);
    """,
    """
    CREATE TABLE tokens (
        id TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, used REAL, data TEXT NOT NULL);
    """,
)
_KEPT_EVENTS = 10_000
_KEPT_OPERATIONS = 1_000


class SqliteStore:
    """See store.base.Store."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")
        self._connection: sqlite3.Connection | None = None

    async def open(self) -> None:
        """Open the database and bring its schema up to date.

        Raises HostError when it is damaged, or newer than this Hanok.
        """
        await self._in_thread(self._open)

    def _open(self) -> None:
        try:
            try:
                self._connection = self._connect()
            except sqlite3.OperationalError as error:
                if not (self._is_full(error) and self._give_up_reserve()):
                    raise
                self._connection = self._connect()
        except sqlite3.DatabaseError as error:
            if self._is_full(error):
                raise disk_full(self._path, "the daemon's database", _RESERVE) from error
            raise HostError(
                f"the database {self._path} cannot be opened: {error}",
                hint="restore it from a backup; the VMs themselves are not touched",
            ) from error
        self._keep_reserve()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._path, isolation_level=None)
        try:
            self._path.chmod(0o600)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    # --- a full disk ------------------------------------------------------------------------

    @property
    def _reserve(self) -> Path:
        return self._path.with_name(f"{self._path.name}.reserve")

    def _is_full(self, error: sqlite3.Error) -> bool:
        """Whether the error is for want of room; SQLite calls it by other names too."""
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_FULL:
            return True
        return code in _FULL and file_system_of(self._path).free < _NEEDED

    def _keep_reserve(self) -> None:
        """Take the reserve's room, unless there is hardly more than that."""
        if self._reserve.exists() or file_system_of(self._path).free < 4 * _RESERVE:
            return
        with contextlib.suppress(OSError), self._reserve.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, _RESERVE)

    def _give_up_reserve(self) -> bool:
        """Give the reserve's room back; return whether there was any."""
        try:
            self._reserve.unlink()
        except OSError:
            return False
        return True

    def _migrate(self, connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise HostError(
                f"the database {self._path} was written by a newer Hanok (schema {version})",
                hint=f"this Hanok knows schema {len(_MIGRATIONS)}: install the newer one again",
            )
        for number, script in enumerate(_MIGRATIONS[version:], start=version):
            connection.executescript(
                f"BEGIN IMMEDIATE; {script} PRAGMA user_version={number + 1}; COMMIT;"
            )

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _database(self) -> sqlite3.Connection:
        if self._connection is None:
            raise HostError("the store is not open")
        return self._connection

    async def commit(self, *changes: Change) -> list[Event]:
        """See Store.commit."""
        return await asyncio.shield(self._in_thread(lambda: self._commit(changes)))

    def _commit(self, changes: Sequence[Change]) -> list[Event]:
        try:
            added = self._try_commit(changes)
        except DiskFull:
            if not _makes_room(changes) or not self._give_up_reserve():
                raise
            return self._try_commit(changes)
        self._keep_reserve()
        return added

    def _try_commit(self, changes: Sequence[Change]) -> list[Event]:
        database = self._database()
        events: list[Event] = []
        try:
            database.execute("BEGIN IMMEDIATE")
            for change in changes:
                event = _apply(database, change)
                if event is not None:
                    events.append(event)
            database.execute("COMMIT")
        except sqlite3.IntegrityError as error:
            database.execute("ROLLBACK")
            raise Conflict(
                f"{_names(changes)} exists already",
                field="name",
                hint="choose another name, or delete that one first",
            ) from error
        except sqlite3.DatabaseError as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if self._is_full(error):
                raise disk_full(self._path, "this in the daemon's database", _NEEDED) from error
            raise HostError(
                f"the database {self._path} refused a write: {error}",
                hint="the VMs run on; look what its disk says: dmesg",
            ) from error
        return events

    async def vms(self) -> list[VmRecord]:
        """See Store.vms."""
        rows = await self._rows("SELECT data FROM vms ORDER BY name")
        return [VmRecord.model_validate_json(data) for data in rows]

    async def find_vm(self, name_or_uuid: str) -> VmRecord | None:
        """See Store.find_vm."""
        rows = await self._rows(
            "SELECT data FROM vms WHERE name = ?1 OR uuid = ?1 LIMIT 1", name_or_uuid
        )
        return VmRecord.model_validate_json(rows[0]) if rows else None

    async def templates(self) -> list[TemplateRecord]:
        """See Store.templates."""
        rows = await self._rows("SELECT data FROM templates ORDER BY name")
        return [TemplateRecord.model_validate_json(data) for data in rows]

    async def networks(self) -> list[NetworkRecord]:
        """See Store.networks."""
        rows = await self._rows("SELECT data FROM networks ORDER BY name")
        return [NetworkRecord.model_validate_json(data) for data in rows]

    async def tokens(self) -> list[TokenRecord]:
        """See Store.tokens."""

        def read() -> list[TokenRecord]:
            rows = self._database().execute("SELECT used, data FROM tokens ORDER BY name")
            found = [(used, TokenRecord.model_validate_json(data)) for used, data in rows]
            return [token.model_copy(update={"used": used}) for used, token in found]

        return await self._in_thread(read)

    async def operations(self, *, unfinished: bool = False, limit: int = 200) -> list[Operation]:
        """See Store.operations."""
        if unfinished:
            query = "SELECT data FROM operations WHERE final = 0 ORDER BY created LIMIT ?"
        else:
            query = "SELECT data FROM operations ORDER BY created DESC LIMIT ?"
        return [Operation.model_validate_json(data) for data in await self._rows(query, limit)]

    async def find_operation(self, ident: str) -> Operation | None:
        """See Store.find_operation."""
        rows = await self._rows("SELECT data FROM operations WHERE id = ?", ident)
        return Operation.model_validate_json(rows[0]) if rows else None

    async def events(self, since: int = 0, limit: int = 1000) -> Sequence[Event]:
        """See Store.events."""
        query = "SELECT number, data FROM events WHERE number > ? ORDER BY number DESC LIMIT ?"

        def read() -> list[Event]:
            found = self._database().execute(query, (since, limit)).fetchall()
            return [_numbered(Event.model_validate_json(data), number) for number, data in found]

        return (await self._in_thread(read))[::-1]

    async def _rows(self, query: str, *values: object) -> list[str]:
        def read() -> list[str]:
            return [data for (data,) in self._database().execute(query, values)]

        return await self._in_thread(read)

    async def close(self) -> None:
        """See Store.close."""

        def close() -> None:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

        await self._in_thread(close)
        self._thread.shutdown()


def _makes_room(changes: Sequence[Change]) -> bool:
    """Whether these changes begin nothing that takes room: they end, stop or delete something."""
    for change in changes:
        if isinstance(change, AddToken | PutNetwork):
            return False
        if isinstance(change, PutOperation):
            operation = change.operation
            if not operation.state.is_final and operation.kind not in _MAKES_ROOM:
                return False
    return True


def _names(changes: Sequence[Change]) -> str:
    """Say which of the changes carry a name that must be the only one of its kind."""
    named = [f"a VM named {c.record.spec.name}" for c in changes if isinstance(c, PutVm)]
    named += [f"a template named {c.record.name}" for c in changes if isinstance(c, PutTemplate)]
    named += [f"a token named {c.record.name}" for c in changes if isinstance(c, AddToken)]
    return " or ".join(named)


def _numbered(event: Event, number: int) -> Event:
    return event.model_copy(update={"number": number})


def _apply(database: sqlite3.Connection, change: Change) -> Event | None:
    match change:
        case PutVm(record):
            database.execute(
                "INSERT INTO vms VALUES (?, ?, ?) ON CONFLICT (uuid) DO UPDATE"
                " SET name = excluded.name, data = excluded.data",
                (record.uuid, record.spec.name, record.model_dump_json()),
            )
        case DeleteVm(uuid):
            database.execute("DELETE FROM vms WHERE uuid = ?", (uuid,))
        case PutTemplate(template):
            database.execute(
                "INSERT INTO templates VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE"
                " SET name = excluded.name, data = excluded.data",
                (template.id, template.name, template.model_dump_json()),
            )
        case DeleteTemplate(ident):
            database.execute("DELETE FROM templates WHERE id = ?", (ident,))
        case PutNetwork(network):
            database.execute(
                "INSERT OR REPLACE INTO networks VALUES (?, ?)",
                (network.name, network.model_dump_json()),
            )
        case DeleteNetwork(name):
            database.execute("DELETE FROM networks WHERE name = ?", (name,))
        case AddToken(token):
            database.execute(
                "INSERT INTO tokens VALUES (?, ?, ?, ?)",
                (token.id, token.name, token.used, token.model_dump_json()),
            )
        case TouchToken(ident, used):
            database.execute("UPDATE tokens SET used = ? WHERE id = ?", (used, ident))
        case DeleteToken(ident):
            database.execute("DELETE FROM tokens WHERE id = ?", (ident,))
        case PutOperation(operation):
            _put_operation(database, operation)
        case AddEvent(event):
            return _add_event(database, event)
    return None


def _put_operation(database: sqlite3.Connection, operation: Operation) -> None:
    final = int(operation.state.is_final)
    database.execute(
        "INSERT OR REPLACE INTO operations VALUES (?, ?, ?, ?)",
        (operation.id, operation.created, final, operation.model_dump_json(context=KEPT)),
    )
    if final:
        database.execute(
            "DELETE FROM operations WHERE final = 1 AND created <= (SELECT created FROM operations"
            " WHERE final = 1 ORDER BY created DESC LIMIT 1 OFFSET ?)",
            (_KEPT_OPERATIONS,),
        )


def _add_event(database: sqlite3.Connection, event: Event) -> Event:
    cursor = database.execute("INSERT INTO events (data) VALUES (?)", (event.model_dump_json(),))
    number = cursor.lastrowid or 0
    database.execute("DELETE FROM events WHERE number <= ?", (number - _KEPT_EVENTS,))
    return _numbered(event, number)
