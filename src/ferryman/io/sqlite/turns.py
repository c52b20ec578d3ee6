"""Turns between processes that write to one file: a turnstile of two file locks.

Who wants to write first locks the *gate*, and holds it until it has the *turn*; so a busy process that
comes back at once finds the gate held by whoever is next, and cannot overtake. Locks of a process that was
killed are gone with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from ferryman.errors import StoreUnavailable

__all__ = ["Turnstile"]

_GIVE_UP = 30.0
"""Seconds after which something must be wrong with whoever has the turn."""


class Turnstile:
    """The turns of one file. Its user makes sure that only one thread of a process asks at a time."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._gate = -1
        self._turn = -1
        self._usable = True

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the turn. Raises StoreUnavailable if it does not come within 30 s."""
        if self._turn < 0 and self._usable:
            self._open()
        if not self._usable:
            # No lock file can be made there. The database's own lock still keeps writers apart.
            yield
            return
        self._lock(self._gate)
        try:
            self._lock(self._turn)
        finally:
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(self._turn, fcntl.LOCK_UN)

    def _lock(self, descriptor: int) -> None:
        """Poll, since a blocking flock could not give up: at first so often that little time is lost."""
        nap = 0.00005
        begun = 0.0
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return
            now = time.monotonic()
            begun = begun or now
            if now - begun > _GIVE_UP:
                raise StoreUnavailable(
                    f"another process has been writing to {self._path!r} for {_GIVE_UP:g} s; it may be stopped "
                    f"or hang: look for it with `fuser {self._path}-turn`"
                )
            time.sleep(nap)
            nap = min(nap * 1.1, 0.005)

    def _open(self) -> None:
        try:
            self._gate = _open_lock_file(f"{self._path}-gate")
            self._turn = _open_lock_file(f"{self._path}-turn")
            fcntl.flock(self._gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(self._gate, fcntl.LOCK_UN)
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno == errno.EMFILE:
                raise StoreUnavailable(
                    "this process has too many files open; raise its limit (ulimit -n)"
                ) from error
            self.close()
            self._usable = False

    def close(self) -> None:
        """Close the lock files."""
        for descriptor in (self._gate, self._turn):
            if descriptor >= 0:
                os.close(descriptor)
        self._gate = self._turn = -1

    def __del__(self) -> None:
        self.close()

    def abandon(self) -> None:
        """In a forked child: drop the descriptors, which share the parent's locks, without unlocking."""
        self.close()


def _open_lock_file(path: str) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
