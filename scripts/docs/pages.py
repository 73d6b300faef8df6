"""Which pages are generated, and what each must say now."""

from __future__ import annotations

from pathlib import Path

from hanok import __version__
from scripts.docs import api, cli, man, settings

ROOT = Path(__file__).parents[2]


def pages() -> dict[str, str]:
    """Return the text of each generated page by its path below the checkout."""
    commands = cli.commands()
    return {
        "docs/reference/cli.md": cli.markdown(commands),
        "docs/reference/api.md": api.markdown(api.document()),
        "docs/reference/settings.md": settings.markdown(),
        "docs/man/hanok.1": man.roff(commands, __version__),
    }
