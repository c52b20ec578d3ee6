"""``ferryman jobs``: single jobs, their lives, and what people do to them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import click
import msgspec

from ferryman.cli.life import show_life
from ferryman.cli.output import (
    Cell,
    Column,
    job_fields,
    json_line,
    number,
    say,
    state_cell,
    table,
    value_text,
    when,
)
from ferryman.cli.params import duration, filter_of, filters, newest_first
from ferryman.cli.selection import change_selected, fetch, newest, resolve
from ferryman.cli.target import Target, listing, on_store, pass_target, with_app
from ferryman.job import State
from ferryman.store.records import Filter

__all__ = ["jobs"]

_COLUMNS = (
    Column("Id"),
    Column("State"),
    Column("When", spared=1),
    Column("Try", right=True, spared=3),
    Column("Prio", right=True, spared=4),
    Column("Queue", folds=True, spared=2),
    Column("Task", folds=True),
)

_UNFINISHED = (State.WAITING, State.SCHEDULED, State.READY, State.PARKED, State.RUNNING)
_FAILED = (State.DEAD, State.CANCELLED, State.EXPIRED)
_FINISHED = (*_FAILED, State.SUCCEEDED)
_AT_REST = tuple(state for state in State if state is not State.RUNNING)


@click.group()
def jobs() -> None:
    """List, show, cancel, retry, delete and wait for jobs.

    A job's id may be shortened to its first digits, as long as they tell it apart.
    """


@jobs.command(name="list")
@filters(states=True)
@newest_first
@listing
@pass_target
def list_jobs(target: Target, /, limit: int, **options: Any) -> None:
    """List jobs, the newest first.

    \b
    Examples:
      ferryman jobs list --state running
      ferryman jobs list --queue email --since 10m
      ferryman jobs list --task app.add --json | jq .id
    """
    now = target.now()
    found = newest(target, filter_of(options), limit)
    if target.json:
        for job in found:
            json_line(job_fields(job))
        return
    rows: list[tuple[Cell, ...]] = [
        (
            job.id,
            state_cell(job.state),
            when(job, now),
            f"{job.attempt}/{job.max_attempts}",
            number(job.priority),
            job.queue,
            job.task,
        )
        for job in found
    ]
    table(_COLUMNS, rows, "no jobs match")


@jobs.command()
@click.argument("id")
@click.option("--traceback", "full", is_flag=True, help="Show whole tracebacks.")
@with_app
@listing
@pass_target
def show(target: Target, id: str, full: bool) -> None:
    """Show a job's whole life.

    Its arguments, attempts, errors, notes, result, parents and children.
    """
    show_life(target, resolve(target, id), full)


@jobs.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters(states=True)
@click.option("--all", "every", is_flag=True, help="All jobs that are not finished.")
@click.option("--reason", help="A line for whoever looks at the jobs later.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_store
@pass_target
def cancel(
    target: Target, /, ids: tuple[str, ...], every: bool, reason: str | None, yes: bool, **options: Any
) -> None:
    """Cancel jobs, running ones too.

    Those that are yet to run end at once; running ones get their worker's order to stop.

    \b
    Examples:
      ferryman jobs cancel 0192f3c4a1b2
      ferryman jobs cancel --queue email --state scheduled
    """
    which = _among(_UNFINISHED, options, "cancelled")
    verb = functools.partial(target.existing.cancel, reason=reason)
    every = every or bool(options["states"])
    named = change_selected(target, ids, which, verb, words=("Cancel", "cancelled"), every=every, yes=yes)
    if any(job.state is State.RUNNING for job in named) or which.states == (State.RUNNING,):
        say("those that run end when their worker hears of it, with its next heartbeat", err=True)


@jobs.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters(states=True)
@click.option("--all", "every", is_flag=True, help="All that are dead, cancelled or expired.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_store
@pass_target
def retry(target: Target, /, ids: tuple[str, ...], every: bool, yes: bool, **options: Any) -> None:
    """Let finished jobs run again, with all their attempts.

    Filters mean dead, cancelled and expired jobs, unless --state says otherwise; ids mean any finished job.

    \b
    Examples:
      ferryman jobs retry 0192f3c4a1b2
      ferryman jobs retry --task app.add --state dead --since 1h
    """
    which = _among(_FINISHED, options, "run again")
    if not (ids or options["states"]):
        which = msgspec.structs.replace(which, states=_FAILED)
    change_selected(
        target,
        ids,
        which,
        target.existing.replay,
        words=("Run again", "will run again"),
        every=every or bool(options["states"]),
        yes=yes,
    )


@jobs.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters(states=True)
@click.option("--all", "every", is_flag=True, help="All jobs that are not running.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_store
@pass_target
def delete(target: Target, /, ids: tuple[str, ...], every: bool, yes: bool, **options: Any) -> None:
    """Delete jobs that are not running.

    All that is known of them goes too. Children that wait for them are cancelled, or do as they were told.
    """
    every = every or bool(options["states"])
    which = _among(_AT_REST, options, "deleted")
    words = ("Delete", "deleted")
    change_selected(
        target, ids, which, target.existing.delete, words=words, every=every, yes=yes, dangerous=True
    )


@jobs.command()
@click.argument("id")
@click.option("--timeout", type=duration, help="Give up after this long: 30, 10m.")
@with_app
@listing
@pass_target
def wait(target: Target, id: str, timeout: float | None) -> None:
    """Wait for a job and print its result.

    Ends with 1 if the job does not succeed, or not in time.
    """
    (job,) = fetch(target, [id])
    result = target.app.job(job.id).result(timeout)
    if target.json:
        json_line({"id": job.id, "result": result})
    else:
        say(value_text(result))


def _among(possible: Sequence[State], options: dict[str, Any], done: str) -> Filter:
    """The filter of these options, of jobs in the states for which there is something to be done."""
    asked = options["states"]
    if vain := [state.label for state in asked if state not in possible]:
        states = ", ".join(state.label for state in possible)
        raise click.UsageError(f"jobs that are {vain[0]} cannot be {done}; --state takes {states} here")
    return filter_of({**options, "states": asked or tuple(possible)})
