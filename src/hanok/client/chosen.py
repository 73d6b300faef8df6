"""Which host commands are for, by name. Small, since every command asks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from hanok.errors import InvalidInput

LOCAL = "local"


def config_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder of this user's configuration; it need not exist.

    For a user without a home it is a relative one: there is none, and none can be made. Raises
    InvalidInput for a relative HANOK_CONFIG.
    """
    if chosen := environ.get("HANOK_CONFIG"):
        folder = Path(chosen)
        if not folder.is_absolute():
            raise InvalidInput(
                f"the configuration folder is {chosen!r}",
                field="HANOK_CONFIG",
                expected="an absolute path",
            )
        return folder
    if base := environ.get("XDG_CONFIG_HOME"):
        return Path(base, "hanok")
    try:
        return Path.home() / ".config/hanok"
    except RuntimeError:
        return Path("~/.config/hanok")


def name_file(folder: Path) -> Path:
    """Return the file with the name of the remote in use."""
    return folder / "remote"


def name_in_use(folder: Path) -> str:
    """Return the name of the remote that ``hanok remote use`` said, or ``local``."""
    try:
        return name_file(folder).read_text().strip() or LOCAL
    except OSError:
        return LOCAL


def chosen_name(environ: Mapping[str, str], named: str | None) -> str:
    """Return where commands go: ``named``, else HANOK_REMOTE, else the one in use, or ``local``."""
    return named or environ.get("HANOK_REMOTE") or name_in_use(config_folder(environ))
