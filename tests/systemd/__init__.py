"""Tests of what is asked of systemd; the real one runs by ``python -m tests.systemd``."""
