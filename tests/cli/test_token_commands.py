"""``hanok token`` against recorded answers."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.cli.conftest import Hanok
from tests.cli.stand_in import StandIn

TOKEN = "hanok_" + "x" * 43
PAIRS = ":".join(["ab"] * 32)


def record(name: str = "laptop", **fields: Any) -> dict[str, Any]:
    known = {"id": "t1", "name": name, "role": "operator", "created": 1.8e9}
    return {**known, "expires": None, "used": None, **fields}


def made(**fields: Any) -> dict[str, Any]:
    place = {"host": "Barn.example", "listen": "0.0.0.0:7443", "fingerprint": "ab" * 32}
    return {**record(), "token": TOKEN, **place, **fields}


def test_create_prints_the_token_alone(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "tokens", made(), status=201)
    done = hanok("token", "create", "laptop", "--role", "viewer", "--expires", "30d")
    assert done.returncode == 0
    assert done.stdout == f"{TOKEN}\n"
    assert f"hanok remote add barn https://Barn.example:7443 --fingerprint {PAIRS}" in done.stderr
    assert "good until it is revoked" in done.stderr
    assert TOKEN not in done.stderr
    asked = {"name": "laptop", "role": "viewer", "expires_in": 30 * 86400}
    assert api.only("POST", "tokens").json == asked


def test_create_for_programs(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "tokens", made(), status=201)
    done = hanok("token", "create", "laptop", "--json")
    assert json.loads(done.stdout) == made()
    assert done.stderr == ""
    assert api.only("POST", "tokens").json == {"name": "laptop", "role": "operator"}


@pytest.mark.parametrize(
    ("listen", "shown"),
    [("10.1.2.3:99", "https://10.1.2.3:99 "), ("[::]:7443", "https://Barn.example:7443 ")],
)
def test_where_to_go(api: StandIn, hanok: Hanok, listen: str, shown: str) -> None:
    api.on("POST", "tokens", made(listen=listen, expires=1.9e9), status=201)
    done = hanok("token", "create", "laptop")
    assert shown in done.stderr
    assert "good until 2030-" in done.stderr


def test_a_daemon_that_does_not_listen(api: StandIn, hanok: Hanok) -> None:
    api.on("POST", "tokens", made(listen=None, fingerprint=None), status=201)
    assert "serve --listen 0.0.0.0:7443" in hanok("token", "create", "laptop").stderr


@pytest.mark.parametrize("text", ["30", "d", "0d", "-1d", "1.5h", "99999999d", "30 years", "٣d"])
def test_times_that_are_none(api: StandIn, hanok: Hanok, text: str) -> None:
    done = hanok("token", "create", "laptop", f"--expires={text}")
    assert done.returncode == 2
    assert "such as 12h or 30d" in done.stderr
    assert api.asked == []


def test_list(api: StandIn, hanok: Hanok) -> None:
    tokens = [record(), record("old", expires=1.0e9, used=0.9e9, role="viewer")]
    api.on("GET", "tokens", tokens)
    shown = hanok("token", "list")
    assert re.search(r"^laptop +operator +.* +never +never$", shown.stdout, re.M)
    assert re.search(r"^old +viewer +.* +expired +1998-", shown.stdout, re.M)
    assert json.loads(hanok("token", "ls", "--json").stdout) == tokens
    api.on("GET", "tokens", [])
    hanok("token", "list")  # the answers are taken in turn
    assert "hanok token create" in hanok("token", "list").stdout


def test_revoke(api: StandIn, hanok: Hanok) -> None:
    api.on("DELETE", "tokens/laptop", None, status=204)
    done = hanok("token", "revoke", "laptop", "nobody")
    assert done.returncode == 1
    assert "laptop is revoked" in done.stdout
    assert "nobody" in done.stderr
