"""One typed method a route of the API. Errors are those of ``hanok.errors``, rebuilt by code."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import quote

from hanok.client.http import Transport, error_of
from hanok.client.wire import (
    FINAL_STATES,
    EventWire,
    FitWire,
    ImageKernelsWire,
    OperationWire,
    ProblemWire,
    VersionWire,
)
from hanok.errors import DaemonUnreachable, HanokError, InvalidInput

if TYPE_CHECKING:
    from hanok.model.views import (
        CatalogView,
        ExecView,
        HostView,
        ImageView,
        NetworkView,
        NewTokenView,
        SshView,
        StackView,
        TemplateView,
        TokenView,
        VmDetail,
        VmView,
        VncView,
    )

_RECONNECT_PAUSE = 0.2
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


class Client:
    """The daemon's API. Each call is one request; nothing is kept between calls."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    @property
    def transport(self) -> Transport:
        """What carries the requests; tunnels open their own connections through it."""
        return self._transport

    def _call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
        timeout: float | None = 120,
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with self._transport.request(
            method, f"/v1/{path}", query=query, body=data, timeout=timeout
        ) as response:
            content = response.read()
        if not content:
            return None
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise HanokError("the daemon's answer is not JSON") from error

    # Host and daemon

    def version(self) -> VersionWire:
        """Return who answers."""
        return cast(VersionWire, self._call("GET", "version"))

    def host(self) -> HostView:
        """Return what this host has and how much of it is taken."""
        return cast("HostView", self._call("GET", "host"))

    def probe(self) -> OperationWire:
        """Ask the hypervisors again what they can do here."""
        return self._operation("POST", "host/probe")

    def fit(self, shape: Mapping[str, object]) -> FitWire:
        """Return how many more VMs of ``shape`` (cpus, memory, disk, or a template) fit."""
        return cast(FitWire, self._call("POST", "fit", shape))

    # Tokens

    def tokens(self) -> list[TokenView]:
        """Return every token, without what is secret of it."""
        return cast("list[TokenView]", self._call("GET", "tokens"))

    def create_token(self, wanted: Mapping[str, object]) -> NewTokenView:
        """Make a token (name, role, expires_in in seconds). Raises InvalidInput, Conflict."""
        return cast("NewTokenView", self._call("POST", "tokens", wanted))

    def revoke_token(self, name: str) -> None:
        """Make a token worthless. Raises NotFound."""
        self._call("DELETE", f"tokens/{_segment(name)}")

    # VMs

    def vms(self) -> list[VmView]:
        """Return every VM."""
        return cast("list[VmView]", self._call("GET", "vms"))

    def vm(self, name: str) -> VmDetail:
        """Return the VM called ``name`` (or with that uuid). Raises NotFound."""
        return cast("VmDetail", self._call("GET", f"vms/{_segment(name)}"))

    def run(self, spec: Mapping[str, object]) -> OperationWire:
        """Create and start a VM. Raises InvalidInput, Conflict, NotAdmitted."""
        return self._operation("POST", "vms", spec)

    def change(self, name: str, action: str, body: object = None) -> OperationWire:
        """Ask for start, stop, restart, pause or resume. Raises NotFound, Conflict."""
        return self._operation("POST", f"vms/{_segment(name)}/{action}", body)

    def set(self, name: str, wanted: Mapping[str, object]) -> OperationWire:
        """Change a VM. Raises InvalidInput, NotFound, Conflict, NotAdmitted."""
        return self._operation("PATCH", f"vms/{_segment(name)}", wanted)

    def attach_disk(self, name: str, wanted: Mapping[str, object]) -> OperationWire:
        """Add a data disk to a VM (name, size), or attach one again. Raises as ``set``."""
        return self._operation("POST", f"vms/{_segment(name)}/disks", wanted)

    def detach_disk(self, name: str, disk: str, *, delete: bool) -> OperationWire:
        """Detach a data disk of a VM, and remove it with ``delete``. Raises as ``set``."""
        query = {"delete": "true" if delete else "false"}
        path = f"vms/{_segment(name)}/disks/{_segment(disk)}"
        return self._operation("DELETE", path, query=query)

    def delete(self, name: str, *, force: bool) -> OperationWire:
        """Delete a VM, a running one only by ``force``. Raises NotFound, Conflict."""
        flag = "true" if force else "false"
        return self._operation("DELETE", f"vms/{_segment(name)}", query={"force": flag})

    def export(self, name: str, format: str) -> OperationWire:
        """Write the system disk of a stopped VM to one file. Raises NotFound, Conflict."""
        return self._operation("POST", f"vms/{_segment(name)}/export", {"format": format})

    def export_image(self, ref: str, format: str) -> OperationWire:
        """Write the disk of an image to one file. Raises NotFound, Unsupported."""
        return self._operation("POST", f"images/{_segment(ref)}/export", {"format": format})

    def fetch_export(self, ident: str) -> Iterator[bytes]:
        """Yield what was exported in pieces as they come. Raises NotFound."""
        with self._transport.request(
            "GET", f"/v1/exports/{_segment(ident)}", timeout=600
        ) as response:
            yield from response.chunks()

    def forget_export(self, ident: str) -> None:
        """Let the daemon remove what was exported; nothing happens when it is gone."""
        self._call("DELETE", f"exports/{_segment(ident)}")

    # Templates and clones

    def templates(self) -> list[TemplateView]:
        """Return every template."""
        return cast("list[TemplateView]", self._call("GET", "templates"))

    def template(self, name: str) -> TemplateView:
        """Return the template called ``name`` (or with that id). Raises NotFound."""
        return cast("TemplateView", self._call("GET", f"templates/{_segment(name)}"))

    def create_template(self, name: str, source: str) -> OperationWire:
        """Freeze the VM ``source`` as a template. Raises InvalidInput, NotFound, Conflict."""
        return self._operation("POST", "templates", {"name": name, "source": source})

    def delete_template(self, name: str) -> None:
        """Delete a template. Raises NotFound, and Conflict that names its clones."""
        self._call("DELETE", f"templates/{_segment(name)}")

    def clone(self, wanted: Mapping[str, object]) -> OperationWire:
        """Make VMs of a template; all of them or none.

        Raises InvalidInput, NotFound, Conflict, NotAdmitted.
        """
        return self._operation("POST", "clones", wanted)

    # Guests

    def execute(
        self, name: str, command: Sequence[str], *, stdin: bytes | None, timeout: float
    ) -> ExecView:
        """Run ``command`` in the guest. Raises GuestError, AgentUnavailable, TimedOut."""
        body = {
            "command": list(command),
            "input": None if stdin is None else base64.b64encode(stdin).decode(),
            "timeout": timeout,
        }
        path = f"vms/{_segment(name)}/exec"
        return cast("ExecView", self._call("POST", path, body, timeout=timeout + 60))

    def ssh(self, name: str) -> SshView:
        """Return how to reach the guest by SSH. Raises Unsupported when it has none."""
        view = cast("SshView", self._call("GET", f"vms/{_segment(name)}/ssh"))
        # It becomes an argument of ssh, which takes what begins with a dash for an option, and
        # options run programs here. A remote host has no say in what runs on this machine.
        if not _USER.fullmatch(view["user"]):
            raise HanokError(
                f"the host answered with a user for SSH that is none: {view['user']!r}"
            )
        return view

    def screenshot(self, name: str) -> bytes:
        """Return what the screen of the VM shows, a PNG. Raises Conflict when it has none."""
        with self._transport.request("GET", f"/v1/vms/{_segment(name)}/screenshot") as response:
            return response.read()

    def admit_viewers(self, name: str) -> VncView:
        """Let viewers of the VM's screen in for a while. Raises Conflict when it has none."""
        return cast("VncView", self._call("POST", f"vms/{_segment(name)}/vnc"))

    def logs(self, name: str, *, lines: int | None, follow: bool) -> Iterator[bytes]:
        """Yield the console's log in pieces as they come."""
        query = {"follow": "true" if follow else "false"}
        if lines is not None:
            query["lines"] = str(lines)
        with self._transport.request(
            "GET", f"/v1/vms/{_segment(name)}/logs", query=query, timeout=None if follow else 120
        ) as response:
            yield from response.chunks()

    def read_file(self, name: str, path: str) -> Iterator[bytes]:
        """Yield the content of the guest's file ``path``. Raises NotFound, GuestError."""
        with self._transport.request(
            "GET", f"/v1/vms/{_segment(name)}/file", query={"path": path}, timeout=600
        ) as response:
            yield from response.chunks()

    def write_file(
        self, name: str, path: str, source: BinaryIO, length: int, mode: int | None = None
    ) -> None:
        """Write ``length`` bytes of ``source`` to the guest's file ``path``, with ``mode``.

        Raises GuestError, and InvalidInput when it is larger than an agent should carry.
        """
        query = {"path": path} if mode is None else {"path": path, "mode": str(mode)}
        with self._transport.request(
            "PUT",
            f"/v1/vms/{_segment(name)}/file",
            query=query,
            body=source,
            length=length,
            content_type="application/octet-stream",
            timeout=600,
        ) as response:
            response.read()

    def write_into(self, name: str, path: str, data: bytes) -> None:
        """Write ``data`` into what the guest has at ``path``, such as a pipe. Raises GuestError."""
        query = {"path": path, "as_it_is": "true"}
        with self._transport.request(
            "PUT",
            f"/v1/vms/{_segment(name)}/file",
            query=query,
            body=data,
            content_type="application/octet-stream",
            timeout=120,
        ) as response:
            response.read()

    # Operations and events

    def _operation(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        query: Mapping[str, str] | None = None,
    ) -> OperationWire:
        return cast(OperationWire, self._call(method, path, body, query=query))

    def operations(self) -> list[OperationWire]:
        """Return the operations that the daemon remembers."""
        return cast("list[OperationWire]", self._call("GET", "operations"))

    def operation(self, ident: str) -> OperationWire:
        """Return one operation. Raises NotFound."""
        return self._operation("GET", f"operations/{_segment(ident)}")

    def cancel(self, ident: str) -> OperationWire | None:
        """Ask for the end of an operation. Raises NotFound, Conflict when it has ended."""
        path = f"operations/{_segment(ident)}/cancel"
        return cast("OperationWire | None", self._call("POST", path))

    def finish(self, operation: OperationWire) -> OperationWire:
        """Return an operation once it has ended. Raises its error when it failed."""
        for seen in self.follow(operation["id"]):
            operation = seen
        error = failure(operation)
        if error is not None:
            raise error
        return operation

    def follow(self, ident: str) -> Iterator[OperationWire]:
        """Yield an operation at every change, until it has ended.

        When the daemon dies meanwhile the connection is made anew, which starts it again; it
        finishes or undoes what it was at. Raises DaemonUnreachable when that does not help.
        """
        path = f"/v1/operations/{_segment(ident)}/follow"
        attempts, most = 0, self._transport.peer.reconnects
        while attempts <= most:
            try:
                with self._transport.request("GET", path, timeout=None) as response:
                    for line in response.lines():
                        if not line.strip():
                            continue
                        attempts = 0
                        operation = cast(OperationWire, json.loads(line))
                        yield operation
                        if operation["state"] in FINAL_STATES:
                            return
            except DaemonUnreachable:
                if attempts == most:
                    raise
            if attempts:  # one that starts again on another host takes its time
                time.sleep(min(_RECONNECT_PAUSE * 2**attempts, 2))
            attempts += 1
        raise DaemonUnreachable(
            f"the daemon stopped telling about operation {ident}",
            hint=f"hanok operations show {ident}",
        )

    def events(self, *, follow: bool, since: int | None = None) -> Iterator[EventWire]:
        """Yield what happened, and with ``follow`` what happens."""
        query = {"follow": "true" if follow else "false"}
        if since is not None:
            query["since"] = str(since)
        with self._transport.request(
            "GET", "/v1/events", query=query, timeout=None if follow else 120
        ) as response:
            for line in response.lines():
                if line.strip():
                    yield cast(EventWire, json.loads(line))

    # Images, networks, stacks

    def images(self) -> list[ImageView]:
        """Return the images of this host."""
        return cast("list[ImageView]", self._call("GET", "images"))

    def image(self, ref: str) -> dict[str, Any]:
        """Return everything about one image. Raises NotFound."""
        return cast("dict[str, Any]", self._call("GET", f"images/{_segment(ref)}"))

    def image_kernels(self, ref: str) -> ImageKernelsWire:
        """Return what an image's kernels can do. Raises NotFound."""
        return cast("ImageKernelsWire", self._call("GET", f"images/{_segment(ref)}/kernels"))

    def paravirtualize(self, ref: str, wanted: Mapping[str, object]) -> OperationWire:
        """Make a new image of another, with a kernel that suits paravirtualization."""
        return self._operation("POST", f"images/{_segment(ref)}/paravirtualize", wanted)

    def build_image(self, image: str, packages: Sequence[str]) -> OperationWire:
        """Build an image; the same request again costs nothing."""
        return self._operation("POST", "images/build", {"image": image, "packages": list(packages)})

    def import_image(
        self, wanted: Mapping[str, str], source: BinaryIO, length: int
    ) -> OperationWire:
        """Send the ``length`` bytes of a disk that others made; ``wanted`` tells of it.

        Raises InvalidInput, Conflict, NotAdmitted.
        """
        with self._transport.request(
            "POST",
            "/v1/images/import",
            query=wanted,
            body=source,
            length=length,
            content_type="application/octet-stream",
            timeout=600,
        ) as response:
            return cast(OperationWire, response.json())

    def catalog(self) -> list[CatalogView]:
        """Return the images that can be pulled."""
        return cast("list[CatalogView]", self._call("GET", "catalog"))

    def pull_image(self, wanted: Mapping[str, str]) -> OperationWire:
        """Download an image of the catalog. Raises NotFound, Conflict."""
        return self._operation("POST", "images/pull", wanted)

    def delete_image(self, ref: str) -> None:
        """Delete an image. Raises NotFound, Conflict when a VM uses it."""
        self._call("DELETE", f"images/{_segment(ref)}")

    def networks(self) -> list[NetworkView]:
        """Return the networks of this host."""
        return cast("list[NetworkView]", self._call("GET", "networks"))

    def network(self, name: str) -> NetworkView:
        """Return one network. Raises NotFound."""
        return cast("NetworkView", self._call("GET", f"networks/{_segment(name)}"))

    def create_network(self, spec: Mapping[str, object]) -> NetworkView:
        """Create a network. Raises InvalidInput, Conflict."""
        return cast("NetworkView", self._call("POST", "networks", spec))

    def delete_network(self, name: str) -> None:
        """Delete a network. Raises NotFound, Conflict when a VM is on it."""
        self._call("DELETE", f"networks/{_segment(name)}")

    def stacks(self) -> list[StackView]:
        """Return the stacks that are up."""
        return cast("list[StackView]", self._call("GET", "stacks"))

    def stack(self, name: str) -> StackView:
        """Return one stack. Raises NotFound."""
        return cast("StackView", self._call("GET", f"stacks/{_segment(name)}"))

    def up(self, name: str, content: object) -> OperationWire:
        """Make a stack what ``content``, its file, says. Raises InvalidInput, NotAdmitted."""
        return self._operation("PUT", f"stacks/{_segment(name)}", content)

    def down(self, name: str) -> OperationWire:
        """Stop and delete a stack. Raises NotFound."""
        return self._operation("DELETE", f"stacks/{_segment(name)}")


def failure(operation: OperationWire) -> HanokError | None:
    """Return the error that ``operation`` ended with, or None when it is done (or goes on)."""
    problem: ProblemWire | None = operation["error"]
    if problem is not None:
        return error_of(json.dumps(problem).encode(), problem["status"])
    if operation["state"] in ("failed", "cancelled"):
        what = f"{operation['kind']} of {operation['target']}"
        return HanokError(
            f"{what} {operation['state']}: {operation['message'] or 'no reason told'}"
        )
    return None


def _segment(name: str) -> str:
    """Return ``name`` as one segment of a path. Raises InvalidInput when it cannot be one."""
    if name in ("", ".", ".."):
        raise InvalidInput(f"{name!r} is no name", expected="the name of something that exists")
    return quote(name, safe=":")
