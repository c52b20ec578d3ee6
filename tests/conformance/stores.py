"""Every store that the suite is run against. A new store is one more line of `STORES`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ferryman.clock import Clock
from ferryman.store.open import open_store
from ferryman.store.port import Store


class Candidate(NamedTuple):
    """A store to be tested."""

    name: str
    open: Callable[[Path, Clock], Store]
    """Opens the store that lives in this folder, empty at first."""
    shared: bool
    """Several can be opened on the same folder, by other processes too."""


STORES = (
    Candidate("memory", lambda _, clock: open_store("memory://", clock), shared=False),
    Candidate(
        "sqlite", lambda folder, clock: open_store(f"sqlite:///{folder}/ferryman.db", clock), shared=True
    ),
)
