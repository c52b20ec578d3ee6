"""Settle: what became of leased jobs. The fence is the worker and the number of the lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis import Call
from ferryman.job import Outcome, WorkerId
from ferryman.store.records import JobNote
from ferryman.store.redis.record import as_text

__all__ = ["annotate", "settle"]

_encode = msgspec.msgpack.Encoder().encode

_LONGEST_NOTE = 4_000

_ACCEPTED = ord("1")


def settle(worker: WorkerId, outcomes: Sequence[Outcome]) -> Requests[list[bool]]:
    if not outcomes:
        return []
    verdict = yield Call("settle", (worker, _encode([_readable(outcome) for outcome in outcomes])))
    return [mark == _ACCEPTED for mark in verdict]


def _readable(outcome: Outcome) -> Outcome | tuple[Any, ...]:
    """The same, with its result in a form that Lua can read."""
    if outcome.result is None:
        return outcome
    id_, lease, kind, ran_us, result, *others = msgspec.structs.astuple(outcome)
    return id_, lease, kind, ran_us, as_text(result), *others


def annotate(worker: WorkerId, notes: Sequence[JobNote]) -> Requests[None]:
    if notes:
        yield Call("annotate", (worker, _encode([_cut(note) for note in notes])))


def _cut(note: JobNote) -> JobNote:
    if note.text is None or len(note.text) <= _LONGEST_NOTE:
        return note
    return msgspec.structs.replace(note, text=note.text[:_LONGEST_NOTE])
