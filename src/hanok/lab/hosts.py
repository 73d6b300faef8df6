"""Makes and removes lab hosts, through the local daemon's API and this user's remotes.

The first of a kind boots. Once its daemon answers, and before it has any token, it is frozen as a
template; every other one of its kind is a clone of that.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hanok.client.client import Client, failure
from hanok.client.remotes import Remote, RemoteBook, checked_name, open_remote, refuse_known
from hanok.client.wire import OperationWire
from hanok.errors import Conflict, HanokError, NotFound
from hanok.lab import plan
from hanok.lab.entry import (
    TOKEN_NAME,
    enter,
    make_credentials,
    run_in,
    wait_for_answer,
    wait_for_daemon,
)
from hanok.lab.plan import Shape

_LOOPBACK = "127.0.0.1"
_PROBE_LIMIT = 400

Follow = Callable[[Sequence[OperationWire]], Sequence[OperationWire]]


@dataclass(frozen=True)
class Order:
    """Lab hosts that are wanted. ``cold``: boot each, and keep no template."""

    names: tuple[str, ...]
    shape: Shape
    network: str | None = None
    cold: bool = False


class Lab:
    """The lab of one local daemon.

    ``follow`` waits for operations and shows them meanwhile; ``tell`` shows what else goes on.
    """

    def __init__(
        self, client: Client, book: RemoteBook, follow: Follow, tell: Callable[[str], None]
    ) -> None:
        self._client = client
        self._book = book
        self._follow = follow
        self._tell = tell

    def up(self, order: Order) -> list[Remote]:
        """Make lab hosts, all of them or none, and return them as the remotes they now are.

        Raises InvalidInput, Conflict, NotAdmitted, HostError.
        """
        plan.checked_shape(order.shape)
        for name in order.names:
            refuse_known(checked_name(name), self._book.load())
        vms = self._client.vms()
        if taken := {vm["name"] for vm in vms} & set(order.names):
            raise Conflict(f"a VM named {min(taken)} exists already", field="NAME")
        self._warn(order.shape)
        image = self._done([self._client.build_image(order.shape.image, [])])[0]["id"]
        self._ensure_network(order.network)
        ports = plan.free_ports(vms, _is_free)
        hosts = {name: next(ports) for name in order.names}
        with contextlib.ExitStack() as undo:
            for name in hosts:
                undo.callback(self._undo, name)
            self._bring_up(order, hosts, plan.template_name(image, order.shape))
            with ThreadPoolExecutor(len(hosts)) as pool:
                remotes = list(pool.map(self._entered, hosts, hosts.values()))
            for remote in remotes:
                self._book.put(remote)
            undo.pop_all()
        self._forget_stale(order.shape.image, image)
        return remotes

    def down(self, names: Sequence[str]) -> list[str]:
        """Remove lab hosts and the remotes that they are; return their names. Raises NotFound."""
        hosts = plan.find_hosts(names, self._client.vms())
        found = [host["name"] for host in hosts]
        self._done([self._client.delete(name, force=True) for name in found])
        known = self._book.load()
        for host in hosts:
            remote = known.get(host["name"])
            if remote is not None and remote.url == _url(plan.port_of(host) or 0):
                self._book.remove(remote.name)
        return found

    def all_names(self) -> list[str]:
        """Return the names of all lab hosts."""
        return [vm["name"] for vm in plan.lab_hosts(self._client.vms())]

    def clean(self) -> list[str]:
        """Remove the templates of the lab that no host stands on; return their names."""
        idle = [t for t in self._client.templates() if plan.is_lab_template(t) and not t["clones"]]
        for template in idle:
            self._client.delete_template(template["name"])
        return [template["name"] for template in idle]

    def _warn(self, shape: Shape) -> None:
        if shape.hypervisor != "xen":
            return
        (emulator, *_) = self._client.host()["hypervisors"]
        if plan.loses_page_faults(emulator["accelerator"], emulator["version"]):
            self._tell(
                f"note: QEMU {emulator['version']} loses page faults of guests in modes hybrid and"
                " full there; those in mode para run (see docs/lab.md)"
            )

    def _bring_up(self, order: Order, hosts: dict[str, int], template: str) -> None:
        if order.cold:
            self._done([self._run(order, name, port) for name, port in hosts.items()])
            for name in hosts:
                self._wait_for_daemon(name)
            return
        rest = dict(hosts)
        if not self._is_ready(template):
            first, port = next(iter(hosts.items()))
            del rest[first]
            self._done([self._run(order, first, port)])
            self._wait_for_daemon(first)
            self._rehearse(first, port)
            self._freeze(order, first, template)
        self._done([self._clone(order, template, name, port) for name, port in rest.items()])

    def _run(self, order: Order, name: str, port: int) -> OperationWire:
        networks = {} if order.network is None else {"networks": [order.network]}
        spec = {**order.shape.spec(), **networks, "cold": True}
        return self._client.run({"name": name, "publish": [_publish(port)], **spec})

    def _clone(self, order: Order, template: str, name: str, port: int) -> OperationWire:
        wanted = {"template": template, "name": name, "publish": [_publish(port)]}
        return self._client.clone({**wanted, "networks": [order.network or "default"]})

    def _is_ready(self, template: str) -> bool:
        try:
            found = self._client.template(template)
        except NotFound:
            return False
        if found["state"] == "ready" and found["reason"] is None:
            return True
        if not found["clones"]:
            self._client.delete_template(template)
        return False

    def _wait_for_daemon(self, name: str) -> None:
        self._tell(f"{name}: waiting until its daemon answers")
        wait_for_daemon(self._client, name)

    def _rehearse(self, name: str, port: int) -> None:
        """Enter a host once before it is frozen: what its daemon does only once is done then.

        The token is nobody's: it is revoked again, so that the template has none.
        """
        client = open_remote(self._entered(name, port))
        client.vms()
        client.revoke_token(TOKEN_NAME)

    def _freeze(self, order: Order, name: str, template: str) -> None:
        """Make a template of a host whose daemon has no token yet, and has measured its KVM, or
        whose Xen answers."""
        if order.shape.hypervisor == "kvm":
            self._tell(f"{name}: measuring whether KVM runs a guest there")
            run_in(self._client, name, ["/usr/local/bin/hanok", "host", "probe"], _PROBE_LIMIT)
        if order.shape.hypervisor == "xen":
            run_in(self._client, name, ["/usr/sbin/xl", "list"], _PROBE_LIMIT)
        try:
            self._done([self._client.create_template(template, name)])
        except Conflict:
            if not self._is_ready(template):  # another command was quicker
                raise

    def _entered(self, name: str, port: int) -> Remote:
        """Give a host a certificate and a token, and return the remote that it is by them."""
        credentials = make_credentials()
        enter(self._client, name, credentials)
        remote = Remote(name, _url(port), credentials.fingerprint, credentials.token)
        wait_for_answer(remote)
        return remote

    def _ensure_network(self, name: str | None) -> None:
        if name is not None and name not in {one["name"] for one in self._client.networks()}:
            with contextlib.suppress(Conflict):
                self._client.create_network({"name": name})
                self._tell(f"network {name} is new; 'hanok network delete {name}' removes it")

    def _done(self, operations: Sequence[OperationWire]) -> list[dict[str, str]]:
        """Wait until all have ended and return their results. Raises the first error."""
        ended = self._follow(operations) if operations else []
        for error in (failure(operation) for operation in ended):
            if error is not None:
                raise error
        return [operation["result"] or {} for operation in ended]

    def _undo(self, name: str) -> None:
        with contextlib.suppress(HanokError):
            self._book.remove(name)
        with contextlib.suppress(HanokError):
            self._follow([self._client.delete(name, force=True)])

    def _forget_stale(self, ref: str, image: str) -> None:
        """Remove templates and images of an earlier Hanok that no host uses."""
        for name in plan.stale_templates(self._client.templates(), ref, image):
            with contextlib.suppress(HanokError):
                self._client.delete_template(name)
        for one in self._client.images():
            if one["ref"] == ref and one["id"] != image:
                with contextlib.suppress(HanokError):
                    self._client.delete_image(one["id"])


def _url(port: int) -> str:
    return f"https://{_LOOPBACK}:{port}"


def _publish(port: int) -> str:
    return f"{_LOOPBACK}:{port}:{plan.PORT}"


def _is_free(port: int) -> bool:
    """Whether nothing of this machine listens there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_LOOPBACK, port))
        except OSError:
            return False
        return True
