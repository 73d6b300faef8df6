"""Golden files: what a pure function is to give, kept beside its test.

``HANOK_UPDATE_GOLDEN=1`` writes them anew; read the difference before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path


def check_golden(path: Path, text: str) -> None:
    """Compare ``text`` with the golden file ``path``."""
    if os.environ.get("HANOK_UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()
