"""The guard in front of everything that comes over the network: no token, no word."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hanok.api.common import problem_response
from hanok.api.roles import Access
from hanok.errors import Forbidden, HanokError, NotFound, Unauthorized
from hanok.model.token import Role, TokenRecord
from hanok.services.tokens import TokenService

_log = logging.getLogger(__name__)
_TELL_EVERY = 60.0
_SCHEME = "bearer"
_POLICY_VIOLATION = 1008

Headers = Iterable[tuple[bytes, bytes]]


def bearer_of(headers: Headers) -> str | None:
    """Return the token that a request shows, or None when it shows none, or more than one."""
    shown = [value for name, value in headers if name.lower() == b"authorization"]
    if len(shown) != 1:
        return None
    scheme, _, token = shown[0].decode("latin-1").partition(" ")
    return token.strip() if scheme.lower() == _SCHEME else None


def unauthorized() -> Unauthorized:
    """Return the one error for all that is wrong with a token: it does not help to guess."""
    return Unauthorized(
        "no good token came with the request: it is missing, unknown, expired or revoked",
        hint="an administrator of that host makes one with 'hanok token create'",
    )


class Guard:
    """Asks every request for a token before any of it is read, then for the role.

    Streams end when their token does; a request that changes something is finished.
    """

    def __init__(self, app: ASGIApp, tokens: TokenService, access: Access) -> None:
        self._app = app
        self._tokens = tokens
        self._access = access
        self._refusals = _Refusals()

    def find(self, headers: Headers) -> TokenRecord | None:
        """Return the good token that ``headers`` show; takes no time to speak of."""
        token = bearer_of(headers)
        return None if token is None else self._tokens.find(token)

    def refused(self, client: object) -> None:
        """Note that ``client`` (address and port, if known) came without a good token."""
        self._refusals.note(client)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may pass; answer the rest."""
        if scope["type"] not in ("http", "websocket"):
            raise RuntimeError(f"nothing of type {scope['type']} passes here")
        record = self.find(scope["headers"])
        if record is None:
            self.refused(scope.get("client"))
            await _answer(scope, receive, send, unauthorized())
            return
        self._tokens.touch(record)
        needed = self._access.needed(scope)
        error = _denied(record, needed, scope)
        if error is not None:
            await _answer(scope, receive, send, error)
        elif scope["type"] == "http" and scope["method"] != "GET":
            await self._app(scope, receive, send)
        else:
            await self._pass_while_good(record, scope, receive, send)

    async def _pass_while_good(
        self, record: TokenRecord, scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            async with self._tokens.while_good(record) as limit:
                await self._app(scope, receive, watched)
        except TimeoutError:
            if not limit.expired():
                raise
            if not started:
                await _answer(scope, receive, send, unauthorized())
            elif scope["type"] == "websocket":
                reason = "the token is no longer good"
                await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": reason})
            # else: an answer that ends before its end breaks the connection, as it should


def _denied(record: TokenRecord, needed: Role | None, scope: Scope) -> HanokError | None:
    """Return why a good token does not open this, or None when it does."""
    if needed is None:  # the application never sees a path that no role was told for
        method = scope.get("method", "WebSocket")
        return NotFound(f"there is no {method} {scope['path']}", hint="see /v1/openapi.json")
    if record.role.covers(needed):
        return None
    return Forbidden(
        f"this needs the role {needed}; the token {record.name} has the role {record.role}",
        hint=f"an administrator makes one with 'hanok token create NAME --role {needed}'",
    )


async def _answer(scope: Scope, receive: Receive, send: Send, error: HanokError) -> None:
    """Answer without reading the request. The connection ends: its body is still in it."""
    answer = problem_response(error)
    answer.headers["Connection"] = "close"
    if isinstance(error, Unauthorized):
        answer.headers["WWW-Authenticate"] = "Bearer"
    await answer(scope, receive, send)


class _Refusals:
    """Tells the log of refusals, at most once a minute."""

    def __init__(self) -> None:
        self._untold = 0
        self._told = -_TELL_EVERY

    def note(self, client: object) -> None:
        self._untold += 1
        now = time.monotonic()
        if now - self._told < _TELL_EVERY:
            return
        who = client[0] if isinstance(client, tuple) and client else "somewhere"
        _log.warning("refused without a good token: %d, the last from %s", self._untold, who)
        self._untold, self._told = 0, now
