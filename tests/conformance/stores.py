"""Every store that the suite is run against. A new store is one more line of `STORES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ferryman.clock import Clock
from ferryman.store.open import open_store
from ferryman.store.port import Store
from tests.services import places


class Candidate(NamedTuple):
    """A store to be tested."""

    name: str
    url: Callable[[Path], str]
    """The URL of the store that lives in this folder, or under its name; empty at first."""
    shared: bool
    """Several can be opened on the same folder, by other processes too."""
    clear: Callable[[Path], None] = places.leave
    """Removes what is not in the folder itself, once all is closed that was opened on it."""

    def open(self, folder: Path, clock: Clock) -> Store:
        return open_store(self.url(folder), clock)


STORES = (
    Candidate("memory", lambda _: "memory://", shared=False),
    Candidate("sqlite", lambda folder: f"sqlite:///{folder}/jobs.db", shared=True),
    Candidate("redis", places.redis, shared=True, clear=places.leave_redis),
    Candidate("postgresql", places.postgres, shared=True, clear=places.leave_postgres),
)
