"""Routes of tokens."""

from __future__ import annotations

import socket
from typing import Annotated

from fastapi import APIRouter, Depends, Response

from hanok.api.common import CurrentServices, body_of, describes
from hanok.api.roles import administrator
from hanok.model.token import TokenRequest
from hanok.model.views import NewTokenView, TokenView

router = APIRouter(prefix="/tokens", tags=["Tokens"])


@router.get("")
@administrator
async def list_tokens(services: CurrentServices) -> list[TokenView]:
    """Return the tokens, without what is secret of them."""
    return await services.tokens.list()


@router.post("", status_code=201, openapi_extra=describes(TokenRequest))
@administrator
async def create_token(
    services: CurrentServices,
    response: Response,
    wanted: Annotated[TokenRequest, Depends(body_of(TokenRequest))],
) -> NewTokenView:
    """Make a token; this answer is the only one that tells it."""
    response.headers["Cache-Control"] = "no-store"
    token, record = await services.tokens.create(wanted)
    entrance = services.entrance
    return NewTokenView(
        **record,
        token=token,
        host=socket.gethostname(),
        listen=entrance.address,
        fingerprint=entrance.fingerprint,
    )


@router.delete("/{name}", status_code=204)
@administrator
async def revoke_token(services: CurrentServices, name: str) -> Response:
    """Revoke a token; the streams that it opened end."""
    await services.tokens.revoke(name)
    return Response(status_code=204)
