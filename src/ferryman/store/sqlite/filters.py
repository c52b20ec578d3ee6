"""From a `Filter` to SQL: every condition is a fixed piece of text, every value a parameter."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ferryman.io.sqlite import Query
from ferryman.job import State
from ferryman.store.records import Filter
from ferryman.store.sqlite.ledger import ids_param

__all__ = ["matching"]

_IN = "IN (SELECT value FROM json_each(?))"

_FINISHED_RARELY = {State.CANCELLED: " AND j.state >= 5", State.EXPIRED: " AND j.state >= 5"}
"""States that are rare among finished ones: named with the condition of their index, so that it is used."""


def matching(
    which: Filter,
    columns: str,
    *,
    among: Sequence[State] = (),
    extra: str = "",
    extra_params: Sequence[Any] = (),
    newest_first: bool = False,
    limit: int,
) -> Query:
    """Asks for `columns` of job j, its body b, lane l and task t. `among` are the states that the caller can
    handle, `extra` is a further condition."""
    conditions: list[str] = []
    params: list[Any] = []

    def need(condition: str, *values: Any) -> None:
        conditions.append(condition)
        params.extend(values)

    states = _states(which.states, among)
    source = "ferryman_job j"
    if which.ids:
        ids, numbers = ids_param(which.ids)
        # Positions come first: a filter by id starts from the ids.
        source = (
            "(SELECT DISTINCT substr(?, n.key * 16 + 1, 16) AS id FROM json_each(?) n) w"
            " CROSS JOIN ferryman_job j ON j.id = w.id"
        )
        params += [ids, numbers]
    if states is not None and len(states) == 1:
        # Only this form lets SQLite use the index of a state.
        need(f"j.state = {int(states[0])}{_FINISHED_RARELY.get(states[0], '')}")
        if states[0] is State.RUNNING and not which.ids:
            # Few among many, which SQLite's planner cannot know.
            source += " INDEXED BY ferryman_job_running"
    elif states is not None:
        need(f"j.state IN ({', '.join(str(int(state)) for state in states)})")
    if which.queues:
        need(f"j.lane IN (SELECT id FROM ferryman_lane WHERE queue {_IN})", json.dumps(which.queues))  # noqa: S608
    if len(which.tasks) == 1:
        need("j.task = (SELECT id FROM ferryman_task WHERE name = ?)", which.tasks[0])
    elif which.tasks:
        need(f"j.task IN (SELECT id FROM ferryman_task WHERE name {_IN})", json.dumps(which.tasks))  # noqa: S608
    if which.tags:
        need(f"j.seq IN (SELECT seq FROM ferryman_tag WHERE tag {_IN})", json.dumps(which.tags))  # noqa: S608
    if which.causes:
        need(f"j.state = 6 AND b.reason {_IN}", json.dumps(which.causes))
    if which.since is not None:
        need("j.enqueued_at >= ?", which.since)
    if which.until is not None:
        need("j.enqueued_at < ?", which.until)
    if extra:
        need(extra, *extra_params)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    order = "DESC" if newest_first else "ASC"
    return Query(
        f"SELECT {columns} FROM {source} JOIN ferryman_body b ON b.seq = j.seq"  # noqa: S608
        " JOIN ferryman_lane l ON l.id = j.lane JOIN ferryman_task t ON t.id = j.task"
        f"{where} ORDER BY j.seq {order} LIMIT ?",
        [*params, limit],
    )


def _states(wanted: Sequence[State], among: Sequence[State]) -> list[State] | None:
    if not among:
        return list(wanted) or None
    return [state for state in among if not wanted or state in wanted]
