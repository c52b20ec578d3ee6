"""A job's whole life as people read it: what it is, and a timeline of what happened to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import click
import msgspec

from ferryman.cli.output import (
    STATE_STYLES,
    clean,
    iso,
    job_fields,
    json_line,
    local_time,
    say,
    stamps,
    value_text,
)
from ferryman.cli.target import Target
from ferryman.errors import JobNotFound, PayloadError
from ferryman.job import FINISHED, Attempt, ErrorInfo, History, Job, JobId, OutcomeKind, State
from ferryman.payload import read_reference
from ferryman.policy.why import span

__all__ = ["Event", "show_life", "timeline"]

_KIN = 10
"""Parents or children that are listed before they are only counted."""

_HAPPENED = {
    OutcomeKind.RETRY: ("failed", "red"),
    OutcomeKind.DEAD: ("failed for good", "red"),
    OutcomeKind.SNOOZED: ("snoozed", "blue"),
    OutcomeKind.CANCELLED: ("was cancelled", "bright_black"),
    OutcomeKind.RELEASED: ("was given back unstarted", "bright_black"),
    OutcomeKind.CRASHED: ("crashed", "red"),
    OutcomeKind.SUCCEEDED: ("succeeded", "green"),
}


class Event(NamedTuple):
    """Something that happened to the job."""

    at: int
    attempt: int
    step: int
    """With `attempt`, the order of what happened in the same millisecond."""
    text: str
    style: str | None = None
    error: ErrorInfo | None = None


class _Kin(NamedTuple):
    title: str
    ids: Sequence[JobId]
    jobs: Sequence[Job | None]


def show_life(target: Target, id: JobId, full: bool) -> None:
    """Print all that is known of a job. Raises JobNotFound."""
    store = target.existing
    history = target.run(store.history(id))
    if history is None:
        raise JobNotFound(
            f"{store.url} has no job {id}; it was never stored there, or its retention has passed"
        )
    kin = []
    for title, ids in (("parents", history.parents), ("children", history.children)):
        relatives = target.run(store.get(ids[:_KIN]))
        kin.append(_Kin(title, ids, relatives))
    arguments, result = _decoded(target, history.job.args), _decoded(target, history.job.result)
    if target.json:
        json_line(_fields(history, arguments, result))
        return
    _header(history.job, arguments, result)
    for side in kin:
        _relatives(side)
    click.echo()
    _show_events(timeline(history), full)


def timeline(history: History) -> list[Event]:
    """What happened, in order of time."""
    return sorted(_events(history), key=lambda event: event[:3])


def _events(history: History) -> Iterator[Event]:
    job = history.job
    lane = f"queue {job.queue}" + (f", priority {job.priority}" if job.priority else "")
    yield Event(job.enqueued_at, 0, 0, f"enqueued in {lane}")
    for attempt in history.attempts:
        number = attempt.number
        yield Event(attempt.started_at, number, 0, f"attempt {number} started on {attempt.worker}")
        yield _ended(attempt)
    for note in history.notes:
        yield Event(note.at, note.attempt, 1, f"note: {note.text}", "cyan")
    if job.state is State.SCHEDULED:
        yield Event(job.run_at, job.attempt, 3, "may run", "blue")
    if job.state in (State.RUNNING, State.SUCCEEDED) and job.started_at is not None:
        yield Event(job.started_at, job.attempt, 0, f"attempt {job.attempt} started on {job.worker}")
    if job.state in FINISHED and job.finished_at is not None:
        yield Event(job.finished_at, job.attempt, 4, _end(job), STATE_STYLES[job.state])


def _ended(attempt: Attempt) -> Event:
    happened, style = _HAPPENED[attempt.kind]
    cause = attempt.error.cause if attempt.error else attempt.reason
    text = f"attempt {attempt.number} {happened} after {span(attempt.finished_at - attempt.started_at)}"
    text += f": {cause}" if cause else ""
    return Event(attempt.finished_at, attempt.number, 2, text, style, attempt.error)


def _end(job: Job) -> str:
    match job.state:
        case State.SUCCEEDED:
            ran = "" if job.started_at is None else f" after {span((job.finished_at or 0) - job.started_at)}"
            return f"succeeded{ran}"
        case State.DEAD:
            return f"dead: {job.reason or 'no cause was kept'}"
        case State.EXPIRED:
            return "expired: no worker started it by its deadline"
        case _:
            return "cancelled" + (f": {job.reason}" if job.reason else "")


# -- for people ------------------------------------------------------------------------------------------


def _header(job: Job, arguments: Any, result: Any) -> None:
    state = click.style(job.state.label, fg=STATE_STYLES[job.state], bold=True)
    click.echo(f"{click.style(job.id, bold=True)}  {clean(job.task)}  {state}")
    _field("queue", f"{job.queue}, priority {job.priority}")
    _field(
        "attempts", f"{job.attempt} of {job.max_attempts}" + (f", {job.deaths} deaths" if job.deaths else "")
    )
    for name in ("worker", "key", "tenant"):
        if getattr(job, name):
            _field(name, getattr(job, name))
    if job.tags:
        _field("tags", ", ".join(job.tags))
    if job.progress is not None:
        _field("progress", f"{job.progress:.0%}")
    if job.deadline is not None:
        _field("deadline", local_time(job.deadline))
    if isinstance(arguments, dict):
        for title, (name, value) in zip(
            ["arguments"] + [""] * len(arguments), arguments.items(), strict=False
        ):
            _field(title, f"{name} = {value_text(value)}")
        if not arguments:
            _field("arguments", "none")
    else:
        _field("arguments", value_text(arguments))
    if job.state is State.SUCCEEDED:
        forgotten = job.result is None and job.result_until is not None
        _field("result", "forgotten, as its time to live has passed" if forgotten else value_text(result))


def _field(name: str, text: str) -> None:
    click.echo(f"  {click.style(f'{name:<10}', fg='bright_black')} {clean(text)}")


def _relatives(kin: _Kin) -> None:
    titles = iter([kin.title])
    for id, job in zip(kin.ids, kin.jobs, strict=False):
        _field(next(titles, ""), f"{id}  {job.state.label + '  ' + job.task if job else 'gone'}")
    if len(kin.ids) > _KIN:
        _field("", f"and {len(kin.ids) - _KIN:,} more")


def _show_events(events: Sequence[Event], full: bool) -> None:
    day, folded = "", False
    for event in events:
        date, _, time = local_time(event.at).partition(" ")
        if date != day:
            say(date, "bright_black")
            day = date
        since = "" if event is events[0] else f"+{span(event.at - events[0].at)}"
        margin = click.style(f"{time} {since:>9}", fg="bright_black")
        click.echo(f"{margin}  {click.style(clean(event.text), fg=event.style)}")
        traceback = event.error.traceback.rstrip().splitlines() if event.error else []
        shown = traceback if full else _where_it_broke(traceback)
        folded = folded or len(shown) < len(traceback)
        for line in shown:
            say(f"{'':24}│ {line}", "bright_black")
    if folded:
        say("\nwhole tracebacks: --traceback", "bright_black")


def _where_it_broke(traceback: list[str]) -> list[str]:
    """The last frame of a traceback; what the error said stands above it already."""
    frames = [number for number, line in enumerate(traceback) if line.startswith("  File ")]
    if not frames:
        return traceback[-3:]
    return [line for line in traceback[frames[-1] : frames[-1] + 3] if line.startswith("  ")]


# -- for programs ----------------------------------------------------------------------------------------


def _decoded(target: Target, payload: bytes | None) -> Any:
    if payload is None:
        return None
    try:
        if (reference := read_reference(payload)) is not None:
            return f"{reference.size:,} bytes outside the store: {reference.name}"
        return target.app.codec.decoder(Any)(payload)
    except PayloadError as error:
        return f"{len(payload):,} bytes that cannot be shown: {error}"


def _fields(history: History, arguments: Any, result: Any) -> dict[str, Any]:
    return {
        **job_fields(history.job),
        "arguments": arguments,
        "result": result,
        "attempts": [
            {
                "number": attempt.number,
                "outcome": attempt.kind.name.lower(),
                "worker": attempt.worker,
                **stamps(started_at=attempt.started_at, finished_at=attempt.finished_at),
                "error": None if attempt.error is None else msgspec.structs.asdict(attempt.error),
                "reason": attempt.reason,
            }
            for attempt in history.attempts
        ],
        "notes": [
            {"at": iso(note.at), "at_ms": note.at, "attempt": note.attempt, "text": note.text}
            for note in history.notes
        ],
        "parents": list(history.parents),
        "children": list(history.children),
    }
