"""A real KVM host, or the Dom0 of a Xen, on any machine, and tests that run in it."""
