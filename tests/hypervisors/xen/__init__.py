"""Xen: its pure parts, tested against golden files and recorded output."""
