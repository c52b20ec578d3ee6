"""``ferryman enqueue``: a job made by hand."""

from __future__ import annotations

import difflib
import sys
from typing import Any

import click
import msgspec

from ferryman.app import App
from ferryman.binding import bind_by_name
from ferryman.cli.output import json_line, say, value_text, warn
from ferryman.cli.params import duration, json_or_text, name
from ferryman.cli.selection import resolve
from ferryman.cli.target import Target, listing, pass_target, with_tasks
from ferryman.cli.workers import alive
from ferryman.errors import BadArguments, ConfigError, UnknownTask
from ferryman.handle import JobHandle
from ferryman.job import MAX_COUNT, JobId, NewJob, UniqueKey, new_id
from ferryman.options import Options, new_job_template
from ferryman.task import Task

__all__ = ["enqueue"]


class _Parent(msgspec.Struct, frozen=True):
    id: JobId


@click.command()
@click.argument("task", type=name)
@click.argument("values", nargs=-1, metavar="[NAME=VALUE]...")
@click.option(
    "--args", "text", metavar="JSON", help="All arguments as one JSON object; - reads it from standard input."
)
@click.option("--queue", metavar="NAME", help="Into this queue.")
@click.option("--priority", metavar="N", help="-9 to 9, or low, normal, high, urgent; larger is sooner.")
@click.option("--delay", type=duration, help="Not before this long: 30, 10m.")
@click.option("--ttl", type=duration, help="Expires if it is not started within this long.")
@click.option("--timeout", type=duration, help="Stop an attempt after this long.")
@click.option(
    "--max-attempts", type=click.IntRange(1, MAX_COUNT), metavar="N", help="How often it may be tried."
)
@click.option("--key", type=name, metavar="KEY", help="Jobs of the same key run one at a time.")
@click.option("--unique", type=name, metavar="KEY", help="Make no job if an unfinished one has this key.")
@click.option("--after", metavar="ID", multiple=True, help="Wait for this job to finish first.")
@click.option("--tenant", type=name, metavar="NAME", help="For whom it is, in a fair queue.")
@click.option("--tag", "tags", type=name, metavar="TAG", multiple=True, help="A word to find it by.")
@click.option("--wait", is_flag=True, help="Wait until it has finished, and print its result.")
@click.option("--wait-timeout", type=duration, help="With --wait: give up after this long.")
@with_tasks
@listing
@pass_target
def enqueue(
    target: Target,
    /,
    task: str,
    values: tuple[str, ...],
    text: str | None,
    wait: bool,
    wait_timeout: float | None,
    **options: Any,
) -> None:
    """Store a job of TASK and print its id.

    Values are read as JSON if they are JSON, else as text. Without --app, arguments are checked by the worker
    only; with it, here and now.

    \b
    Examples:
      ferryman enqueue app.add a=1 b=2
      ferryman enqueue app.send_email to=a@example.com --delay 10m --queue email
      ferryman enqueue app.resize --args '{"paths": ["a.png"]}' --app app:app --wait
    """
    if wait_timeout is not None and not wait:
        raise click.UsageError("--wait-timeout says how long to --wait, which is not given")
    args, kwargs = _arguments(values, text)
    handle = _store(target, task, args, kwargs, _changes(target, options))
    if not target.json or not wait:
        _tell(target, handle)
    if not wait:
        return
    result = handle.result(wait_timeout)
    if target.json:
        json_line({"id": handle.id, "duplicate": handle.duplicate, "result": result})
    else:
        say(value_text(result))


def _arguments(values: tuple[str, ...], text: str | None) -> tuple[list[Any], dict[str, Any]]:
    if text is not None:
        if values:
            raise click.UsageError("give arguments either one by one or as --args, not both")
        return _parsed(sys.stdin.read() if text == "-" else text)
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for value in values:
        parameter, equals, rest = value.partition("=")
        if equals and parameter.isidentifier():
            if parameter in kwargs:
                raise click.UsageError(f"{parameter!r} is given twice; it takes one value")
            kwargs[parameter] = json_or_text(rest)
        else:
            args.append(json_or_text(value))
    return args, kwargs


def _parsed(text: str) -> tuple[list[Any], dict[str, Any]]:
    try:
        given = msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise BadArguments(f"--args is no JSON: {error}") from error
    if isinstance(given, dict):
        return [], given
    if isinstance(given, list):
        return given, {}
    raise BadArguments("--args must be a JSON object by parameter, or a list")


def _changes(target: Target, options: dict[str, Any]) -> dict[str, Any]:
    changes = {name: value for name, value in options.items() if value not in (None, ())}
    priority = changes.get("priority")
    if priority is not None and priority.lstrip("+-").isdigit():
        changes["priority"] = int(priority)
    if "after" in changes:
        changes["after"] = [_Parent(resolve(target, text)) for text in changes["after"]]
    return changes


def _store(
    target: Target, task: str, args: list[Any], kwargs: dict[str, Any], changes: dict[str, Any]
) -> JobHandle[Any]:
    # Raises if no worker could ever see the job.
    _ = target.store
    attempts = changes.pop("max_attempts", None)
    if target.app_name is None:
        job, decode = _unchecked(target.app, task, args, kwargs, changes), None
    else:
        known = _task(target.app, task, target.app_name)
        if attempts is not None and known.settings.at_most_once:
            raise ConfigError(f"{task} runs at most once; its jobs cannot be retried")
        job, decode = known.options(**changes).new_job(args, kwargs), known.binding.decode_result
    if attempts is not None:
        # Not as a retry policy of the job's own, which would stand in for the backoff of its task, too.
        job = msgspec.structs.replace(job, max_attempts=attempts)
    return target.app.enqueue_jobs([job], decode)[0]


def _task(app: App, name: str, app_name: str) -> Task[..., Any]:
    task = app.tasks.get(name)
    if task is None:
        near = difflib.get_close_matches(name, app.tasks, n=1)
        advice = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(app.tasks)) or 'none'}"
        raise UnknownTask(f"no task {name!r} is registered in {app_name}; {advice}")
    return task


def _unchecked(
    app: App, task: str, args: list[Any], kwargs: dict[str, Any], changes: dict[str, Any]
) -> NewJob:
    if args:
        raise BadArguments(
            f"name the arguments, as in a=1, or give --app MODULE:ATTR, which knows the parameters of {task!r}"
        )
    template = new_job_template(task, Options(**changes), changes)
    payload = bind_by_name(app.codec, task, args, kwargs)
    unique = UniqueKey(changes["unique"]) if "unique" in changes else None
    return msgspec.structs.replace(template, id=new_id(), args=payload, unique=unique)


def _tell(target: Target, handle: JobHandle[Any]) -> None:
    if target.json:
        json_line({"id": handle.id, "duplicate": handle.duplicate})
        return
    say(handle.id)
    if handle.duplicate:
        warn("an unfinished job has this unique key already; no new one was made")
    now = target.now()
    if sys.stderr.isatty() and not any(alive(record, now) for record in target.run(target.store.workers())):
        warn("no worker is alive to run it; start one with: ferryman worker app:app")
