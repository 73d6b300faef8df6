"""What a machine takes of the host beyond its guest's RAM."""

from __future__ import annotations

from hanok.hypervisors.qemu.arch import OverheadFigures
from hanok.hypervisors.qemu.argv import default_tcg_buffer
from hanok.units import GIB


def overhead(
    figures: OverheadFigures, accelerator: str, cpus: int, memory: int, tcg_buffer: int | None
) -> int:
    """Return the bytes that a machine of this shape takes beyond ``memory`` bytes of RAM.

    base + cpus * per_cpu + GiB of RAM * per_gib, and with TCG its buffer and the vCPUs' TLBs. The
    figures and where they come from are in ``arch.py``.
    """
    page_tables = -(-figures.per_gib * memory // GIB)
    total = figures.base + cpus * figures.per_cpu + page_tables
    if accelerator == "kvm":
        return total
    buffer = tcg_buffer if tcg_buffer is not None else default_tcg_buffer(memory)
    return total + buffer + cpus * figures.per_cpu_translated
