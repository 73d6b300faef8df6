"""Hanok turns physical servers into virtual machines."""

__version__ = "0.1.0"
