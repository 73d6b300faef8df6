"""Errors in the wire format (RFC 9457)."""

from __future__ import annotations

from hanok.errors import HanokError
from hanok.filesystems import full_error
from hanok.model.operation import Problem


def problem_of(error: BaseException) -> Problem:
    """Return what the API shows of ``error``; what is not ours is shown as an internal error."""
    if isinstance(error, OSError):
        error = full_error(error) or error
    if not isinstance(error, HanokError):
        return Problem(
            title="internal",
            status=500,
            detail=f"an error inside Hanok: {type(error).__name__}: {error}",
            code="internal",
            hint="please report it with the daemon's log",
        )
    return Problem(
        title=error.code,
        status=error.http_status,
        detail=error.message,
        code=error.code,
        field=error.field,
        expected=error.expected,
        hint=error.hint,
    )
