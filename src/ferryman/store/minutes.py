"""Statistics as the SQL stores keep them: a row for each minute, queue, task, kind of number and histogram bucket."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ferryman.store.records import MinuteStats

__all__ = ["STAT", "minute_stats"]


class STAT:
    """Kinds of numbers."""

    ENQUEUED, SUCCEEDED, FAILED, DEAD, WAITED, RAN = range(6)


def minute_stats(rows: Iterable[tuple[int, str, str, int, int, int]]) -> list[MinuteStats]:
    """Rows of (minute, queue, task, kind, bucket, number), put together in their order."""
    found: dict[tuple[int, str, str], list[Any]] = {}
    for minute, queue, task, kind, bucket, n in rows:
        numbers = found.setdefault((minute, queue, task), [0, 0, 0, 0, {}, {}])
        if kind in (STAT.WAITED, STAT.RAN):
            numbers[kind][bucket] = n
        else:
            numbers[kind] = n
    return [
        MinuteStats(
            minute=minute, queue=queue, task=task, enqueued=enqueued, succeeded=succeeded, failed=failed, dead=dead,
            waited=waited, ran=ran,
        )
        for (minute, queue, task), (enqueued, succeeded, failed, dead, waited, ran) in found.items()
    ]  # fmt: skip
