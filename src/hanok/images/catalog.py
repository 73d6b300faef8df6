"""The catalog: cloud images that distributions publish, each pinned by URL and digest.

``catalog.yaml`` beside this file is Hanok's own; HANOK_CATALOG names another file of the same form,
whose entries count before those.
"""

from __future__ import annotations

import difflib
import re
from importlib import resources
from pathlib import Path

import yaml
from pydantic import Field, TypeAdapter, ValidationError, field_validator

from hanok.errors import HostError, NotFound
from hanok.model.base import Frozen, Size
from hanok.model.image import ForeignFormat
from hanok.model.vm import Firmware, ImageRef

_DIGEST = r"^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$"


class CatalogEntry(Frozen):
    """One image: where it is (the first that answers counts) and what must come from there."""

    ref: ImageRef
    os: str = Field(max_length=100)
    urls: tuple[str, ...] = Field(min_length=1, max_length=8)
    digest: str = Field(pattern=_DIGEST)
    format: ForeignFormat
    ssh_user: str
    memory: Size = Field(description="bytes that its system should have")
    firmware: Firmware | None = None
    agent: bool = False

    @field_validator("urls")
    @classmethod
    def _is_web(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for url in value:
            if re.fullmatch(r"https?://[!-~]{1,2000}", url) is None:
                raise ValueError("expected URLs that start with https:// or http://")
        return value

    @property
    def name(self) -> str:
        """What the image is called here, without own:, unless the user says otherwise."""
        return re.sub(r"[^a-z0-9]+", "-", self.ref.lower()).strip("-")[:63]

    @property
    def file(self) -> str:
        """The name of the file that is downloaded."""
        return self.urls[0].rpartition("/")[2][:255]

    @property
    def is_packed(self) -> bool:
        """Whether the file is compressed by xz."""
        return self.file.endswith(".xz")


_ENTRIES = TypeAdapter(tuple[CatalogEntry, ...])


def read_catalog(more: Path | None = None) -> tuple[CatalogEntry, ...]:
    """Return all entries, those of the file ``more`` first.

    Raises HostError when that file is not there or is no catalog.
    """
    own = _ENTRIES.validate_python(
        yaml.safe_load((resources.files("hanok.images") / "catalog.yaml").read_text())
    )
    if more is None:
        return own
    try:
        added = _ENTRIES.validate_python(yaml.safe_load(more.read_text()) or ())
    except (OSError, ValueError, yaml.YAMLError, ValidationError) as error:
        raise HostError(
            f"the catalog {more} cannot be read: {str(error)[:300]}",
            hint="HANOK_CATALOG names it; docs/images.md describes its form",
        ) from None
    refs = {entry.ref for entry in added}
    return (*added, *(entry for entry in own if entry.ref not in refs))


def find_entry(catalog: tuple[CatalogEntry, ...], ref: str) -> CatalogEntry:
    """Return the entry called ``ref``. Raises NotFound with the nearest name."""
    for entry in catalog:
        if entry.ref == ref:
            return entry
    known = [entry.ref for entry in catalog]
    nearest = difflib.get_close_matches(ref, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]}?" if nearest else "'hanok image catalog' lists what there is"
    raise NotFound(f"there is no image {ref[:60]!r} in the catalog", field="image", hint=hint)
