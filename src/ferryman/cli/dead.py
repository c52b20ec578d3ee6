"""``ferryman dead``: dead letters, why they died, and how they get another life."""

from __future__ import annotations

from typing import Any

import click
import msgspec

from ferryman.binding import bind_by_name
from ferryman.cli.life import show_life
from ferryman.cli.output import (
    Cell,
    Column,
    ago,
    job_fields,
    json_line,
    number,
    say,
    stamps,
    table,
    value_text,
)
from ferryman.cli.params import filter_of, filters, newest_first
from ferryman.cli.selection import change_selected, fetch, newest, resolve
from ferryman.cli.target import Target, listing, on_store, pass_target, with_app, with_tasks
from ferryman.errors import BadArguments, ConfigError, JobNotFound
from ferryman.job import Job, State, new_id
from ferryman.store.records import Filter

__all__ = ["dead"]


@click.group()
def dead() -> None:
    """List, show, replay, edit and purge dead letters.

    A dead letter is a job that failed for good. It is kept until it is replayed, purged or past its retention.
    """


@dead.command(name="list")
@filters(states=False)
@newest_first
@listing
@pass_target
def list_dead(target: Target, /, limit: int, **options: Any) -> None:
    """List dead letters, the newest first.

    \b
    Examples:
      ferryman dead list --task app.add
      ferryman dead list --cause "ValueError: boom" --since 1d
    """
    now = target.now()
    found = newest(target, _dead(options), limit)
    if target.json:
        for job in found:
            json_line(job_fields(job))
        return
    columns = (
        Column("Id"),
        Column("Died", spared=1),
        Column("Try", right=True, spared=2),
        Column("Task", folds=True),
        Column("Cause", folds=True),
    )
    rows: list[tuple[Cell, ...]] = [
        (job.id, ago(job.finished_at, now), str(job.attempt), job.task, (job.reason or "", "red"))
        for job in found
    ]
    table(columns, rows, "no dead letters")


@dead.command()
@click.argument("id")
@click.option("--traceback", "full", is_flag=True, help="Show whole tracebacks.")
@with_app
@listing
@pass_target
def show(target: Target, id: str, full: bool) -> None:
    """Show a dead letter's whole life."""
    show_life(target, _one_dead(target, id).id, full)


@dead.command()
@filters(states=False)
@listing
@pass_target
def causes(target: Target, /, **options: Any) -> None:
    """Group dead letters by task and cause, the most frequent first."""
    now = target.now()
    found = target.run(target.existing.causes(_dead(options)))
    if target.json:
        for group in found:
            json_line(
                {
                    "task": group.task,
                    "cause": group.cause,
                    "count": group.count,
                    **stamps(first=group.first, last=group.last),
                }
            )
        return
    columns = (
        Column("Count", right=True),
        Column("Last"),
        Column("First", spared=1),
        Column("Task", folds=True),
        Column("Cause", folds=True),
    )
    rows: list[tuple[Cell, ...]] = [
        (number(group.count), ago(group.last, now), ago(group.first, now), group.task, (group.cause, "red"))
        for group in found
    ]
    table(columns, rows, "no dead letters")


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters(states=False)
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_store
@pass_target
def replay(target: Target, /, ids: tuple[str, ...], every: bool, yes: bool, **options: Any) -> None:
    """Let dead letters run again, with all their attempts.

    \b
    Examples:
      ferryman dead replay 0192f3c4a1b2
      ferryman dead replay --task app.add --cause "ConnectionError: refused"
      ferryman dead replay --all --yes
    """
    words = ("Replay", "will run again")
    change_selected(target, ids, _dead(options), target.existing.replay, words=words, every=every, yes=yes)


@dead.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@filters(states=False)
@click.option("--all", "every", is_flag=True, help="All dead letters.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@on_store
@pass_target
def purge(target: Target, /, ids: tuple[str, ...], every: bool, yes: bool, **options: Any) -> None:
    """Delete dead letters for good."""
    words = ("Delete", "deleted")
    change_selected(
        target, ids, _dead(options), target.existing.delete, words=words, every=every, yes=yes, dangerous=True
    )


@dead.command()
@click.argument("id")
@click.option(
    "--args", "text", metavar="JSON", help='The new arguments, instead of an editor: \'{"to": "a@b.c"}\'.'
)
@click.option("--replay", "again", is_flag=True, help="Then let the job run again.")
@with_tasks
@on_store
@pass_target
def edit(target: Target, id: str, text: str | None, again: bool) -> None:
    """Change the arguments of a dead letter, as JSON in $EDITOR. Give --app to have them checked.

    \b
    Examples:
      ferryman dead edit 0192f3c4a1b2 --replay
      ferryman dead edit 0192f3c4a1b2 --args '{"to": "a@example.com"}' --app app:app --replay
    """
    job = _one_dead(target, id)
    arguments = _parsed(_edited(target, job) if text is None else text)
    if arguments is None:
        say("nothing was changed", err=True)
    else:
        payload = _payload(target, job, arguments)
        if not target.run(target.store.edit(job.id, payload)):
            raise JobNotFound(
                f"job {job.id} is gone, or it runs again already; its arguments are as they were"
            )
        say(f"{job.id} has new arguments")
    if again:
        which = Filter(ids=(job.id,), states=(State.DEAD,))
        replayed = target.run(target.store.replay(which, 1))
        say(
            "it will run again" if replayed else "it was not replayed: its unique key is taken by another job"
        )
        if not replayed:
            click.get_current_context().exit(1)


def _dead(options: dict[str, Any]) -> Filter:
    return filter_of({**options, "states": (State.DEAD,)})


def _one_dead(target: Target, text: str) -> Job:
    (job,) = fetch(target, [resolve(target, text)])
    if job.state is not State.DEAD:
        raise JobNotFound(
            f"job {job.id} is no dead letter: it is {job.state.label}; see: ferryman jobs show {job.id}"
        )
    return job


def _edited(target: Target, job: Job) -> str | None:
    arguments = target.app.codec.decoder(Any)(target.app.perform(target.app.payloads.fetch(job.args)))
    if _has_bytes(arguments):
        raise BadArguments(
            f"the arguments of job {job.id} hold bytes, which JSON cannot; enqueue another job from Python instead"
        )
    shown = msgspec.json.format(value_text(arguments), indent=2)
    try:
        edited = click.edit(shown + "\n", extension=".json")
    except click.ClickException as error:
        raise ConfigError(
            f"the editor cannot be used ({error.message}); name another with EDITOR, or give --args"
        ) from error
    return None if edited is None or edited.strip() == shown.strip() else edited


def _has_bytes(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_has_bytes, value.values()))
    if isinstance(value, (list, tuple)):
        return any(map(_has_bytes, value))
    return isinstance(value, (bytes, msgspec.msgpack.Ext))


def _parsed(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        return msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise BadArguments(
            f"the arguments must be one JSON object, from parameter to value: {error}"
        ) from error


def _payload(target: Target, job: Job, arguments: dict[str, Any]) -> bytes:
    task = target.app.tasks.get(job.task)
    payload = bind_by_name(target.app.codec, job.task, (), arguments)
    if task is not None:
        # Stored arguments are a map by name, of which the task's own binding makes a call or an error.
        task.binding.decode(payload)
    return target.app.perform(target.app.payloads.stow(job.id, f"args-{new_id()}", payload))
