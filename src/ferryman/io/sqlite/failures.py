"""SQLite's errors as ours, each with its remedy."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import NoReturn

from ferryman.errors import StoreCorrupt, StoreError, StoreFull, StoreReadOnly, StoreUnavailable

__all__ = ["BUSY_MS", "raise_mapped"]

BUSY_MS = 10_000
"""How long to wait for a foreign connection that holds the database, such as a user's open transaction."""


def raise_mapped(error: sqlite3.Error, path: str) -> NoReturn:
    """SQLite's error as ours, with the remedy."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            raise StoreUnavailable(
                f"the database {path!r} has been locked by another connection for {BUSY_MS // 1000} s; "
                "end the transaction that some program holds open on it"
            ) from error
        case sqlite3.SQLITE_FULL:
            raise StoreFull(
                f"the disk of the database {path!r} is full; nothing was stored. Make room on it"
            ) from error
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            raise StoreReadOnly(
                f"the database {path!r} cannot be written to; give this user the right to write "
                f"the file and its directory {str(Path(path).parent)!r}"
            ) from error
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            raise StoreCorrupt(
                f"the file {path!r} is damaged or no SQLite database ({error}); restore it from a backup, "
                "or move it away to begin with an empty one"
            ) from error
        case sqlite3.SQLITE_CANTOPEN:
            raise StoreUnavailable(
                f"the database {path!r} cannot be opened ({error}); check the path and the rights on it"
            ) from error
        case sqlite3.SQLITE_IOERR:
            raise StoreUnavailable(
                f"reading or writing the database {path!r} failed ({error}); nothing was stored. Check its disk"
            ) from error
        case _:
            raise StoreError(f"the database {path!r} answered: {error}") from error
