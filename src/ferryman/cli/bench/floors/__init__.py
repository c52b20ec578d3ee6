"""Floors: what a store's driver alone reaches, in the plainest way.

The floor of rates makes the tables with the store's own code, writes the same rows, and uses nothing else of Ferryman.
The floor of latencies, see `chain`, passes rows of 100 bytes from process to process by way of a table of two columns
or a list. A store without a module here has no floors.
"""

from __future__ import annotations

from typing import Protocol

from ferryman.job import NewJob

__all__ = ["ENTRY", "Floor", "Sender", "Sleeper", "open_floor", "open_sender", "open_sleeper"]

ENTRY = b"x" * 100
"""What a sender stores."""


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


class Sender(Protocol):
    """The first process of a `Chain`: stores entries, durably as the product does, and wakes who sleeps."""

    @property
    def ear(self) -> int | None:
        """A descriptor that the sleeper is to inherit; None if it is woken by the server."""
        ...

    def store(self) -> None:
        """Store one entry, and ring."""
        ...

    def close(self) -> None: ...


class Sleeper(Protocol):
    """The second one: sleeps until an entry comes, and takes it, as durably as the product leases a job."""

    def wait(self, seconds: float) -> bool:
        """Sleep for so long at most. Whether it rang."""
        ...

    def take(self) -> int:
        """Take the entries that are there. Answers how many."""
        ...


def open_sender(url: str) -> Sender | None:
    """The sender of a store's kind, on a store that is still empty. None where there is none, or where the URL forbids
    to be woken."""
    if url.startswith("sqlite:"):
        from ferryman.cli.bench.floors.sqlite import SqliteSender

        return SqliteSender(url)
    if url.startswith(("postgresql:", "postgres:")):
        from ferryman.cli.bench.floors.postgres import PostgresSender, can_listen

        return PostgresSender(url) if can_listen(url) else None
    if url.startswith(("redis:", "rediss:")):
        from ferryman.cli.bench.floors.redis import RedisSender

        return RedisSender(url)
    return None


def open_sleeper(url: str, ear: int | None) -> Sleeper:
    """The sleeper beside the sender of this URL, which must have been opened before."""
    if ear is not None:
        from ferryman.cli.bench.floors.sqlite import SqliteSleeper

        return SqliteSleeper(url, ear)
    if url.startswith(("redis:", "rediss:")):
        from ferryman.cli.bench.floors.redis import RedisSleeper

        return RedisSleeper(url)
    from ferryman.cli.bench.floors.postgres import PostgresSleeper

    return PostgresSleeper(url)
