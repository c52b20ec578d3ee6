"""What one transaction has to write down once at its end: counts of lanes, statistics, bells."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Many, Query, Ring
from ferryman.job import State

__all__ = ["LaneInfo", "Ledger", "ids_param", "seqs_param"]

_STATES = len(State)

_COUNT = """
UPDATE ferryman_lane SET waiting = waiting + ?, scheduled = scheduled + ?, ready = ready + ?, parked = parked + ?,
    running = running + ?, succeeded = succeeded + ?, dead = dead + ?, cancelled = cancelled + ?,
    expired = expired + ?
WHERE id = ?
"""

_STAT = """
INSERT INTO ferryman_stat (minute, lane, task, kind, bucket, n) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO UPDATE SET n = n + excluded.n
"""


class LaneInfo(NamedTuple):
    """A lane and what its queue was declared to be."""

    id: int
    queue: str
    priority: int
    fair: bool
    weights: dict[str, float]


class Ledger:
    """Collects while an operation goes on; `close` writes. Lives as long as one transaction."""

    __slots__ = ("_counts", "_lanes", "_stats", "minute", "now", "woke")

    def __init__(self, now: int) -> None:
        self.now = now
        self.minute = now - now % 60_000
        self.woke = False
        """Whether a sleeping worker should look: a job got ready, is scheduled anew, or there is an order."""
        self._counts: dict[int, list[int]] = {}
        self._stats: Counter[tuple[int, int, int, int]] = Counter()
        self._lanes: dict[int, LaneInfo] = {}

    def move(self, lane: int, before: int | None, after: int | None, count: int = 1) -> None:
        """Count jobs of a lane that went from one state to another; None: from or to nothing."""
        counts = self._counts.get(lane)
        if counts is None:
            counts = self._counts[lane] = [0] * _STATES
        if before is not None:
            counts[before] -= count
        if after is not None:
            counts[after] += count
            if after <= State.READY:
                self.woke = True

    def note(self, lane: int, task: int, kind: int, bucket: int = 0, count: int = 1) -> None:
        """Count something in the statistics of this minute."""
        self._stats[lane, task, kind, bucket] += count

    def note_all(self, keys: Iterable[tuple[int, int, int, int]]) -> None:
        """Count each of many things: (lane, task, kind, bucket)."""
        self._stats.update(keys)

    def lane(self, lane: int) -> Requests[LaneInfo]:
        """What a lane is, asked once a transaction."""
        info = self._lanes.get(lane)
        if info is None:
            ((queue, priority, fair, weights),) = yield Query(
                "SELECT l.queue, l.priority, q.fair, q.weights FROM ferryman_lane l"
                " LEFT JOIN ferryman_queue q ON q.name = l.queue WHERE l.id = ?",
                (lane,),
            )
            info = LaneInfo(lane, queue, priority, bool(fair), json.loads(weights) if fair else {})
            self._lanes[lane] = info
        return info

    def close(self) -> Requests[None]:
        """Write down all that was collected, and have the bells rung if there is a reason."""
        if self._counts:
            rows = [(*counts, lane) for lane, counts in self._counts.items() if any(counts)]
            if len(rows) == 1:
                yield Query(_COUNT, rows[0])
            elif rows:
                yield Many(_COUNT, rows)
        if self._stats:
            stats = [(self.minute, *key, n) for key, n in self._stats.items()]
            yield Query(_STAT, stats[0]) if len(stats) == 1 else Many(_STAT, stats)
        if self.woke:
            bells = yield Query("SELECT bell FROM ferryman_worker WHERE gone IS NULL AND bell IS NOT NULL")
            if bells:
                yield Ring([bell for (bell,) in bells])


def ids_param(ids: Sequence[str]) -> tuple[bytes, str]:
    """Ids as two parameters for ``json_each(?2) n`` and ``substr(?1, n.key * 16 + 1, 16)``: one statement asks for
    many without being built from them."""
    return bytes.fromhex("".join(ids)), "[" + "0," * (len(ids) - 1) + "0]" if ids else "[]"


def seqs_param(seqs: Sequence[Any]) -> str:
    """Integers as one parameter for ``IN (SELECT value FROM json_each(?))``."""
    return str(list(seqs))
