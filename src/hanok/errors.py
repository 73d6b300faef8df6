"""Every error that Hanok shows, in one tree.

    HanokError                      exit 1, HTTP 500
    ├── InvalidInput                exit 2, HTTP 422  a field holds what it must not
    │   └── Unsupported             exit 2, HTTP 422  what was asked is not offered here
    ├── NotFound                    exit 1, HTTP 404
    ├── Conflict                    exit 1, HTTP 409  it exists, it is busy, it is in another state
    ├── NotAdmitted                 exit 1, HTTP 507  the host has no room for it
    │   └── DiskFull                                  a file system of the host is full
    ├── Cancelled                   exit 1, HTTP 409  the operation was cancelled
    ├── Unauthorized                exit 1, HTTP 401  no token, or not a good one
    ├── Forbidden                   exit 1, HTTP 403  the token's role is too small
    ├── HostError                   exit 1, HTTP 500  this host lacks something or refused something
    │   ├── CommandFailed                             a program ended with a failure
    │   ├── TimedOut                                  something took longer than its limit
    │   ├── DaemonUnreachable                         no daemon answers
    │   └── CertificateChanged                        not the pinned certificate: nothing was sent
    ├── HypervisorError             exit 1, HTTP 500  the hypervisor refused or died
    └── GuestError                  exit 1, HTTP 502  the guest did not do what was asked
        ├── NotReady                                  it runs, and did not come to be ready
        ├── AgentUnavailable                          no guest agent answers in the guest
        └── AgentRefused                              the command is blocked or unknown there

``code`` is stable: programs may test it. ``field`` names the input at fault (``vms.web.memory``),
``expected`` what would have been right, ``hint`` what a person can do next.
"""

from __future__ import annotations

from typing import ClassVar


class HanokError(Exception):
    """The root of all errors that are meant for a user."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500
    exit_status: ClassVar[int] = 1

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.expected = expected
        self.hint = hint


class InvalidInput(HanokError):
    """A field of a request, a file or an option holds what it must not."""

    code = "invalid-input"
    http_status = 422
    exit_status = 2


class Unsupported(InvalidInput):
    """What was asked is not offered here; the message names what is."""

    code = "unsupported"


class NotFound(HanokError):
    """No such VM, image, network, stack or operation."""

    code = "not-found"
    http_status = 404


class Conflict(HanokError):
    """The thing exists already, is in use, or is in a state that forbids what was asked."""

    code = "conflict"
    http_status = 409


class NotAdmitted(HanokError):
    """The host has no room; the message says how much is missing and what would fit."""

    code = "not-admitted"
    http_status = 507


class DiskFull(NotAdmitted):
    """A file system of the host is full; the message names it, and how much is needed."""

    code = "disk-full"


class Cancelled(HanokError):
    """The operation was cancelled by a user and undone."""

    code = "cancelled"
    http_status = 409


class Unauthorized(HanokError):
    """A daemon reached over the network was asked without a token, or not with a good one."""

    code = "unauthorized"
    http_status = 401


class Forbidden(HanokError):
    """The token is good, but its role is too small; the message names the one that is needed."""

    code = "forbidden"
    http_status = 403


class HostError(HanokError):
    """This host lacks a program, a permission or a kernel feature."""

    code = "host"


class CommandFailed(HostError):
    """A program that Hanok ran ended with a failure."""

    code = "command-failed"


class TimedOut(HostError):
    """Something took longer than its limit."""

    code = "timed-out"


class DaemonUnreachable(HostError):
    """No daemon answers at the socket."""

    code = "daemon-unreachable"


class CertificateChanged(HostError):
    """A remote host shows another certificate than the one that was pinned: nothing was sent."""

    code = "certificate-changed"


class HypervisorError(HanokError):
    """The hypervisor refused a request, or died."""

    code = "hypervisor"


class GuestError(HanokError):
    """The guest did not do what was asked of it."""

    code = "guest"
    http_status = 502


class NotReady(GuestError):
    """A VM runs, or ran, but is not what was asked for; its record keeps why."""

    code = "not-ready"


class AgentUnavailable(GuestError):
    """No guest agent answers in the guest."""

    code = "agent-unavailable"


class AgentRefused(GuestError):
    """The guest agent answers, but the command is blocked in it or unknown to it."""

    code = "agent-refused"


def all_error_types() -> dict[str, type[HanokError]]:
    """Return every error type by its code, for clients that rebuild an error from the wire."""
    found: dict[str, type[HanokError]] = {HanokError.code: HanokError}
    pending: list[type[HanokError]] = [HanokError]
    while pending:
        for kind in pending.pop().__subclasses__():
            found.setdefault(kind.code, kind)  # a service's own kind goes by its parent's code
            pending.append(kind)
    return found
