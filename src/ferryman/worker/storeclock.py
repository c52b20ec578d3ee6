"""What the store's clock says, as told by one that nobody sets."""

from __future__ import annotations

import logging
import time

__all__ = ["StoreClock"]

log = logging.getLogger("ferryman.worker")

_JUMP = 5_000
"""ms by which two readings of a clock differ from what has passed between them when somebody has set it."""


class StoreClock:
    """Goes by `time.monotonic`. The machines of a fleet need not agree on the time; and where they do, because the store has
    no clock but this machine's, that may be set as well. Not thread-safe: it is the supervisor's."""

    def __init__(self) -> None:
        self._ahead: float | None = None
        """ms by which the store's clock is ahead of `time.monotonic`, once it has told."""
        self._wall_ahead = _wall_ahead()

    def now(self) -> float:
        """What the store's clock says by now, in ms, as far as can be told without asking; 0 if it has never told."""
        return 0.0 if self._ahead is None else time.monotonic() * 1000 + self._ahead

    def learn(self, now: int) -> bool:
        """The store has told its time. True if that is another one than was to be expected."""
        before, self._ahead = self._ahead, now - time.monotonic() * 1000
        if before is None or abs(self._ahead - before) <= _JUMP:
            return False
        log.warning(
            "the store's clock has been set, or this machine has slept: %+g s", (self._ahead - before) / 1000
        )
        return True

    def was_set_here(self) -> bool:
        """Whether this machine's clock, which may be the store's, has been set since this was asked last."""
        before, self._wall_ahead = self._wall_ahead, _wall_ahead()
        return abs(self._wall_ahead - before) > _JUMP


def _wall_ahead() -> float:
    """ms by which the clock of this machine is ahead of `time.monotonic`."""
    return (time.time() - time.monotonic()) * 1000
