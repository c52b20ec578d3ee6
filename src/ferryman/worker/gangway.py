"""Where an app has tasks of both kinds: one line for the places that the two tracks of its executor have in common.

If each track filled all places by itself, twice as many jobs would run as are allowed. So jobs of both wait in one line,
in the order in which they came, and each one that is done lets the next one through to its track: neither track can keep
the other from its turn. What has been let through has a place, whether it has been begun or not.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Container, Sequence
from typing import Protocol

from ferryman.worker.frames import Assignment, Track

__all__ = ["Gangway"]


class Deck(Protocol):
    """A track, as it is seen from here: fed by one thread at a time, which need not be the same."""

    def feed(self, assignments: Sequence[Assignment]) -> None:
        """Have these jobs run, in their order. Does not block."""
        ...

    def take_back(self) -> list[Assignment]:
        """What was fed and has not been begun."""
        ...


class Gangway:
    """Thread-safe. It feeds the tracks while it holds its lock, lest a job overtake an earlier one on the way there."""

    def __init__(self, places: int, awaited: Container[str]) -> None:
        """`places` is how many jobs run at once; `awaited` are the names of the tasks that the loop runs."""
        self._free = places
        self._awaited = awaited
        self._line: collections.deque[Assignment] = collections.deque()
        self.lock = threading.Lock()
        """Whoever feeds a track or takes back from it has it."""
        self._threads: Deck
        self._loop: Deck

    def connect(self, threads: Deck, loop: Deck) -> None:
        """Say where it leads. To be called ahead of all else."""
        self._threads = threads
        self._loop = loop

    @property
    def is_crowded(self) -> bool:
        """Whether jobs wait in line."""
        return bool(self._line)

    def feed(self, assignments: Sequence[Assignment]) -> None:
        """Have these jobs run, in their order, as soon as there are places."""
        with self.lock:
            self._line += assignments
            self._let_through()

    def leave(self) -> bool:
        """A job that was let through needs its place no more. Answers whether that stays free."""
        with self.lock:
            self._free += 1
            if not self._line:
                return True
            self._let_through()
            return False

    def take_back(self) -> list[Assignment]:
        """All that has not been begun."""
        with self.lock:
            waiting = self._threads.take_back() + self._loop.take_back()
            self._free += len(waiting)
            waiting += self._line
            self._line.clear()
        return waiting

    def withdraw(self, serial: int, track: Track) -> Assignment | None:
        """Take a job out of the line. None if it is not there."""
        is_awaited = track == "loop"
        with self.lock:
            for each in self._line:
                if each.serial == serial and (each.claim.task in self._awaited) is is_awaited:
                    self._line.remove(each)
                    return each
        return None

    def _let_through(self) -> None:
        called: list[Assignment] = []
        awaited: list[Assignment] = []
        while self._free and self._line:
            self._free -= 1
            each = self._line.popleft()
            (awaited if each.claim.task in self._awaited else called).append(each)
        if called:
            self._threads.feed(called)
        if awaited:
            self._loop.feed(awaited)
