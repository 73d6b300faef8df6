"""What a domain takes of the host beyond its guest's RAM.

Xen: the pool for nested page tables (or shadow ones) of PVH and HVM domains, as libxl counts it
(libxl_get_required_shadow_memory: 1 MiB a vCPU and 8 KiB a MiB of RAM), and its own records.
Dom0: the device model, one process a domain. Counted for the dearest mode, so that a VM fits
whatever its mode is.
"""

from __future__ import annotations

from hanok.errors import HostError
from hanok.units import KIB, MIB, format_size

_POOL_PER_CPU = 1 * MIB
_POOL_PER_MIB = 8 * KIB
# Xen's structures of a domain and its vCPUs, libxl's slack (LIBXL_MAXMEM_CONSTANT, 1 MiB) and the
# device model's video memory.
_DOMAIN = 6 * MIB
_PER_CPU = 256 * KIB
_DEVICE_MODEL = 48 * MIB
LEAST_IN_DOM0 = _DEVICE_MODEL + 16 * MIB  # xl and the xenstore tools come and go


def overhead(cpus: int, memory: int) -> int:
    """Return the bytes that a domain of this shape takes beyond ``memory`` bytes of RAM."""
    pool = cpus * _POOL_PER_CPU + -(-memory // MIB) * _POOL_PER_MIB
    return pool + _DOMAIN + cpus * _PER_CPU + _DEVICE_MODEL


def check_dom0(available: int) -> None:
    """Raise HostError when ``available`` bytes in Dom0 are too few for one more device model.

    Without this the kernel would end some process there, and it may be the one of another domain.
    """
    if available < LEAST_IN_DOM0:
        raise HostError(
            f"Dom0 is short of memory: {format_size(available)} are available",
            expected=f"at least {format_size(LEAST_IN_DOM0)}, for the domain's device model",
            hint="stop a program or a VM, or give Dom0 more: 'hanok host prepare --type 1"
            " --dom0-memory SIZE'",
        )
