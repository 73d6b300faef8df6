"""Hot loops as machine code: one typed door to numba, which has no types of its own.

Importing this module costs about half a second, so only modules that compute import it, and nothing
that the command line or the daemon imports at its start. Results of the compiler are kept beside
the modules, or in the user's cache where that folder cannot be written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Return ``function`` compiled at its first call for the types that it is called with.

    What it may use is numpy arrays and numbers. Sums keep their order (no ``fastmath``), so that
    the same input gives the same answer on every machine.
    """
    return cast(Function, numba.njit(cache=True, nogil=True)(function))
