"""What must come to its end once it was begun."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

__all__ = ["afinish_aside", "finish", "finish_aside"]

T = TypeVar("T")

_under_way: set[asyncio.Future[Any]] = set()
"""What nobody waits for any more: an event loop by itself forgets its tasks."""


async def finish(work: Coroutine[Any, Any, T], patience: float | None = None) -> T:
    """Await it. Whoever is cancelled meanwhile waits for its end all the same, for `patience` seconds at most, and is
    cancelled then."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await _wait_for(doing, patience)
        raise


async def afinish_aside(work: Coroutine[Any, Any, object], patience: float) -> None:
    """Wait for its end for some seconds; if it takes longer, it goes on by itself. Its errors are nobody's."""
    await _wait_for(asyncio.ensure_future(work), patience)


async def _wait_for(doing: asyncio.Future[Any], patience: float | None) -> None:
    _under_way.add(doing)
    doing.add_done_callback(_forget)
    await asyncio.wait([doing], timeout=patience)


def _forget(done: asyncio.Future[Any]) -> None:
    _under_way.discard(done)
    # Whoever was cancelled is cancelled, whatever came of the work.
    if not done.cancelled():
        done.exception()


def finish_aside(work: Callable[[], object], patience: float) -> None:
    """`afinish_aside`, in a thread of its own."""

    def do() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=do, name="ferryman-aside", daemon=True)
    thread.start()
    thread.join(patience)
