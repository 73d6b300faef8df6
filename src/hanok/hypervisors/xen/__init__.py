"""Xen, a Type 1 hypervisor, driven from Dom0 by its official toolstack ``xl`` and by xenstore."""

from hanok.hypervisors.xen.driver import XenHypervisor

__all__ = ["XenHypervisor"]
