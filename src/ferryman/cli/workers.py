"""``ferryman workers``: who works on the store, and orders for them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from ferryman.cli.output import Cell, Column, ago, json_line, number, say, stamps, table
from ferryman.cli.target import NotThereError, Target, listing, on_store, pass_target
from ferryman.store.records import Order, OrderKind, WorkerRecord

__all__ = ["alive", "state_of", "workers"]

_STYLES = {
    "active": "green",
    "paused": "yellow",
    "draining": "yellow",
    "dead": "red",
    "stopped": "bright_black",
}


@click.group(invoke_without_command=True)
@listing
@click.pass_context
def workers(ctx: click.Context) -> None:
    """Show the workers, and pause, drain or stop them.

    \b
    Examples:
      ferryman workers
      ferryman workers drain dock-4711          finish what it holds, then stop
      ferryman workers pause --all

    A worker's id may be shortened to its beginning, as long as that tells it apart.
    """
    if ctx.invoked_subcommand is None:
        _show(ctx.ensure_object(Target))


def _show(target: Target) -> None:
    now = target.now()
    records = target.run(target.existing.workers())
    if target.json:
        for record in records:
            json_line(_fields(record, now))
        return
    columns = (
        Column("Id"),
        Column("Host", folds=True, spared=6),
        Column("Pid", right=True, spared=5),
        Column("State"),
        Column("Load", right=True),
        Column("Done", right=True, spared=3),
        Column("Failed", right=True, spared=2),
        Column("Seen", spared=1),
        Column("Queues", folds=True, spared=4),
    )
    table(
        columns,
        [_cells(record, now) for record in records],
        "no workers; start one with: ferryman worker app:app",
    )


def alive(record: WorkerRecord, now: int) -> bool:
    """Whether its lease holds and it has not left."""
    return record.gone is None and record.lease_until > now


def state_of(record: WorkerRecord, now: int) -> str:
    """What people call its state; one whose lease has ended is dead, though nobody has rescued its jobs yet."""
    if record.gone is not None:
        return record.gone
    return record.status.state if alive(record, now) else "dead"


def _cells(record: WorkerRecord, now: int) -> tuple[Cell, ...]:
    info, status, state = record.info, record.status, state_of(record, now)
    return (
        info.id,
        info.host,
        str(info.pid),
        (state, _STYLES[state]),
        f"{status.running if alive(record, now) else 0}/{info.concurrency}",
        number(status.done),
        (f"{status.failed:,}", "red") if status.failed else number(0),
        ago(record.seen_at, now),
        "all" if info.queues is None else ", ".join(info.queues),
    )


def _fields(record: WorkerRecord, now: int) -> dict[str, Any]:
    info, status = record.info, record.status
    return {
        "id": info.id,
        "host": info.host,
        "pid": info.pid,
        "state": state_of(record, now),
        "running": status.running,
        "concurrency": info.concurrency,
        "done": status.done,
        "failed": status.failed,
        "queues": None if info.queues is None else list(info.queues),
        "tasks": list(info.tasks),
        "version": info.version,
        **stamps(registered_at=record.registered_at, seen_at=record.seen_at, lease_until=record.lease_until),
    }


def _order_command(kind: OrderKind, help: str) -> None:
    @workers.command(name=kind, help=help)
    @click.argument("ids", nargs=-1, metavar="[ID]...")
    @click.option("--all", "every", is_flag=True, help="All workers that are alive.")
    @on_store
    @pass_target
    def command(target: Target, ids: tuple[str, ...], every: bool) -> None:
        if bool(ids) == every:
            raise click.UsageError("name worker ids, or give --all")
        now = target.now()
        living = [record for record in target.run(target.existing.workers()) if alive(record, now)]
        chosen = living if every else [_named(text, living) for text in ids]
        told = target.run(target.store.order([record.info.id for record in chosen], Order(kind)))
        say(f"{told} worker{'' if told == 1 else 's'} will {kind} with the next heartbeat")


for _kind, _help in (
    ("pause", "Tell workers to take no more jobs until they are resumed."),
    ("resume", "Tell paused workers to take jobs again."),
    ("drain", "Tell workers to finish what they hold, however long it takes, and stop."),
    ("stop", "Tell workers to stop: running jobs have the shutdown timeout, the rest goes back."),
):
    _order_command(_kind, _help)  # type: ignore[arg-type]


def _named(text: str, living: Sequence[WorkerRecord]) -> WorkerRecord:
    matching = [record for record in living if record.info.id.startswith(text)]
    exact = [record for record in matching if record.info.id == text]
    if len(exact or matching) != 1:
        found = "more than one living worker" if matching else "no living worker"
        raise NotThereError(f"{found} has an id that begins with {text!r}; see: ferryman workers")
    return (exact or matching)[0]
