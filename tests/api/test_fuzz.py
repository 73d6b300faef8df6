"""The API as its own OpenAPI document describes it, asked what makes sense and what does not.

Every answer is one that the document's reader can expect: never an error inside Hanok, and what is
refused is refused as a problem with a stable code. Over the network, as a stranger would.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.core.result import Ok

from hanok.errors import all_error_types
from tests.api.conftest import Host
from tests.daemon.harness import Daemon
from tests.fuzz import LONG

# A stream that goes on for ever is another test's matter; images of these would be built for real.
_FOREVER = "follow"
_SLOW = 20.0
_EXAMPLES = 400 if LONG else 5
_VM = "web"


@pytest.fixture
def fuzzed(new_host: Host) -> Iterator[Host]:
    """A daemon with something to ask for."""
    new_host.daemon.run(_VM)
    yield new_host
    clean(new_host.daemon)


def clean(daemon: Daemon) -> None:
    """Remove what the fuzzer made."""
    for operation in daemon.client.operations():
        if operation["state"] in ("pending", "running"):
            list(daemon.client.follow(operation["id"]))
    for stack in daemon.client.stacks():
        daemon.done(daemon.client.down(stack["name"]))
    daemon.empty()
    for network in daemon.client.networks():
        daemon.client.delete_network(network["name"])


@pytest.mark.timeout(3600)
def test_no_request_makes_an_error_inside(fuzzed: Host) -> None:
    base = f"https://127.0.0.1:{fuzzed.wire.port}"
    token = fuzzed.token("fuzz", "administrator")
    schema = schemathesis.openapi.from_dict(document(base, token))
    uuid = fuzzed.daemon.client.vm(_VM)["uuid"]
    asked: dict[str, int] = {}
    begun = time.monotonic()
    for found in schema.get_all_operations():
        assert isinstance(found, Ok), found
        operation = found.ok()

        @settings(
            max_examples=_EXAMPLES,
            deadline=None,
            derandomize=not LONG,
            database=None,
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            check(case, base, token)
            asked[case.operation.label] = asked.get(case.operation.label, 0) + 1

        ask()
    took = time.monotonic() - begun
    print(f"\n{sum(asked.values())} requests of {len(asked)} kinds in {took:.0f} s")
    assert len(asked) > 40
    assert fuzzed.daemon.process is not None
    assert fuzzed.daemon.process.poll() is None
    assert "Traceback" not in fuzzed.daemon.log()
    # It may have been given another name.
    assert uuid in {
        fuzzed.daemon.client.vm(vm["name"])["uuid"] for vm in fuzzed.daemon.client.vms()
    }


def document(base: str, token: str) -> dict[str, Any]:
    """Return what the daemon says of its API."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = {"Authorization": f"Bearer {token}"}
        answer = requests.get(f"{base}/v1/openapi.json", headers=shown, verify=False, timeout=_SLOW)
    told: dict[str, Any] = answer.json()
    return told


def check(case: Any, base: str, token: str) -> None:
    """Send a request and judge the answer."""
    for name in ("vm", "name"):
        values = case.path_parameters or {}
        if name in values and case.method != "DELETE" and len(str(values[name])) % 2:
            case.path_parameters[name] = _VM
    if case.query and _FOREVER in case.query:
        case.query.pop(_FOREVER)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the certificate is pinned, not signed
        answer = case.call(
            base_url=base,
            headers={"Authorization": f"Bearer {token}"},
            verify=False,
            timeout=_SLOW,
        )
    seen = f"{case.as_curl_command()}\n{answer.status_code} {answer.text[:500]}"
    if answer.status_code < 400:
        return
    kind = (answer.headers.get("content-type") or [""])[0]
    assert kind.startswith("application/problem+json"), seen
    problem = answer.json()
    assert problem["status"] == answer.status_code or answer.status_code in (404, 405), seen
    assert problem["code"] in set(all_error_types()) - {"internal"}, seen
    assert problem["detail"], seen
