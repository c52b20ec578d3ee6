"""Settle: what became of leased jobs. The fence is the worker and the number of the lease."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import GATE, NOW, Statement
from ferryman.job import Outcome, WorkerId
from ferryman.store.records import JobNote

__all__ = ["annotate", "settle"]

_encode = msgspec.msgpack.Encoder().encode


def settle(schema: str, worker: WorkerId, outcomes: Sequence[Outcome]) -> Requests[list[bool]]:
    if not outcomes:
        return []
    # Where each lease is named: twice in one batch, the first one has it.
    named: dict[tuple[str, int], int] = {}
    for place, outcome in enumerate(outcomes):
        named.setdefault((outcome.id, outcome.lease), place)
    places = list(named.values())
    fresh = outcomes if len(places) == len(outcomes) else [outcomes[place] for place in places]
    ((lost,),) = yield _ask(schema, worker, fresh)
    if fresh is outcomes and not lost:
        return [True] * len(outcomes)
    accepted = [False] * len(outcomes)
    for place in places:
        accepted[place] = True
    for number in lost:
        accepted[places[number - 1]] = False
    return accepted


def _ask(schema: str, worker: WorkerId, outcomes: Sequence[Outcome]) -> Statement:
    errors = [outcome.error for outcome in outcomes]
    has_errors = any(errors)
    return Statement(
        f"SELECT {schema}.settle(%s::text, %s::uuid[], %s::integer[], %s::smallint[], %s::bigint[], %s::bytea[],"
        " %s::bigint[], %s::bigint[], %s::bytea[], %s::text[], %s::text[], %s::boolean, %s::bigint)",
        (
            worker, [outcome.id for outcome in outcomes], [outcome.lease for outcome in outcomes],
            [int(outcome.kind) for outcome in outcomes], [outcome.ran_us for outcome in outcomes],
            _unless_empty([outcome.result for outcome in outcomes]),
            _unless_empty([outcome.keep_result for outcome in outcomes]),
            [outcome.delay for outcome in outcomes],
            [None if error is None else _encode(error) for error in errors] if has_errors else None,
            [None if error is None else error.cause for error in errors] if has_errors else None,
            _unless_empty([outcome.reason for outcome in outcomes]),
            GATE, NOW,
        ),
    )  # fmt: skip


def _unless_empty(column: list[Any]) -> list[Any] | None:
    """None, for a column that holds nothing else: that is less to send and to read."""
    return None if column.count(None) == len(column) else column


def annotate(schema: str, worker: WorkerId, notes: Sequence[JobNote]) -> Requests[None]:
    if notes:
        yield Statement(
            f"SELECT {schema}.annotate(%s::text, %s::uuid[], %s::integer[], %s::double precision[], %s::text[],"
            " %s::boolean, %s::bigint)",
            (
                worker, [note.id for note in notes], [note.lease for note in notes],
                [note.progress for note in notes], [note.text for note in notes], GATE, NOW,
            ),
        )  # fmt: skip
