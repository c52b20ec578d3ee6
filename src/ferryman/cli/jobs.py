"""``ferryman jobs``: single jobs, their lives, and what people do to them."""

from __future__ import annotations

import functools
from typing import Any

import click

from ferryman.cli.life import show_life
from ferryman.cli.output import (
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
from ferryman.cli.params import duration, filter_of, filters
from ferryman.cli.selection import change_selected, fetch, resolve
from ferryman.cli.target import Target, listing, on_store, pass_target, with_app
from ferryman.job import State

__all__ = ["jobs"]

_COLUMNS = (
    Column("Id"),
    Column("State"),
    Column("When"),
    Column("Try", right=True),
    Column("Prio", right=True),
    Column("Queue", folds=True),
    Column("Task", folds=True),
)

_PAGE = 1_000


@click.group()
def jobs() -> None:
    """List, show, cancel, retry, delete and wait for jobs.

    A job's id may be shortened to its first digits, as long as they tell it apart.
    """


@jobs.command(name="list")
@filters(states=True)
@click.option("--limit", default=50, show_default=True, help="How many to show, the newest first.")
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
    which = filter_of(options)
    rows = []
    before: int | None = None
    now = target.now()
    while limit > 0:
        page = target.run(target.existing.find(which, min(limit, _PAGE), before))
        for job in page:
            if target.json:
                json_line(job_fields(job))
            else:
                rows.append(
                    (
                        job.id,
                        state_cell(job.state),
                        when(job, now),
                        f"{job.attempt}/{job.max_attempts}",
                        number(job.priority),
                        job.queue,
                        job.task,
                    )
                )
        if not page or len(page) < _PAGE:
            break
        limit -= len(page)
        before = page[-1].seq
    if not target.json:
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
    which = filter_of(options)
    if not which.states:
        unfinished = (State.WAITING, State.SCHEDULED, State.READY, State.PARKED, State.RUNNING)
        which = filter_of({**options, "states": unfinished})
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
    every = every or bool(options["states"])
    if not options["states"]:
        finished = (State.DEAD, State.CANCELLED, State.EXPIRED) + ((State.SUCCEEDED,) if ids else ())
        options = {**options, "states": finished}
    change_selected(
        target,
        ids,
        filter_of(options),
        target.existing.replay,
        words=("Run again", "will run again"),
        every=every,
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
    which = filter_of(options)
    if not which.states:
        which = filter_of({**options, "states": tuple(s for s in State if s is not State.RUNNING)})
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
