"""The bell of a worker on SQLite: a datagram socket that producers ring after they have committed.

A ring can be lost, and producers of other users may not be able to ring at all; so the version of the
database is looked at as well, which costs a few µs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import tempfile
from pathlib import Path

from ferryman.io.sqlite import Database

__all__ = ["SqliteWaker"]


class SqliteWaker:
    """See `ferryman.store.port.Waker`. Not thread-safe."""

    poll = 0.05

    def __init__(self, database: Database) -> None:
        self._database = database
        self._version = database.version()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.address: str | None = str(_directory() / f"{os.getpid()}-{secrets.token_hex(6)}")
        try:
            self._socket.bind(self.address)
        except OSError:
            # No bell, then; `poll` is what a wake-up costs.
            self.address = None

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(64):
                pass

    def changed(self) -> bool:
        version = self._database.version()
        if version == self._version:
            return False
        self._version = version
        return True

    def close(self) -> None:
        self._socket.close()
        if self.address is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.address)


def _directory() -> Path:
    """Of this user alone: nobody else shall be able to put a socket there, or to ring all day."""
    directory = Path(tempfile.gettempdir()) / f"ferryman-{os.getuid()}"
    with contextlib.suppress(OSError):
        directory.mkdir(mode=0o700, exist_ok=True)
    return directory
