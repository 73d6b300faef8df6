"""The store: what is committed is there after a kill -9; all of a commit or none."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hanok.errors import Conflict, HostError
from hanok.model.network import NetworkRecord
from hanok.model.operation import Operation, OperationState
from hanok.model.token import Role, TokenRecord
from hanok.model.vm import Mode, VmRecord, VmSpec, Wanted
from hanok.services.events import make_event
from hanok.store.base import (
    AddEvent,
    AddToken,
    DeleteToken,
    DeleteVm,
    PutNetwork,
    PutOperation,
    PutVm,
    TouchToken,
)
from hanok.store.sqlite import SqliteStore


def record(name: str, uuid: str = "u1") -> VmRecord:
    return VmRecord(
        uuid=uuid,
        spec=VmSpec(name=name, image="micro"),
        wanted=Wanted.RUNNING,
        created=1.0,
        uid=1000,
        mode=Mode.PARA,
        hypervisor="fake",
    )


async def opened(path: Path) -> SqliteStore:
    store = SqliteStore(path)
    await store.open()
    return store


async def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    network = NetworkRecord(name="n", subnet="10.1.0.0/24", uid=5)
    operation = Operation(id="o", kind="run", target="a", created=2.0)
    events = await store.commit(
        PutVm(record("a")),
        PutNetwork(network),
        PutOperation(operation),
        AddEvent(make_event("vm", "a", "created")),
    )
    await store.close()
    store = await opened(tmp_path / "s.db")
    assert await store.vms() == [record("a")]
    assert await store.find_vm("a") == await store.find_vm("u1") == record("a")
    assert await store.networks() == [network]
    assert await store.operations(unfinished=True) == [operation]
    assert list(await store.events()) == events
    await store.close()


async def test_a_commit_is_whole_or_nothing(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await store.commit(PutVm(record("a")))
    operation = Operation(id="o", kind="run", target="a")
    with pytest.raises(Conflict) as caught:
        await store.commit(PutOperation(operation), PutVm(record("a", "u2")))
    assert caught.value.field == "name"
    assert await store.find_operation("o") is None
    await store.commit(DeleteVm("u1"))
    assert await store.vms() == []
    await store.close()


async def test_finished_operations_are_not_unfinished(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    operation = Operation(id="o", kind="run", target="a")
    await store.commit(PutOperation(operation))
    done = operation.model_copy(update={"state": OperationState.DONE})
    await store.commit(PutOperation(done))
    assert await store.operations(unfinished=True) == []
    assert await store.operations() == [done]
    await store.close()


def token(name: str, ident: str) -> TokenRecord:
    return TokenRecord(id=ident, name=name, role=Role.VIEWER, digest="d" * 64, created=1.0)


async def test_tokens(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await store.commit(AddToken(token("b", "1")), AddToken(token("a", "2")))
    with pytest.raises(Conflict, match="a token named a exists already"):
        await store.commit(AddToken(token("a", "3")))
    await store.commit(TouchToken("1", 5.0), DeleteToken("2"), TouchToken("2", 6.0))
    await store.close()
    store = await opened(tmp_path / "s.db")
    assert await store.tokens() == [token("b", "1").model_copy(update={"used": 5.0})]
    await store.close()


async def test_a_database_of_before_there_were_tokens(tmp_path: Path) -> None:
    store = await opened(tmp_path / "s.db")
    await store.commit(PutVm(record("a")))
    await store.close()
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("DROP TABLE tokens")
        connection.execute("PRAGMA user_version=2")
    connection.close()
    store = await opened(tmp_path / "s.db")
    assert await store.vms() == [record("a")]
    assert await store.tokens() == []
    await store.close()


async def test_a_newer_or_damaged_database_is_refused(tmp_path: Path) -> None:
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as connection:
        connection.execute("PRAGMA user_version=999")
    connection.close()
    with pytest.raises(HostError, match="newer"):
        await opened(newer)
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"this is no database, and long enough to be looked at as one" * 50)
    with pytest.raises(HostError, match="cannot be opened"):
        await opened(damaged)


WRITER = """
import asyncio, sys
from pathlib import Path
from hanok.store.sqlite import SqliteStore
from hanok.store.base import PutOperation
from hanok.model.operation import Operation

async def main():
    store = SqliteStore(Path(sys.argv[1]))
    await store.open()
    for number in range(100000):
        await store.commit(PutOperation(Operation(id=str(number), kind="run", target="a")))
        print(number, flush=True)

asyncio.run(main())
"""


async def test_no_acknowledged_write_is_lost_by_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    deadline = time.monotonic() + 60
    last = -1
    for line in writer.stdout:
        last = int(line)
        if last >= 200 or time.monotonic() > deadline:
            break
    writer.kill()
    rest = writer.stdout.read().split()
    writer.wait()
    last = int(rest[-1]) if rest else last
    assert last >= 200
    store = await opened(path)
    for number in range(last + 1):
        assert await store.find_operation(str(number)) is not None
    await store.close()
