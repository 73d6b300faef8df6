"""A real KVM host on any machine, and the tests that run in it; ``make test-kvm``."""
