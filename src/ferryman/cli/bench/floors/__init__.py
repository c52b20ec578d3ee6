"""Floors: the rows of a store, written with its driver alone and in the plainest way.

A floor makes the tables with the store's own code, and then uses nothing else of Ferryman. A store without a module
here has no floors.
"""

from __future__ import annotations

from typing import Protocol

from ferryman.job import NewJob

__all__ = ["Floor", "open_floor"]


class Floor(Protocol):
    """What the product does with one kind of job, done barely."""

    def enqueue(self, count: int) -> int:
        """Store so many jobs in one transaction. Answers how many."""
        ...

    def turn(self, count: int) -> int:
        """Settle the jobs of the last turn as succeeded and claim up to `count` others, in one transaction, as a
        busy worker does. Answers how many were settled or claimed: 0 once all is done."""
        ...

    def close(self) -> None: ...


def open_floor(url: str, job: NewJob) -> Floor | None:
    """The floor of a store's kind, on a store that is still empty, for jobs like this one."""
    if url.startswith("sqlite:"):
        from ferryman.cli.bench.floors.sqlite import SqliteFloor

        return SqliteFloor(url, job)
    if url.startswith(("postgresql:", "postgres:")):
        from ferryman.cli.bench.floors.postgres import PostgresFloor

        return PostgresFloor(url, job)
    if url.startswith(("redis:", "rediss:")):
        from ferryman.cli.bench.floors.redis import RedisFloor

        return RedisFloor(url, job)
    return None
