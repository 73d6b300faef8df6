"""A guest that serves its name by HTTP: what it runs at its boot, and how it is asked."""

from __future__ import annotations

import urllib.request

from tests.machine import patient

SERVE = """#!/bin/sh
mkdir -p /srv
hostname > /srv/index.html
exec httpd -f -p 80 -h /srv
"""


def fetch(port: int) -> str:
    """Return what is served at a published port of this machine. Raises OSError."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=patient(10)) as answer:
        return str(answer.read().decode().strip())
