"""From a `Filter` to SQL: every condition is a fixed piece of text, every value a parameter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ferryman.io.postgres.requests import Statement
from ferryman.job import FINISHED, State
from ferryman.store.records import Filter

__all__ = ["matching"]


def matching(
    schema: str,
    which: Filter,
    columns: str,
    *,
    among: Sequence[State] = (),
    extra: str = "",
    extra_params: Sequence[Any] = (),
    newest_first: bool = False,
    limit: int | None = None,
) -> Statement:
    """Asks for `columns` of job j, the oldest first. `among` are the states that the caller can handle, `extra` is a further
    condition."""
    conditions: list[str] = []
    params: list[Any] = []

    def need(condition: str, *values: Any) -> None:
        conditions.append(condition)
        params.extend(values)

    states = _states(which.states, among)
    if which.ids:
        need("j.id = ANY(%s::uuid[])", list(which.ids))
    elif which.tasks and not which.queues:
        # The index by task is one by queue first.
        need(
            f"j.queue = ANY(ARRAY(SELECT queue FROM {schema}.lane_base UNION SELECT queue FROM {schema}.lane_news))"  # noqa: S608
        )
    if states is not None:
        need(_in_states(states))
    elif which.queues or which.tasks:
        # True of all: it lets the planner put together the indexes of single states.
        need(_in_states(list(State)))
    if which.queues:
        need("j.queue = ANY(%s::text[])", list(which.queues))
    if which.tasks:
        need("j.task = ANY(%s::text[])", list(which.tasks))
    if which.tags:
        need("j.tags && %s::text[]", list(which.tags))
    if which.causes:
        need("j.state = 6 AND j.reason = ANY(%s::text[])", list(which.causes))
    if which.since is not None:
        need("j.enqueued_at >= %s::bigint", which.since)
    if which.until is not None:
        need("j.enqueued_at < %s::bigint", which.until)
    if extra:
        need(extra, *extra_params)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    text = f"SELECT {columns} FROM {schema}.job j{where}"  # noqa: S608
    if limit is not None:
        text += f" ORDER BY j.seq {'DESC' if newest_first else 'ASC'} LIMIT %s::bigint"
        params.append(limit)
    return Statement(text, tuple(params))


def _in_states(states: Sequence[State]) -> str:
    """Each state by the condition of its own index; finished ones share one."""
    finished = [int(state) for state in states if state in FINISHED]
    pieces = [f"j.state = {int(state)}" for state in states if state not in FINISHED]
    if len(finished) == len(FINISHED):
        pieces.append("j.state >= 5")
    elif finished:
        pieces.append(f"j.state IN ({', '.join(map(str, finished))})")
    return f"({' OR '.join(pieces)})" if pieces else "false"


def _states(wanted: Sequence[State], among: Sequence[State]) -> list[State] | None:
    if not among:
        return list(dict.fromkeys(wanted)) or None
    return [state for state in among if not wanted or state in wanted]
