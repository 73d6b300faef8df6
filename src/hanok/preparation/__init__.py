"""Turns a plain Debian server into a Type 1 host and back: a plan first, then the doing."""
