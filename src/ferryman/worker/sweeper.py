"""Deletes large payloads whose jobs are gone."""

from __future__ import annotations

import logging
import time

from ferryman.blob.open import open_blobs
from ferryman.io.operation import perform
from ferryman.job import WorkerId
from ferryman.payload import SHARDS, sweep
from ferryman.store.port import Store

__all__ = ["Sweeper"]

log = logging.getLogger("ferryman.worker")

_TURN_MS = 10_000
"""How long it is one shard's turn: so each is swept about every 43 minutes."""

_LOCK = "ferryman.sweep"
_LOCK_MS = 30_000


class Sweeper:
    """Of all workers of a store, whoever holds the lock sweeps."""

    def __init__(self, store: Store, url: str, worker: WorkerId) -> None:
        self._store = store
        self._blobs = open_blobs(url)
        self._worker = worker

    def sweep(self) -> None:
        """Sweep the shard whose turn it is. Raises FerrymanError if the store or the payloads' place fails."""
        runner = self._store.runner()
        if runner.run(self._store.lock(_LOCK, self._worker, _LOCK_MS)) is None:
            return
        now = int(time.time() * 1000)
        deleted = perform(runner, sweep(self._store, self._blobs, now, now // _TURN_MS % SHARDS))
        if deleted:
            log.info("deleted %d large payloads that no job needs any more", deleted)
