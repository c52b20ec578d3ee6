"""The bell of a worker on SQLite: a datagram socket that producers ring after they have committed.

A ring can be lost, and producers of other users may not be able to ring at all; so the version of the
database is looked at as well, which costs a few µs.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import stat
import tempfile
from pathlib import Path

from ferryman.io.sqlite.database import Database

__all__ = ["SqliteWaker"]


class SqliteWaker:
    """See `ferryman.store.port.Waker`. Not thread-safe."""

    poll = 0.05

    def __init__(self, database: Database) -> None:
        self._database = database
        self._version = database.version()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self.address: str | None = None
        directory = _directory()
        if directory is not None:
            _sweep(directory)
            self._hang(str(directory / f"{os.getpid()}-{secrets.token_hex(6)}"))

    def _hang(self, address: str) -> None:
        # Without a bell, `poll` is what a wake-up costs.
        with contextlib.suppress(OSError):
            self._socket.bind(address)
            self.address = address

    def fileno(self) -> int:
        return self._socket.fileno()

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(64)

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


def _directory() -> Path | None:
    """Of this user alone: nobody else shall be able to put a socket there, or to ring all day."""
    directory = Path(tempfile.gettempdir()) / f"ferryman-{os.getuid()}"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError:
        return None
    is_ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
    return directory if is_ours else None


def _sweep(directory: Path) -> None:
    """Take down the bells of processes that were killed."""
    for bell in directory.iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(bell.name.partition("-")[0])
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                bell.unlink()
