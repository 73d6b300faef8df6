"""Text that a guest sent, made safe to show: no control characters, bounded."""

from __future__ import annotations

_SHOWN = 300


def printable(data: str | bytes | object, limit: int = _SHOWN) -> str:
    """Return what a guest sent as one line of at most ``limit`` printable characters.

    Escape sequences would reach a person's terminal, and a long text an error message.
    """
    if isinstance(data, bytes):
        text = data[: 4 * limit].decode("utf-8", "replace")
    else:
        text = str(data)[: 4 * limit]
    shown = "".join(char if char.isprintable() else " " for char in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
