"""QEMU (Type 2): one process a machine, by KVM or by software emulation (TCG)."""

from hanok.hypervisors.qemu.driver import QemuHypervisor
from hanok.hypervisors.qemu.probe import ProbeGuest

__all__ = ["ProbeGuest", "QemuHypervisor"]
