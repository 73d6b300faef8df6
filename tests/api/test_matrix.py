"""Every route by every kind of token, over TLS, as the OpenAPI document lists them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter

from hanok.api.roles import take_roles, viewer
from tests.api.conftest import ROLES, Host
from tests.api.wire import HANDSHAKE, Answer, Wire, bearer, head
from tests.daemon.harness import wait_until

UNKNOWN = "hanok_" + "A" * 43
Route = tuple[str, str, str]  # method or WEBSOCKET, path, the role that it needs


def document(host: Host) -> dict[str, Any]:
    with host.daemon.client.transport.request("GET", "/v1/openapi.json") as response:
        found = response.json()
    assert isinstance(found, dict)
    return found


def routes(host: Host) -> list[Route]:
    """Return all routes, with nothing that exists in the place of names."""
    told = document(host)
    found = [
        (method.upper(), path, entry["x-hanok-role"])
        for path, entries in told["paths"].items()
        for method, entry in entries.items()
    ]
    sockets = told["x-hanok-websockets"].items()
    found += [("WEBSOCKET", path, entry["x-hanok-role"]) for path, entry in sockets]
    return [
        (method, re.sub(r"{port}", "80", path).replace("{", "no-").replace("}", ""), role)
        for method, path, role in found
    ]


def ask(wire: Wire, method: str, path: str, *headers: str) -> Answer:
    if method == "WEBSOCKET":
        return wire.ask("GET", path, *headers, *HANDSHAKE)
    return wire.ask(method, path, *headers)


def revoked(host: Host) -> list[str]:
    token = host.token("gone")
    host.daemon.client.revoke_token("gone")
    return [bearer(token)]


def expired(host: Host) -> list[str]:
    token = host.token("short", "administrator", expires_in=1)
    (record,) = [one for one in host.daemon.client.tokens() if one["name"] == "short"]
    end = record["expires"]
    assert end is not None
    wait_until(lambda: time.time() >= end, 10, "the token has expired")
    return [bearer(token)]


def good(host: Host) -> str:
    return host.token("good", "administrator")


WRONG: dict[str, Callable[[Host], list[str]]] = {
    "none": lambda host: [],
    "unknown": lambda host: [bearer(UNKNOWN)],
    "expired": expired,
    "revoked": revoked,
    "empty": lambda host: ["Authorization:"],
    "no scheme": lambda host: [f"Authorization: {good(host)}"],
    "another scheme": lambda host: [f"Authorization: Basic {good(host)}"],
    "cut off": lambda host: [bearer(good(host)[:-1])],
    "longer": lambda host: [bearer(good(host) + "A")],
    "no ASCII": lambda host: [bearer(good(host)[:-1] + "\u00e9")],
    "twice": lambda host: [bearer(good(host))] * 2,
    "two": lambda host: [bearer(UNKNOWN), bearer(good(host))],
    "a list": lambda host: [bearer(f"{UNKNOWN}, {good(host)}")],
    "elsewhere": lambda host: [f"Cookie: token={good(host)}", f"X-Token: {good(host)}"],
}


@pytest.mark.parametrize("kind", WRONG)
def test_nothing_opens_without_a_good_token(host: Host, kind: str) -> None:
    headers = WRONG[kind](host)
    found, bodies = [], set()
    wire = host.wire
    for method, path, _ in routes(host):
        answer = ask(wire, method, path, *headers)
        bodies.add(answer.body)
        if answer.status != 401 or says_more_than_it_must(answer):
            found.append((method, path, answer.raw))
    assert found == []
    assert len(bodies) == 1, "answers differ, which tells something"


def says_more_than_it_must(answer: Answer) -> bool:
    allowed = {"content-length", "content-type", "connection", "www-authenticate", "date"}
    more = set(answer.headers) - allowed
    return bool(more) or answer.problem["code"] != "unauthorized" or b"0.1" in answer.raw


@pytest.mark.parametrize("role", ROLES)
def test_a_role_opens_what_it_may_and_nothing_else(host: Host, role: str) -> None:
    header = bearer(host.token("one", role))
    found = []
    wire = host.wire
    for method, path, needed in routes(host):
        if path.startswith("/v1/events") or (method, path) == ("DELETE", "/v1/tokens/one"):
            path += "?follow=false"
        answer = ask(wire, method, path, header)
        may = ROLES.index(role) >= ROLES.index(needed)
        if may and answer.status in (0, 401, 403):
            found.append((method, path, needed, answer.raw))
        if not may and not (
            answer.status == 403
            and answer.problem["code"] == "forbidden"
            and needed in answer.problem["detail"]
        ):
            found.append((method, path, needed, answer.raw))
    assert found == []


def test_who_may_what(host: Host) -> None:
    told = {(method, path): role for method, path, role in routes(host)}
    assert set(told.values()) == set(ROLES)
    secret = {
        ("GET", "/v1/vms/no-vm/file"),
        ("GET", "/v1/vms/no-vm/logs"),
        ("GET", "/v1/vms/no-vm/screenshot"),
        ("GET", "/v1/exports/no-export"),
        ("GET", "/v1/tokens"),
    }
    for (method, path), role in told.items():
        if "/tokens" in path or path == "/v1/host/probe":
            assert role == "administrator", path
        elif (method == "GET" and (method, path) not in secret) or path == "/v1/fit":
            assert role == "viewer", path
        else:
            assert role == "operator", path


def test_one_route_for_each_request(host: Host) -> None:
    """Two that match the same request could be told apart otherwise by guard and application."""
    patterns = [
        (method, re.compile(re.sub(r"{\w+}", "[^/]+", path)))
        for path, entries in document(host)["paths"].items()
        for method in entries
    ]
    for method, path, _ in routes(host):
        same = [p for m, p in patterns if m.upper() == method and p.fullmatch(path)]
        assert len(same) == (method != "WEBSOCKET"), path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1"),
        ("GET", "/v1/"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/v1/vms/"),
        ("GET", "//v1/version"),
        ("GET", "/v1/%76ersion"),
        ("GET", "/v1/../v1/version"),
        ("GET", "http://hanok/v1/version"),
        ("HEAD", "/v1/version"),
        ("OPTIONS", "/v1/version"),
        ("OPTIONS", "*"),
        ("TRACE", "/v1/version"),
        ("PATCH", "/v1/vms"),
        ("GET", "/v1/version?token={token}"),
        ("GET", "/v1/version?access_token={token}"),
        ("WEBSOCKET", "/"),
        ("WEBSOCKET", "/v1/vms/first/console?token={token}"),
    ],
)
def test_no_way_around(host: Host, method: str, path: str) -> None:
    token = host.token("good", "administrator")
    answer = ask(host.wire, method, path.format(token=token))
    assert answer.status in (0, 401)
    if answer.status == 0:
        assert answer.raw == b""
    elif method != "HEAD":
        assert not says_more_than_it_must(answer)


@pytest.mark.parametrize("path", ["/", "/docs", "/v1/vms/", "/v1/nothing", "/v1/vms/a/b/c"])
@pytest.mark.parametrize("method", ["GET", "DELETE", "PATCH", "WEBSOCKET"])
def test_what_is_no_route_is_not_found(host: Host, method: str, path: str) -> None:
    answer = ask(host.wire, method, path, bearer(host.token("one", "viewer")))
    assert answer.status == 404
    assert answer.problem["code"] == "not-found"


def test_a_scheme_in_any_case(host: Host) -> None:
    header = bearer(host.token("one", "viewer")).replace("Bearer", "bEARER")
    assert host.wire.ask("GET", "/v1/version", header).status == 200


def test_a_token_in_each_request_of_a_connection(host: Host) -> None:
    header = bearer(host.token("one", "viewer"))
    first = head("GET", "/v1/version", header).replace(b"Connection: close\r\n", b"")
    second = head("GET", "/v1/version")
    raw = host.wire.send(first + second).raw
    assert re.findall(rb"HTTP/1.1 (\d+)", raw) == [b"200", b"401"]


def test_a_route_without_a_role_is_refused() -> None:
    router = APIRouter()

    @router.get("/known")
    @viewer
    async def known() -> int:
        return 1

    access = take_roles([router], "/v1")
    assert access.needed({"type": "http", "method": "GET", "path": "/v1/known"}) == "viewer"
    assert access.needed({"type": "http", "method": "PUT", "path": "/v1/known"}) is None
    assert access.needed({"type": "websocket", "path": "/v1/known"}) is None

    @router.websocket("/forgotten")
    async def forgotten() -> None: ...

    with pytest.raises(RuntimeError, match="/forgotten"):
        take_roles([router], "/v1")
