"""Tokens: made, listed, revoked, and recognized at every request that comes over the network."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import re
import time
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator

from hanok.credentials import digest_of, make_token
from hanok.errors import Conflict, HanokError, NotFound
from hanok.model.token import Role, TokenRecord, TokenRequest
from hanok.model.views import TokenView
from hanok.services.events import EventLog, make_event
from hanok.store.base import AddToken, DeleteToken, Store, TouchToken

_log = logging.getLogger(__name__)
_FORM = re.compile(r"hanok_[A-Za-z0-9_-]{43}")  # what credentials.make_token makes
_TOUCH_EVERY = 60.0


class TokenService:
    """Keeps all tokens at hand, by digest: whoever comes with a wrong one costs next to nothing."""

    def __init__(self, store: Store, events: EventLog) -> None:
        self._store = store
        self._events = events
        self._known: dict[str, TokenRecord] = {}
        self._touched: dict[str, float] = {}
        self._open: defaultdict[str, set[asyncio.Timeout]] = defaultdict(set)
        self._notes: set[asyncio.Task[None]] = set()
        self._changing = asyncio.Lock()

    async def load(self) -> None:
        """Forget what is at hand and read the tokens that are kept; end what others opened."""
        async with self._changing:
            self._known = {token.digest: token for token in await self._store.tokens()}
        left = {token.id for token in self._known.values()}
        for ident in set(self._open) - left:
            self._cut(ident)

    async def create(self, wanted: TokenRequest) -> tuple[str, TokenView]:
        """Make a token and return it, which happens only here, with what is kept of it.

        Raises Conflict when the name is taken.
        """
        token = make_token()
        now = time.time()
        record = TokenRecord(
            id=uuid.uuid4().hex[:12],
            name=wanted.name,
            role=wanted.role,
            digest=digest_of(token),
            created=now,
            expires=None if wanted.expires_in is None else now + wanted.expires_in,
        )
        async with self._changing:
            if any(other.name == record.name for other in self._known.values()):
                raise Conflict(
                    f"a token named {record.name} exists already",
                    field="name",
                    hint=f"choose another name, or 'hanok token revoke {record.name}' first",
                )
            event = make_event("token", record.name, "created", record.role)
            await self._events.commit(AddToken(record), event=event)
            self._known[record.digest] = record
        return token, _view(record, None)

    async def replace(self, name: str, digest: str) -> None:
        """Take an administrator's token of this digest; one that had the name is void."""
        record = TokenRecord(
            id=uuid.uuid4().hex[:12],
            name=name,
            role=Role.ADMINISTRATOR,
            digest=digest,
            created=time.time(),
        )
        async with self._changing:
            void = [one for one in self._known.values() if one.name == name]
            gone = [DeleteToken(one.id) for one in void]
            event = make_event("token", name, "created", record.role)
            await self._events.commit(*gone, AddToken(record), event=event)
            for one in void:
                del self._known[one.digest]
            self._known[record.digest] = record
        for one in void:
            self._cut(one.id)

    async def list(self) -> list[TokenView]:
        """Return the tokens, expired ones included."""
        tokens = await self._store.tokens()
        return [_view(token, self._touched.get(token.id, token.used)) for token in tokens]

    async def revoke(self, name: str) -> None:
        """Forget a token and end the streams that it opened. Raises NotFound."""
        async with self._changing:
            record = next((one for one in self._known.values() if one.name == name), None)
            if record is None:
                raise NotFound(
                    f"there is no token named {name}",
                    field="name",
                    hint="'hanok token list' shows those there are",
                )
            event = make_event("token", name, "revoked")
            await self._events.commit(DeleteToken(record.id), event=event)
            del self._known[record.digest]
        self._touched.pop(record.id, None)
        self._cut(record.id)

    def find(self, token: str) -> TokenRecord | None:
        """Return the record of a token that is good now."""
        if _FORM.fullmatch(token) is None:
            return None
        digest = digest_of(token)
        record = self._known.get(digest)
        if record is None or not hmac.compare_digest(record.digest, digest):
            return None
        return None if record.expires is not None and record.expires <= time.time() else record

    def touch(self, record: TokenRecord) -> None:
        """Note that a token is used: at most once a minute, and nobody waits for it."""
        now = time.time()
        last = self._touched.get(record.id, record.used or 0)
        if abs(now - last) < _TOUCH_EVERY:
            return
        self._touched[record.id] = now
        note = asyncio.create_task(self._note(record.id, now))
        self._notes.add(note)
        note.add_done_callback(self._notes.discard)

    async def _note(self, ident: str, used: float) -> None:
        try:
            await self._store.commit(TouchToken(ident, used))
        except HanokError as error:
            _log.warning("the last use of a token is not noted: %s", error.message)

    @contextlib.asynccontextmanager
    async def while_good(self, record: TokenRecord) -> AsyncIterator[asyncio.Timeout]:
        """Give a limit that ends the block, by TimeoutError, once the token is no longer good."""
        end = None
        if record.expires is not None:
            end = asyncio.get_running_loop().time() + record.expires - time.time()
        async with asyncio.timeout_at(end) as limit:
            self._open[record.id].add(limit)
            try:
                yield limit
            finally:
                self._open[record.id].discard(limit)
                if not self._open[record.id]:
                    del self._open[record.id]

    def _cut(self, ident: str) -> None:
        now = asyncio.get_running_loop().time()
        for limit in list(self._open.get(ident, ())):
            if not limit.expired():
                limit.reschedule(now)

    async def close(self) -> None:
        """Wait for what is being noted."""
        await asyncio.gather(*self._notes)


def _view(record: TokenRecord, used: float | None) -> TokenView:
    return TokenView(
        id=record.id,
        name=record.name,
        role=str(record.role),
        created=record.created,
        expires=record.expires,
        used=used,
    )
