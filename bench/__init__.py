"""Benchmarks: what Hanok adds to plain QEMU, both measured in the same run on the same machine."""
