"""Tokens: who may ask what of a daemon that is reached over the network."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from hanok.model.base import Frozen, Name

_TEN_YEARS = 10 * 366 * 86400


class Role(StrEnum):
    """What a token's holder may do; each may do all that those before it may.

    viewer: see what there is. operator: all that is done with VMs, guests, templates, images and
    networks. administrator: tokens and the host itself.
    """

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMINISTRATOR = "administrator"

    def covers(self, needed: Role) -> bool:
        """Return whether a holder of this role may do what ``needed`` is the least role for."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


class TokenRecord(Frozen):
    """What the store keeps of a token: never the token itself."""

    id: str
    name: Name
    role: Role
    digest: str = Field(description="SHA-256 of the token, hexadecimal", repr=False)
    created: float = Field(description="seconds since the epoch")
    expires: float | None = Field(default=None, description="seconds since the epoch")
    used: float | None = Field(default=None, description="its last use, to the minute")


class TokenRequest(Frozen):
    """A token to make."""

    name: Name
    role: Role = Role.OPERATOR
    expires_in: int | None = Field(default=None, ge=1, le=_TEN_YEARS, description="seconds")
