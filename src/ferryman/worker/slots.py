"""A table in shared memory that says what an executor runs: readable after the executor was killed.

Each track has a slot for each place, though they have the places in common, and that of threads one more, since it has a
thread more than places: the serial number of the job that it runs or ran last, and since when it runs (0 if it does
not). Since the jobs of a track are started in the order of their serial numbers, the largest one in its slots tells what
was started and what was not; save those whose arguments are still being fetched, of which their own slots say so.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import time
from typing import NamedTuple

from ferryman.worker.frames import Track

__all__ = ["Running", "SlotTable", "monotonic_ms"]

_SLOT_BYTES = 16

_FETCHING = 1
"""In the place of a start: the job is not started, its arguments are on their way."""


class Running(NamedTuple):
    """A job that an executor is at."""

    serial: int
    started_ms: int
    """By `monotonic_ms`, which all processes of a machine share."""


def monotonic_ms() -> int:
    """Milliseconds by the clock that the table is kept by."""
    return time.monotonic_ns() // 1_000_000


class SlotTable:
    """Slots ``0 … places`` are the thread track's, the next `places` the loop's (`slots_of`).

    Each slot has one writer at a time; anybody may read. Every write is one aligned word, which readers see
    whole.
    """

    __slots__ = ("_map", "_words", "fd", "places")

    def __init__(self, fd: int, places: int) -> None:
        """The table behind a file descriptor, which is kept open."""
        self.fd = fd
        self.places = places
        self._map = mmap.mmap(fd, _size(places))
        self._words = memoryview(self._map).cast("Q")

    @classmethod
    def create(cls, places: int) -> SlotTable:
        """An empty table. Its `fd` can be handed to a child process."""
        fd = _memory_file()
        os.ftruncate(fd, _size(places))
        return cls(fd, places)

    def close(self) -> None:
        """Let go of the memory and the file descriptor."""
        self._words.release()
        self._map.close()
        os.close(self.fd)

    def fetch(self, slot: int, serial: int) -> None:
        """A job will start here, once its arguments have been fetched."""
        words = self._words
        # In this order: the job that was here before must never look as if it had not been started.
        words[2 * slot] = serial
        words[2 * slot + 1] = _FETCHING

    def start(self, slot: int, serial: int) -> None:
        """A job starts here."""
        words = self._words
        # The serial number goes first: a job whose start is half told counts as started.
        words[2 * slot] = serial
        words[2 * slot + 1] = time.monotonic_ns() // 1_000_000

    def finish(self, slot: int) -> None:
        """The job has ended; its serial number stays."""
        self._words[2 * slot + 1] = 0

    def slots_of(self, track: Track) -> range:
        """A track's slots."""
        threads = self.places + 1
        return range(threads) if track == "thread" else range(threads, threads + self.places)

    def started_upto(self, track: Track) -> int:
        """The largest serial number that was started, or fetched for, on a track; 0 if there was none."""
        return max(self._words_of(track)[::2])

    def has_started(self, track: Track, serial: int) -> bool:
        """Whether a job of a track was started."""
        words = self._words_of(track)
        if serial > max(words[::2]):
            return False
        return (serial, _FETCHING) not in zip(words[::2], words[1::2], strict=True)

    def is_fetching(self, track: Track, serial: int) -> bool:
        """Whether the arguments of a job of a track are on their way, or were when the executor was killed."""
        words = self._words_of(track)
        return (serial, _FETCHING) in zip(words[::2], words[1::2], strict=True)

    def running(self, track: Track) -> list[Running]:
        """What runs on a track at this moment, or ran when the executor was killed."""
        words = self._words_of(track)
        return [
            Running(serial, since)
            for serial, since in zip(words[::2], words[1::2], strict=True)
            if since > _FETCHING
        ]

    def _words_of(self, track: Track) -> list[int]:
        slots = self.slots_of(track)
        return self._words[2 * slots.start : 2 * slots.stop].tolist()


def _size(places: int) -> int:
    return (2 * places + 1) * _SLOT_BYTES


def _memory_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ferryman-slots")
    fd, path = tempfile.mkstemp(prefix="ferryman-slots-")
    os.unlink(path)
    return fd
