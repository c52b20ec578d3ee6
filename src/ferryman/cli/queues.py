"""``ferryman queues``, ``pause``, ``resume`` and ``purge``: lines of jobs as a whole."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import click
import msgspec

from ferryman.cli.output import Cell, Column, json_line, number, say, stamps, table, warn
from ferryman.cli.params import queue_name
from ferryman.cli.selection import ask, change, count
from ferryman.cli.target import NotThereError, Target, listing, on_store, pass_target
from ferryman.job import PENDING, State
from ferryman.policy.why import span
from ferryman.store.records import Filter, LaneCounts, WorkerRecord
from ferryman.values import counted

__all__ = ["pause", "purge", "queues", "resume"]

_SHOWN = (
    State.READY,
    State.SCHEDULED,
    State.WAITING,
    State.PARKED,
    State.RUNNING,
    State.DEAD,
    State.SUCCEEDED,
)
_SPARED = {State.SUCCEEDED: 4, State.PARKED: 3, State.WAITING: 2, State.SCHEDULED: 1}
"""What a narrow terminal does not show: first what is over, then what will come by itself."""

_STYLES = {State.RUNNING: "yellow", State.DEAD: "red", State.SUCCEEDED: "green"}


class _Row(msgspec.Struct):
    """A queue, or one lane of it."""

    queue: str
    paused: bool = False
    priority: int | None = None
    counts: dict[State, int] = {}
    oldest: int | None = None
    workers: int = 0

    def add(self, lane: LaneCounts) -> None:
        for state, jobs in lane.counts.items():
            self.counts[state] = self.counts.get(state, 0) + jobs
        if lane.oldest is not None:
            self.oldest = lane.oldest if self.oldest is None else min(self.oldest, lane.oldest)


@click.command()
@click.option("--lanes", is_flag=True, help="A line for each priority.")
@listing
@pass_target
def queues(target: Target, lanes: bool) -> None:
    """Show the queues: jobs by state, how long the oldest ready one has waited, and the workers serving it.

    \b
    Examples:
      ferryman queues
      ferryman queues --json | jq 'select(.ready > 1000) | .queue'
    """
    store = target.existing
    now = target.now()
    rows = {
        record.settings.name: _Row(record.settings.name, record.paused)
        for record in target.run(store.queues())
    }
    by_lane: list[_Row] = []
    for lane in target.run(store.lanes()):
        row = rows.setdefault(lane.queue, _Row(lane.queue))
        row.add(lane)
        single = _Row(lane.queue, row.paused, lane.priority)
        single.add(lane)
        by_lane.append(single)
    workers = target.run(store.workers())
    shown = by_lane if lanes else list(rows.values())
    for row in shown:
        row.workers = _serving(workers, row.queue, now)
    if target.json:
        for row in shown:
            json_line(_fields(row, now))
        return
    columns = [Column("Queue", folds=True), *([Column("Prio", right=True)] if lanes else [])]
    columns += [
        Column(state.label.capitalize(), right=True, spared=_SPARED.get(state, 0)) for state in _SHOWN
    ]
    columns += [Column("Oldest", right=True), Column("Workers", right=True)]
    table(columns, [_cells(row, now) for row in shown], "no queues yet; they are made by the first enqueue")


def _serving(workers: Iterable[WorkerRecord], queue: str, now: int) -> int:
    return sum(
        worker.gone is None
        and worker.lease_until > now
        and (worker.info.queues is None or queue in worker.info.queues)
        for worker in workers
    )


def _cells(row: _Row, now: int) -> list[Cell]:
    name: Cell = (f"{row.queue} (paused)", "yellow") if row.paused else row.queue
    cells: list[Cell] = [name] if row.priority is None else [name, str(row.priority)]
    for state in _SHOWN:
        jobs = row.counts.get(state, 0)
        cells.append((f"{jobs:,}", _STYLES.get(state, "")) if jobs else number(0))
    cells.append("-" if row.oldest is None else span(now - row.oldest))
    stuck = row.workers == 0 and row.counts.get(State.READY, 0) > 0
    cells.append(("none", "red") if stuck else number(row.workers))
    return cells


def _fields(row: _Row, now: int) -> Mapping[str, Any]:
    return {
        "queue": row.queue,
        **({} if row.priority is None else {"priority": row.priority}),
        **{state.label: row.counts.get(state, 0) for state in State},
        "oldest_ready_ms": None if row.oldest is None else max(now - row.oldest, 0),
        **stamps(oldest_ready_at=row.oldest),
        "paused": row.paused,
        "workers": row.workers,
    }


@click.command()
@click.argument("names", nargs=-1, required=True, type=queue_name, metavar="QUEUE...")
@on_store
@pass_target
def pause(target: Target, names: tuple[str, ...]) -> None:
    """Stop workers from taking jobs of these queues; what runs goes on, and enqueueing too."""
    known = _known(target)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"; did you mean {near[0]!r}?" if near else ""
            warn(f"there is no queue {name!r} yet, and it is paused from its first job on{advice}")
    target.run(target.store.pause(names, True))
    say(f"paused: {', '.join(names)}")


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="QUEUE...")
@on_store
@pass_target
def resume(target: Target, names: tuple[str, ...]) -> None:
    """Let workers take jobs of these queues again."""
    known = _known(target)
    for name in names:
        if name not in known:
            raise NotThereError(f"there is no queue {name!r}; see: ferryman queues")
    target.run(target.store.pause(names, False))
    say(f"resumed: {', '.join(names)}")


@click.command()
@click.argument("queue")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_store
@pass_target
def purge(target: Target, queue: str, yes: bool) -> None:
    """Delete the jobs of a queue that are yet to run. Running and finished ones stay."""
    if queue not in _known(target):
        raise NotThereError(f"there is no queue {queue!r}; see: ferryman queues")
    which = Filter(queues=(queue,), states=tuple(sorted(PENDING)))
    total = count(target, which)
    if total:
        ask(f"Delete {counted(total)} of queue {queue!r} for good?", yes)
    deleted = change(target, which, total, target.store.delete, "Delete")
    say(f"{counted(deleted)} deleted")


def _known(target: Target) -> set[str]:
    return {record.settings.name for record in target.run(target.existing.queues())}
