"""Rates taken in slices by turns, so that whatever else the machine does hits the product and its floor alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

__all__ = ["Work", "rates"]

Work = Callable[[], int]
"""Does one batch, and answers how many jobs it was."""

_SLICES = 10


def rates(works: Sequence[Work], seconds: float) -> list[float]:
    """Jobs a second of each work: the median of its slices, which take `seconds` for each work."""
    slices: list[list[float]] = [[] for _ in works]
    for work in works:
        _slice(work, seconds / _SLICES / 2)  # Warms up what is cached.
    for turn in range(_SLICES):
        # Who goes first changes: the second may find the disk busy with what the first one left.
        order = range(len(works)) if turn % 2 else range(len(works) - 1, -1, -1)
        for number in order:
            slices[number].append(_slice(works[number], seconds / _SLICES))
    return [statistics.median(rates_of_work) for rates_of_work in slices]


def _slice(work: Work, seconds: float) -> float:
    done = 0
    begun = time.perf_counter()
    while True:
        done += work()
        elapsed = time.perf_counter() - begun
        if elapsed >= seconds:
            return done / elapsed
