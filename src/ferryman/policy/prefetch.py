"""How much work an executor holds ahead, and how jobs are shared among executors.

An executor shall never run dry while the store is asked for more, nor hold jobs that another could have
started. So it holds what it gets done in a few hundredths of a second, by the pace that it has shown: jobs
that take long are not held ahead at all.

What it holds is also what a crash may have run again at worst, since any of it may have been done and not yet settled.
So of jobs that take some ms, no more are held ahead than run: a crash repeats at most twice as many as run at once.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["Pace", "share"]

_WINDOW = 0.03
"""Seconds of work to hold ahead."""

_SAMPLE = 0.005
"""Seconds over which a sample of the pace is taken."""

_LONG = 0.004
"""Seconds of run time from which on a job is worth not being repeated. Shorter ones are held ahead as the pace asks."""

_MOST = 1_000


class Pace:
    """How many jobs an executor gets done in a second, as it showed lately. Times are in seconds."""

    __slots__ = ("_count", "_most", "_places", "_ran", "_rate", "_since")

    def __init__(self, now: float, places: int) -> None:
        """`places` is how many jobs it runs at once."""
        self._places = places
        self._count = 0
        self._ran = 0.0
        self._since = now
        self._rate = 0.0
        self._most = places

    def record(self, count: int, ran: float, now: float) -> None:
        """So many jobs have been done, which ran for so many seconds in all."""
        self._count += count
        self._ran += ran
        elapsed = now - self._since
        if elapsed >= _SAMPLE:
            self._rate += 0.4 * (self._count / elapsed - self._rate)
            self._most = self._places if self._ran >= _LONG * self._count else _MOST
            self._count = 0
            self._ran = 0.0
            self._since = now

    def ahead(self, now: float) -> int:
        """How many jobs to hold beyond those that run."""
        silence = now - self._since
        rate = self._rate if silence < _WINDOW else self._rate * _WINDOW / silence
        return min(self._most, int(rate * _WINDOW))


def share(count: int, rooms: Sequence[int]) -> list[int]:
    """Share `count` jobs among executors that have so much room each, so that the emptiest gets most.

    The answer sums up to `count`, or to all the room there is.
    """
    shares = [0] * len(rooms)
    order = sorted(range(len(rooms)), key=lambda index: -rooms[index])
    left = min(count, sum(rooms))
    # Level the rooms from the top: the largest is lowered to the next, these two to the third, and so on.
    for depth, index in enumerate(order, 1):
        if not left:
            break
        floor = rooms[order[depth]] if depth < len(order) else 0
        step = min((rooms[index] - floor) * depth, left)
        each, rest = divmod(step, depth)
        for place, member in enumerate(order[:depth]):
            shares[member] += each + (place < rest)
        left -= step
    return shares
