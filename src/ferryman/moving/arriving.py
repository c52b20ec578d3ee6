"""While jobs arrive in a store, it deletes no finished ones: those are proof that they have arrived, and parents that children
on their way will ask for."""

from __future__ import annotations

import time

import msgspec

from ferryman.store.port import Store
from ferryman.store.records import ARRIVING

__all__ = ["Arriving"]

_DAY = 86_400_000
"""ms for which it lasts when nobody keeps it up: one who was killed has as long to begin again."""
_RENEW = 60.0
"""Seconds between renewals."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, int]).decode


class Arriving:
    """The word of one who brings jobs to a store; those of several stand beside one another. Not thread-safe."""

    def __init__(self, store: Store, name: str) -> None:
        """`name`: the same when it is begun again."""
        self._store = store
        self._name = name
        self._renew_at = 0.0

    def keep_up(self) -> None:
        """Let it last for a day from now."""
        now = time.monotonic()
        if now >= self._renew_at:
            self._say(_DAY)
            self._renew_at = now + _RENEW

    def end(self) -> None:
        """All have arrived."""
        self._say(0)

    def _say(self, ttl: int) -> None:
        run = self._store.runner().run
        while True:
            entry = run(self._store.kv_get(ARRIVING))
            now = run(self._store.time())
            ends = {} if entry is None else _decode(entry.value)
            ends[self._name] = now + ttl
            ends = {name: end for name, end in ends.items() if end > now}
            if not ends and entry is None:
                return
            version = None if entry is None else entry.version
            # The last one's end is the value's, so that it is compared before it goes: somebody may begin just now.
            rest = max(ends.values(), default=now) - now
            if run(self._store.kv_put(ARRIVING, _encode(ends), expected=version, ttl=rest)) is not None:
                return
