"""What a worker sees to beside its jobs, in threads of its own since it may take its time."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from ferryman.errors import FerrymanError

__all__ = ["Chore"]

log = logging.getLogger("ferryman.worker")

_PAUSE = 10.0
"""Seconds between two rounds."""

_PATIENCE = 1.0


class Chore:
    """A thread that does one thing again and again, a pause after it was done."""

    def __init__(self, name: str, do: Callable[[], object]) -> None:
        """`name` says in messages what is done."""
        self._name = name
        self._do = do
        self._failed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._serve, name=f"ferryman-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is under way is waited for, but not for long."""
        self._stop.set()
        self._thread.join(_PATIENCE)

    def _serve(self) -> None:
        while not self._stop.wait(_PAUSE):
            self.round()

    def round(self) -> None:
        """Do it once. Of several failures in a row, the first is told."""
        try:
            self._do()
        except Exception as error:
            if not self._failed:
                expected = isinstance(error, FerrymanError)
                log.warning("%s did not work, will try again: %s", self._name, error, exc_info=not expected)
            self._failed = True
        else:
            self._failed = False
