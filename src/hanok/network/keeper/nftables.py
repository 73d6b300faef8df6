"""Packet filters through libnftables(3): what nft(8) does, without a process for each change.

The library is part of Debian's package libnftables1, which nftables needs. A change of one
port takes a quarter of a millisecond, however many ports there are.
"""

from __future__ import annotations

import ctypes

from hanok.errors import CommandFailed, HostError

_LIBRARY = "libnftables.so.1"
_TAIL = 1000

try:
    _nft: ctypes.CDLL | None = ctypes.CDLL(_LIBRARY)
except OSError:
    _nft = None


class Nftables:
    """The filters of the network namespace in which this object is made."""

    def __init__(self) -> None:
        """Raises HostError when the library is missing."""
        if _nft is None:
            raise HostError(
                f"the library {_LIBRARY} is not installed",
                hint="apt-get install nftables, or run 'make setup'",
            )
        self._library = _nft
        self._library.nft_ctx_new.restype = ctypes.c_void_p
        self._library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_output(self._context)
        self._library.nft_ctx_buffer_error(self._context)

    def run(self, rules: str) -> None:
        """Apply ``rules`` in one transaction: all or none.

        Raises CommandFailed with what nftables said.
        """
        if self._library.nft_run_cmd_from_buffer(self._context, rules.encode()) != 0:
            said = self._library.nft_ctx_get_error_buffer(self._context)
            text = said.decode("utf-8", "replace").strip()[:_TAIL]
            raise CommandFailed(f"nftables failed: {text or 'no message'}")
