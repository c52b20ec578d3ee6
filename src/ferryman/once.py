"""Effects outside the store, once for each key: idempotency keys with cached results, and windows that know what was
seen.

Both are entries of the store's key-value table, written by compare-and-set, so any number of processes agree.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ferryman.clock import CENTURY, millis
from ferryman.errors import ConfigError, LeaseLost, PayloadError, StoreBusy, StoreUnavailable
from ferryman.io.finishing import afinish_aside, finish, finish_aside
from ferryman.io.operation import Aside, Inside, Operation, Procedure, Wait, inside
from ferryman.options import unfit
from ferryman.store.records import Entry
from ferryman.values import SECONDS, TEXT, taken

if TYPE_CHECKING:
    from ferryman.app import App

__all__ = ["Once", "OnceKey", "Window"]

R = TypeVar("R")

log = logging.getLogger("ferryman")

_RUNNING, _DONE, _LOST = b"\x00", b"\x01", b"\x02"
"""The first byte of an entry: a call is under way, followed by who makes it; or its result follows, or why its result
could not be kept."""

_LOOK_AGAIN = 0.05
_TRY_AGAIN = 0.2
_PATIENCE = 1.0
"""Seconds for which whoever is stopped waits until the store has heard the rest."""


class Once(Generic[R]):
    """What a call made once came to."""

    __slots__ = ("duplicate", "value")

    def __init__(self, value: R, duplicate: bool) -> None:
        self.value = value
        self.duplicate = duplicate
        """Whether the call had been made before: then this is the result it had then."""

    def __repr__(self) -> str:
        return f"Once({self.value!r}, duplicate={self.duplicate})"


class OnceKey:
    """One key of one app; see `App.once`."""

    def __init__(self, app: App, key: str, ttl: float, lease: float, using: object) -> None:
        ttl, lease = taken("ttl", ttl, SECONDS), taken("lease", lease, SECONDS)
        if not (0 < ttl <= CENTURY and 0 < lease <= CENTURY):
            raise ConfigError(
                "the ttl and the lease of an idempotency key must be positive, and a hundred years at most"
            )
        key = str(key)  # As it has always been taken: many a key is the number of an order.
        if problem := unfit("the idempotency key", key):
            raise ConfigError(problem)
        self._app = app
        self._key = f"once:{key}"
        self._ttl = millis(ttl)
        self._lease = millis(lease)
        self._guest = None if using is None else app.store.using(using)
        self._mine = _RUNNING + secrets.token_bytes(8)
        self._is_asking = False
        """The key was asked for, and nothing heard of it since."""

    def run(self, call: Callable[[], R]) -> Once[R]:
        """Make the call in this thread, unless it was made before."""
        try:
            taken = self._app.perform(self._inside(self._take()))
        except BaseException as error:
            if self._is_asking and self._guest is None:
                self._tidy(self._leave_untaken(), error)
            raise
        if not isinstance(taken, int):
            return self._cached(taken)
        try:
            value = call()
        except BaseException as error:
            self._tidy(self._give_back(taken), error)
            raise
        try:
            self._app.perform(self._inside(self._keep(taken, value)))
        except Exception:
            raise
        except BaseException:
            # This thread was stopped while it wrote the note, which can be written twice, but must not be missing; inside
            # a transaction, which is rolled back then, it may. Stopped is what it is, whatever comes of the note.
            if self._guest is None:
                finish_aside(lambda: self._app.perform(self._keep(taken, value)), _PATIENCE)
            raise
        return Once(value, duplicate=False)

    async def arun(self, call: Callable[[], Awaitable[R]]) -> Once[R]:
        """Make the call in this event loop, unless it was made before."""
        try:
            taken = await self._app.aperform(self._inside(self._take()))
        except BaseException as error:
            if self._is_asking and self._guest is None:
                await self._atidy(self._leave_untaken(), error)
            raise
        if not isinstance(taken, int):
            return self._cached(taken)
        try:
            value = await call()
        except BaseException as error:
            await self._atidy(self._give_back(taken), error)
            raise
        await self._anote(taken, value)
        return Once(value, duplicate=False)

    async def _anote(self, taken: int, value: R) -> None:
        """`_keep`. Once begun, it comes to its end, also if it is cancelled; inside a transaction, which is rolled back
        then, it need not."""
        keeping = self._app.aperform(self._inside(self._keep(taken, value)))
        await (keeping if self._guest is not None else finish(keeping, _PATIENCE))

    def _tidy(self, rest: Procedure[None], error: BaseException) -> None:
        """Tell the store the rest after an error, which is what matters: if it cannot be told, as in a transaction that has
        failed, the key is free when that has ended, or its lease. Whoever was stopped does not wait for a store that
        hangs."""
        if self._guest is None and not isinstance(error, Exception):
            finish_aside(lambda: self._app.perform(rest), _PATIENCE)
            return
        with contextlib.suppress(Exception):
            self._app.perform(self._inside(rest))

    async def _atidy(self, rest: Procedure[None], error: BaseException) -> None:
        """`_tidy`, awaited."""
        if self._guest is None and not isinstance(error, Exception):
            await afinish_aside(self._app.aperform(rest), _PATIENCE)
            return
        with contextlib.suppress(Exception):
            await self._app.aperform(self._inside(rest))

    def _inside(self, procedure: Procedure[R]) -> Procedure[R]:
        return procedure if self._guest is None else inside(self._guest.runner, procedure)

    def _take(self) -> Procedure[int | bytes]:
        """The version under which the call is ours to make, or its result as it was kept."""
        has_waited = False
        while True:
            entry: Entry | None = yield self._app.store.kv_get(self._key)
            if entry is None or (has_waited and self._guest is not None):
                # A transaction that sees no later moment than its beginning would wait for the end of the lease, though
                # it can never take the key: this tells.
                version = yield from self._put()
                if version is not None:
                    return version
                has_waited = False
            elif entry.value[:1] != _RUNNING:
                return entry.value
            elif self._guest is not None and self._guest.exclusive:
                raise StoreUnavailable(
                    f"the call of {self._key} is under way elsewhere, and cannot be noted while this transaction is "
                    "open; roll back and try again"
                )
            else:
                # Somebody else is at it: either its result comes, or its lease ends.
                yield Wait(_LOOK_AGAIN)
                has_waited = True

    def _put(self) -> Procedure[int | None]:
        """Take the key if it is free."""
        self._is_asking = True
        version = yield from _patient(
            self._app.store.kv_put(self._key, self._mine, expected=None, ttl=self._lease)
        )
        self._is_asking = False
        return version

    def _leave_untaken(self) -> Procedure[None]:
        """Whoever does not get to hear that he has the key, does not make the call either: then the key must not be taken
        until the end of the lease."""
        store = self._app.store
        # This goes behind what was sent before, so what is found is what came of that.
        version: int | None = yield store.kv_put(self._key, self._mine, expected=None, ttl=1)
        entry: Entry | None = None if version is not None else (yield store.kv_get(self._key))
        if entry is not None and entry.value == self._mine:
            yield store.kv_put(self._key, self._mine, expected=entry.version, ttl=1)

    def _keep(self, version: int, value: Any) -> Procedure[None]:
        """The call has been made, and must not be made again for want of a note of it."""
        problem = None
        try:
            result = _DONE + self._app.codec.encode(value)
        except Exception as error:
            problem = PayloadError(f"the call of {self._key} was made, but its result is lost: it {error}")
            result = _LOST + str(problem).encode("utf-8", "backslashreplace")
        kept = yield from self._note(version, result)
        if not kept and self._guest is not None:
            raise LeaseLost(
                f"the call of {self._key} took longer than its lease of {self._lease / 1000:g} s, so that others may "
                "make it, too: roll back, and give it a longer lease"
            )
        if not kept:
            log.warning(
                "the call of %s took longer than its lease of %g s, and may have been made twice",
                self._key, self._lease / 1000,
            )  # fmt: skip
        if problem is not None:
            raise problem

    def _note(self, version: int, result: bytes) -> Procedure[bool]:
        """Write the result down, in spite of a store that is away for less than the lease. Answers whether it is there,
        which fails if somebody else has made the call after the lease."""
        store, give_up = self._app.store, time.monotonic() + self._lease / 1000
        expected: int | None = version
        while True:
            try:
                kept = yield store.kv_put(self._key, result, expected=expected, ttl=self._ttl)
                if kept is not None or self._guest is not None:
                    return kept is not None
                entry: Entry | None = yield store.kv_get(self._key)
                if entry is not None:
                    # Perhaps it was written before, and the answer lost.
                    return entry.value == result
                # The lease is over, and nobody has come since.
                expected = None
            except StoreUnavailable:
                if self._guest is not None or time.monotonic() > give_up:
                    raise
                yield Aside(lambda: time.sleep(_TRY_AGAIN))

    def _give_back(self, version: int) -> Procedure[None]:
        """Let others try: an entry that ends at once."""
        yield self._app.store.kv_put(self._key, _RUNNING, expected=version, ttl=1)

    def _cached(self, entry: bytes) -> Once[Any]:
        if entry[:1] == _LOST:
            raise PayloadError(entry[1:].decode())
        return Once(self._app.codec.decoder(Any)(entry[1:]), duplicate=True)


def _patient(put: Operation[int | None]) -> Procedure[int | None]:
    """Wait for the end of a transaction that holds the key, for as long as it takes."""
    while True:
        with contextlib.suppress(StoreBusy):
            version: int | None = yield put
            return version
        yield Wait(_LOOK_AGAIN)


class Window:
    """Knows the ids that were seen in the last `seconds`; see `App.window`. Thread-safe."""

    def __init__(self, app: App, name: str, seconds: float) -> None:
        taken("the name of a window", name, TEXT)
        seconds = taken("seconds", seconds, SECONDS)
        if not 0 < seconds <= CENTURY:
            raise ConfigError(f"the window {name!r} must be some seconds long, a hundred years at most")
        # So that no name runs into an id.
        prefix = name.replace("%", "%25").replace(":", "%3A")
        if problem := unfit("the name of a window", prefix):
            raise ConfigError(problem)
        self._app = app
        self._name = name
        self._prefix = f"window:{prefix}:"
        self._ttl = millis(seconds)

    def first(self, id: str, *, using: object = None) -> bool:
        """Whether this id is seen for the first time, which makes it seen.

        With `using`, a connection as for `Task.options`, it is seen only if your transaction is committed: so what
        the message causes there happens exactly once. Another consumer of the same id waits for your commit.

        Without, it is seen at once, and what the message causes happens at most once: whoever fails, or does not
        hear the answer, and asks again is told False. Where a message must not be lost, handle it in `App.once`.
        """
        return self._app.perform(self._first(id, using))

    async def afirst(self, id: str, *, using: object = None) -> bool:
        """`first`, awaited."""
        return await self._app.aperform(self._first(id, using))

    def _first(self, id: str, using: object) -> Procedure[bool]:
        id = str(id)
        if problem := unfit(f"in the window {self._name!r} the id", id):
            raise ConfigError(problem)
        store = self._app.store
        put = store.kv_put(self._prefix + id, b"", expected=None, ttl=self._ttl)
        if using is None:
            version: int | None = yield from _patient(put)
        else:
            version = yield Inside(store.using(using).runner, put)
        return version is not None
