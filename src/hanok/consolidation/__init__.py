"""From measured load of dedicated servers to a plan of hosts and VMs: pure, models in, plan out.

Modules that compute need the extra ``plan`` (numpy, numba, HiGHS); nothing that the daemon or the
command line imports at its start imports them.
"""
