"""Enqueue: a batch of jobs, all or none. They travel as runs of jobs that differ in ids and arguments alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ferryman.errors import StoreError
from ferryman.io.operation import Requests
from ferryman.io.redis import Call
from ferryman.job import JobId, NewJob
from ferryman.store.records import Enqueued
from ferryman.store.redis.record import same_for_all

__all__ = ["enqueue"]

_MOST = 500_000
"""Jobs in one call: a command of Redis has a million words at most."""

_SHAPES = 256
"""Shapes of single jobs that are remembered."""

_encode = msgspec.msgpack.Encoder().encode


def enqueue(jobs: Sequence[NewJob]) -> Requests[list[Enqueued]]:
    if not jobs:
        return []
    if len(jobs) > _MOST:
        raise StoreError(
            f"{len(jobs):,} jobs are more than Redis takes in one call, which is {_MOST:,}; none was stored: enqueue "
            "them in smaller batches"
        )
    if len(jobs) == 1:
        alike = _alike(jobs[0])
        call = Call("enqueue", (alike.packed, jobs[0].id, jobs[0].args), joint=alike)
    else:
        runs = [{"count": len(run), **same_for_all(run[0])} for run in _runs(jobs)]
        cargo: list[bytes | str] = [_encode(runs)]
        for job in jobs:
            cargo += (job.id, job.args)
        call = Call("enqueue", tuple(cargo))
    duplicates = yield call
    answers = [Enqueued(job.id) for job in jobs]
    if not duplicates:
        return answers
    for place, holder in zip(duplicates[::2], duplicates[1::2], strict=True):
        answers[place] = Enqueued(JobId(holder.decode()), duplicate=True)
    return answers


def _runs(jobs: Sequence[NewJob]) -> list[list[NewJob]]:
    """Consecutive jobs that differ in nothing but ids and arguments."""
    runs: list[list[NewJob]] = []
    previous: _Shape | None = None
    for job in jobs:
        shape = _shape_of(job)
        if shape == previous:
            runs[-1].append(job)
        else:
            runs.append([job])
            previous = shape
    return runs


_Shape = tuple[Any, ...]


def _shape_of(job: NewJob) -> _Shape:
    """All of a job but its id and its arguments."""
    fields = msgspec.structs.astuple(job)
    return fields[1], fields[3:]


# -- one job ---------------------------------------------------------------------------------------


class _Alike:
    """Single jobs of one shape, which go out as one run if they wait together. See `ferryman.io.redis.requests.Joint`."""

    def __init__(self, job: NewJob) -> None:
        self._same = same_for_all(job)
        self.packed = self._pack(1)

    def join(self, calls: Sequence[Call]) -> Call:
        cargo: list[bytes | str | int] = [self._pack(len(calls))]
        for call in calls:
            cargo += call.args[1:]
        return Call("enqueue", tuple(cargo))

    def part(self, calls: Sequence[Call], answer: Any) -> Sequence[list[Any]]:
        parts: list[list[Any]] = [[] for _ in calls]
        for place, holder in zip(answer[::2], answer[1::2], strict=True):
            parts[place] = [0, holder]
        return parts

    def _pack(self, count: int) -> bytes:
        return _encode([{"count": count, **self._same}])


_known: dict[_Shape, _Alike] = {}


def _alike(job: NewJob) -> _Alike:
    if job.unique is not None or job.after:
        # Another job like this is not to be expected.
        return _Alike(job)
    shape = _shape_of(job)
    known = _known.get(shape)
    if known is None:
        if len(_known) >= _SHAPES:
            _known.clear()
        known = _known[shape] = _Alike(job)
    return known
