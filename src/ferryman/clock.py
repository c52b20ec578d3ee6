"""Time as integer milliseconds since the epoch, and a clock that tests can move.

A store asks its clock once a transaction; nothing else in Ferryman decides leases or due times.
"""

from __future__ import annotations

import time
from typing import Protocol

__all__ = ["CENTURY", "Clock", "ManualClock", "SystemClock", "millis"]

CENTURY = 100 * 365 * 86_400.0
"""Seconds: the longest time that anything is put off or kept for."""


class Clock(Protocol):
    """Anything that tells the time in milliseconds since the epoch."""

    def now(self) -> int: ...


class SystemClock:
    """The machine's own clock. Thread-safe."""

    __slots__ = ()

    def now(self) -> int:
        return time.time_ns() // 1_000_000


class ManualClock:
    """A clock that stands still until a test moves it. Not thread-safe."""

    __slots__ = ("_now",)

    def __init__(self, now: int = 1_700_000_000_000) -> None:
        self._now = now

    def now(self) -> int:
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock on (or back, if negative)."""
        self._now += millis(seconds)


def millis(seconds: float) -> int:
    """Seconds as people write them, as the whole milliseconds that stores keep."""
    return round(seconds * 1000)
