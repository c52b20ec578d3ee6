"""A thread that deletes large payloads whose jobs are gone. It is on its own since their place may take its time."""

from __future__ import annotations

import logging
import threading
import time

from ferryman.blob.open import open_blobs
from ferryman.errors import FerrymanError
from ferryman.io.operation import perform
from ferryman.job import WorkerId
from ferryman.payload import SHARDS, sweep
from ferryman.store.port import Store

__all__ = ["Sweeper"]

log = logging.getLogger("ferryman.worker")

_PAUSE = 10.0
"""Seconds between two shards: so each is swept about every 43 minutes."""

_LOCK = "ferryman.sweep"


class Sweeper:
    """Of all workers of a store, whoever holds the lock sweeps."""

    def __init__(self, store: Store, url: str, worker: WorkerId) -> None:
        self._store = store
        self._blobs = open_blobs(url)
        self._worker = worker
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="ferryman-sweeper", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End soon; a request that is under way is not waited for."""
        self._stop.set()

    def _serve(self) -> None:
        while not self._stop.wait(_PAUSE):
            try:
                self._sweep(int(time.time() * 1000))
            except FerrymanError as error:
                log.warning("large payloads could not be swept, will try again: %s", error)

    def _sweep(self, now: int) -> None:
        runner = self._store.runner()
        if runner.run(self._store.lock(_LOCK, self._worker, int(3_000 * _PAUSE))) is None:
            return
        shard = now // int(1_000 * _PAUSE) % SHARDS
        deleted = perform(runner, sweep(self._store, self._blobs, now, shard))
        if deleted:
            log.info("deleted %d large payloads that no job needs any more", deleted)
