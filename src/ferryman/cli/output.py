"""How things look: tables, times and lines of JSON. No module here asks the store anything.

People at a terminal get colours, and columns that fold; pipes get plain text, aligned and never cut.
"""

from __future__ import annotations

import datetime
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click
import msgspec

from ferryman.errors import MissingExtra
from ferryman.job import Job, State
from ferryman.policy.why import span

__all__ = [
    "STATE_STYLES",
    "Cell",
    "Column",
    "ago",
    "clean",
    "iso",
    "job_fields",
    "json_line",
    "local_time",
    "number",
    "say",
    "stamps",
    "state_cell",
    "table",
    "value_text",
    "warn",
    "when",
]

Cell = str | tuple[str, str]
"""Text, or text and its style."""

STATE_STYLES = {
    State.WAITING: "blue",
    State.SCHEDULED: "blue",
    State.READY: "cyan",
    State.PARKED: "magenta",
    State.RUNNING: "yellow",
    State.SUCCEEDED: "green",
    State.DEAD: "red",
    State.CANCELLED: "bright_black",
    State.EXPIRED: "bright_black",
}

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Column(NamedTuple):
    """A column of a table. `folds`: its text may be broken over lines on a narrow terminal."""

    title: str
    right: bool = False
    folds: bool = False


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], empty: str) -> None:
    """Show rows under titles, or say what it means that there are none."""
    if not rows:
        say(empty, err=True)
    elif sys.stdout.isatty():
        _rich_table(columns, rows)
    else:
        _plain_table(columns, rows)


def _plain_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    lines = [[column.title.upper() for column in columns]]
    lines += [[clean(_text(cell)).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = [
            text.rjust(width) if column.right else text.ljust(width)
            for text, width, column in zip(line, widths, columns, strict=True)
        ]
        click.echo("  ".join(cells).rstrip())


def _rich_table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]]) -> None:
    # Rich takes longer to import than most commands take to run.
    try:
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ModuleNotFoundError as error:
        raise MissingExtra('tables need the package rich: pip install "ferryman[cli]"') from error

    grid = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="bold"
    )
    for place, column in enumerate(columns):
        longest = max(len(_text(row[place])) for row in rows)
        grid.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=not column.folds,
            overflow="fold",
            min_width=max(len(column.title), min(longest, 12) if column.folds else longest),
        )
    for row in rows:
        grid.add_row(*(Text(clean(_text(cell)), cell[1] if isinstance(cell, tuple) else "") for cell in row))
    Console(highlight=False).print(grid)


def _text(cell: Cell) -> str:
    return cell if isinstance(cell, str) else cell[0]


def say(text: str, style: str | None = None, *, err: bool = False) -> None:
    """One line for people."""
    click.echo(click.style(clean(text), fg=style) if style else clean(text), err=err)


def warn(text: str) -> None:
    """A line that is no part of the answer."""
    click.echo(f"ferryman: {clean(text)}", err=True)


def json_line(record: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own."""
    click.echo(msgspec.json.encode(record, enc_hook=repr).decode())


def clean(text: str) -> str:
    """Text of somebody else's, without what would steer the terminal."""
    return _CONTROLS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def value_text(value: Any) -> str:
    """A value as JSON, for people."""
    return msgspec.json.encode(value, enc_hook=repr).decode()


def number(value: int) -> Cell:
    """A count; nothing is shown more quietly than something."""
    return (f"{value:,}", "") if value else ("0", "bright_black")


def state_cell(state: State) -> Cell:
    """A state in its colour."""
    return state.label, STATE_STYLES[state]


# -- times -----------------------------------------------------------------------------------------------


def ago(moment: int | None, now: int) -> str:
    """How long ago, or how long from now."""
    if moment is None:
        return "-"
    if moment > now:
        return f"in {span(moment - now)}"
    return f"{span(now - moment)} ago"


def when(job: Job, now: int) -> str:
    """What the clock says of a job's present state."""
    match job.state:
        case State.SCHEDULED:
            return ago(job.run_at, now) if job.run_at > now else "due"
        case State.RUNNING:
            done = "" if job.progress is None else f", {job.progress:.0%}"
            return f"for {span(now - (job.started_at or now))}{done}"
        case State.READY | State.PARKED | State.WAITING:
            return f"for {span(now - max(job.run_at if job.run_at <= now else 0, job.enqueued_at))}"
        case _:
            return ago(job.finished_at, now)


def iso(ms: int | None) -> str | None:
    """A moment in UTC, to the millisecond."""
    if ms is None:
        return None
    try:
        moment = datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC)
    except (OverflowError, ValueError, OSError):
        return None
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ms % 1000:03d}Z"


def local_time(ms: int) -> str:
    """A moment in the zone of whoever looks, to the millisecond."""
    try:
        moment = datetime.datetime.fromtimestamp(ms // 1000, datetime.UTC).astimezone()
    except (OverflowError, ValueError, OSError):
        return f"{ms} ms"
    return f"{moment:%Y-%m-%d %H:%M:%S}.{ms % 1000:03d}"


def stamps(**moments: int | None) -> dict[str, Any]:
    """Moments for programs: ``name`` in UTC and ``name_ms`` in milliseconds since the epoch."""
    fields: dict[str, Any] = {}
    for name, ms in moments.items():
        fields[name] = iso(ms)
        fields[f"{name}_ms"] = ms
    return fields


def job_fields(job: Job) -> dict[str, Any]:
    """A job for programs, without its arguments and result."""
    return {
        "id": job.id,
        "task": job.task,
        "queue": job.queue,
        "priority": job.priority,
        "state": job.state.label,
        "attempt": job.attempt,
        "max_attempts": job.max_attempts,
        "deaths": job.deaths,
        "worker": job.worker,
        "key": job.key,
        "tenant": job.tenant,
        "tags": list(job.tags),
        "reason": job.reason,
        "progress": job.progress,
        **stamps(
            enqueued_at=job.enqueued_at,
            run_at=job.run_at,
            started_at=job.started_at,
            finished_at=job.finished_at,
            deadline=job.deadline,
        ),
    }
