"""A bell that wakes one sleeping thread."""

from __future__ import annotations

import contextlib
import threading

__all__ = ["Bell"]


class Bell:
    """Thread-safe. One ring is remembered until somebody waits; more are not counted.

    A bare lock, unlike `threading.Event`: ringing takes no other lock inside, so an exception that is raised in
    the ringing thread from outside (see `ferryman.worker.stopping`) cannot leave one behind.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lock.acquire()

    def ring(self) -> None:
        """Wake who waits, or the next who will."""
        with contextlib.suppress(RuntimeError):  # It rings already.
            self._lock.release()

    def wait(self, seconds: float = -1) -> None:
        """Sleep until it rings, or so many seconds have passed if they are not negative."""
        self._lock.acquire(timeout=seconds)
