"""Jobs on their way from one store to another: the parcel, and the part of the port that packs and unpacks it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from ferryman.io.operation import Operation
from ferryman.job import FINISHED, Attempt, JobId, NewJob, Note, State, WorkerId

__all__ = ["MOST_BYTES", "Moving", "Parcel", "landed"]

MOST_BYTES = 8 * 1024 * 1024
"""What the parcels of one `Moving.pack` have together, about: so that a page of large jobs fits into memory."""


class Parcel(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """A job with all that its store knows of it. New fields come last, with a default: backups hold these."""

    seq: int
    """The number of its arrival in the store that packed it."""
    job: NewJob
    """As it is now: with its present arguments, priority and deadline, and no `delay`, `at` or `ttl`."""
    state: State
    attempt: int
    deaths: int
    enqueued_at: int
    run_at: int
    started_at: int | None = None
    finished_at: int | None = None
    worker: WorkerId | None = None
    reason: str | None = None
    progress: float | None = None
    result: bytes | None = None
    """None also when its time is over."""
    result_until: int | None = None
    holds: bool = False
    """It has a place of its key, though it is to run later: an ordered job keeps its place through retries."""
    holds_unique: bool = False
    """Its unique key is taken by it."""
    unique_until: int | None = None
    """When its unique key is free again whatever becomes of the job, if it was taken for a period."""
    waits_for: tuple[JobId, ...] = ()
    """Those parents (`NewJob.after`) that a WAITING job has not been told of yet."""
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[Note, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of its arguments, result and history, about."""
        return (
            len(self.job.args)
            + len(self.result or b"")
            + sum([_size_of(attempt) for attempt in self.attempts])
            + sum([len(note.text) for note in self.notes])
        )


def _size_of(attempt: Attempt) -> int:
    error, size = attempt.error, len(attempt.reason or "")
    return size if error is None else size + len(error.type) + len(error.message) + len(error.traceback)


class Moving(Protocol):
    """What it takes to bring jobs to another store, or into a file."""

    def pack(
        self, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId] = ()
    ) -> Operation[list[Parcel]]:
        """Jobs in one of these states (any, if none is named), in order of arrival, from the first whose `seq` is
        above `after`. With `ids`, of these alone.

        Up to `limit`, and fewer if they are large (about `MOST_BYTES`); none only if there are no more. Each job is
        as it was at one moment. Jobs that arrive meanwhile come at the end, but for those of transactions that were open
        for long: begin again until nothing new is found.

        The first page (`after` 0, without `ids`) is answered when all claims have ended that were under way: no job of a
        queue that was paused before begins to run after that.
        """
        ...

    def unpack(self, parcels: Sequence[Parcel]) -> Operation[list[bool]]:
        """Keep these jobs, all or none, in their order. Answers for each whether it was new: one whose id is known is
        left as it is, so that repeating is safe.

        Pending jobs keep their attempts, deaths, times and deadline. Their keys, places in lanes and parents are
        settled as by an enqueue, by what this store has: one that waits for a parent that it does not have is treated
        as if that had not succeeded. A unique key that another job has here meanwhile stays with that
        job; the one that arrives is kept all the same, without it. Bounds of queues are not looked at. A RUNNING job
        arrives as READY with its attempt given back. Finished jobs keep state, result and history, and concern
        nobody. Statistics count none of them.
        """
        ...

    def forget(self, ids: Sequence[JobId], states: Sequence[State] = ()) -> Operation[int]:
        """Delete jobs that live elsewhere now; answers how many. As `delete`, but nobody is told: children that wait
        for one of them go on waiting, until they are forgotten too. Running ones stay, and so do those that are in none of
        the states, if any is named."""
        ...


def landed(parcel: Parcel) -> Parcel:
    """The parcel as a store is to keep it: nothing runs on arrival, and what is unknown elsewhere is as the rest."""
    if parcel.state is State.RUNNING:
        return msgspec.structs.replace(
            parcel, state=State.READY, attempt=parcel.attempt - 1, worker=None, started_at=None
        )
    if parcel.state in FINISHED and parcel.finished_at is None:
        return msgspec.structs.replace(parcel, finished_at=parcel.run_at)
    return parcel
