"""What a viewer may not read: the secrets that others put into their VMs."""

from __future__ import annotations

from pathlib import Path

from hanok.model.operation import KEPT, Operation
from hanok.store.base import PutOperation
from hanok.store.sqlite import SqliteStore
from tests.api.conftest import Host
from tests.api.wire import bearer

SECRET = "correct-horse-battery"
STACK = {"vms": {"web": {"image": "micro", "user_data": f"#!/bin/sh\n# {SECRET}\n"}}}


def test_user_data_is_shown_to_no_viewer(host: Host) -> None:
    client = host.daemon.client
    begun = client.up("shop", STACK)
    final = list(client.follow(begun["id"]))[-1]
    assert final["state"] == "done", final
    header = bearer(host.token("one", "viewer"))
    paths = (
        f"/v1/operations/{begun['id']}",
        f"/v1/operations/{begun['id']}/follow",
        "/v1/operations",
        "/v1/events",
        "/v1/vms",
        "/v1/vms/web",
        "/v1/stacks/shop",
    )
    answers = {path: host.wire.ask("GET", path, header) for path in paths}
    assert {answer.status for answer in answers.values()} == {200}
    assert [path for path in paths if SECRET.encode() in answers[path].raw] == []
    assert b"(redacted)" in answers[paths[0]].raw
    list(client.follow(client.down("shop")["id"]))


async def test_the_next_daemon_goes_on_with_what_was_kept(tmp_path: Path) -> None:
    operation = Operation(id="o", kind="up", target="shop", arguments={"stack": STACK})
    assert SECRET not in operation.model_dump_json()
    assert SECRET in operation.model_dump_json(context=KEPT)
    store = SqliteStore(tmp_path / "s.db")
    await store.open()
    await store.commit(PutOperation(operation))
    assert await store.find_operation("o") == operation
    await store.close()
