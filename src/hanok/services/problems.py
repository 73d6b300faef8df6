"""Errors to and from the wire format (RFC 9457)."""

from __future__ import annotations

from hanok.errors import HanokError, all_error_types
from hanok.model.operation import Problem


def problem_of(error: BaseException) -> Problem:
    """Return what the API shows of ``error``; what is not ours is shown as an internal error."""
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


def error_of(problem: Problem) -> HanokError:
    """Return the error that ``problem`` was made of."""
    kind = all_error_types().get(problem.code, HanokError)
    return kind(problem.detail, field=problem.field, expected=problem.expected, hint=problem.hint)
