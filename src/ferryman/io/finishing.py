"""What must come to its end once it was begun."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["finish"]

T = TypeVar("T")


async def finish(work: Coroutine[Any, Any, T]) -> T:
    """Await it. Whoever is cancelled meanwhile waits for its end all the same, and is cancelled then."""
    doing = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        # Cancelled is what it is, whatever came of the work.
        if not doing.cancelled():
            doing.exception()
        raise
