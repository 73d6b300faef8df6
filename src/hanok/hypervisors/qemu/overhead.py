"""What a machine takes of the host beyond its guest's RAM."""

from __future__ import annotations

from hanok.hypervisors.qemu.arch import OverheadFigures
from hanok.hypervisors.qemu.argv import default_tcg_buffer
from hanok.units import GIB


def overhead(
    figures: OverheadFigures, accelerator: str, cpus: int, memory: int, tcg_buffer: int | None
) -> int:
    """Return the bytes that a machine of this shape takes beyond ``memory`` bytes of RAM."""
    total = figures.base + cpus * figures.per_cpu + _share(figures.per_gib, memory)
    if accelerator == "kvm":
        return total
    buffer = tcg_buffer if tcg_buffer is not None else default_tcg_buffer(memory)
    translated = figures.translation_tables + _share(figures.per_gib_translated, memory)
    return total + buffer + translated


def _share(per_gib: int, memory: int) -> int:
    return -(-per_gib * memory // GIB)
