"""What stores refuse, in the same words wherever they do."""

from __future__ import annotations

from collections.abc import Iterable

from ferryman.errors import InvalidJob, Unsupported
from ferryman.job import MAX_TEXT, NewJob

__all__ = ["no_guests", "no_transactions", "refuse_long_texts"]


def no_guests(url: str) -> Unsupported:
    """The error for `Store.using`."""
    return Unsupported(
        f"{url} cannot store jobs inside a transaction of yours (using=…); the stores SQLite and PostgreSQL can"
    )


def no_transactions(url: str) -> Unsupported:
    """The error for `Store.transaction` and its twin."""
    return Unsupported(
        f"{url} has no transactions that a task could take part in; the stores SQLite and PostgreSQL have"
    )


def refuse_long_texts(jobs: Iterable[NewJob]) -> None:
    """Raises InvalidJob for a text that is too long for an index. Some are indexed long after the enqueue, in transactions
    of others, which would fail then."""
    for job in jobs:
        unique = None if job.unique is None else job.unique.key
        named = (
            ("task", job.task),
            ("queue", job.queue),
            ("key", job.key),
            ("unique", unique),
            ("tenant", job.tenant),
        )
        for name, said in (*named, *(("tag", tag) for tag in job.tags)):
            text = "" if said is None else str(said)  # A tenant that is a number is as good.
            # None has more than four bytes a character.
            if len(text) > MAX_TEXT // 4 and len(text.encode()) > MAX_TEXT:
                raise InvalidJob(
                    f"{name} {text[:40] + '…'!r} of job {job.id} has {len(text.encode()):,} bytes, and {MAX_TEXT:,} is the "
                    "most; pass a hash of it"
                )
