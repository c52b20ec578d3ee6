"""How things look: tables, times and lines of JSON. No module here asks the store anything.

People at a terminal get colours, and columns that fold or are left out, with a word; pipes get plain text, aligned and
never cut.
"""

from __future__ import annotations

import datetime
import re
import sys
import unicodedata
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

_GAP = 2
"""Columns of the terminal between those of a table."""

_FOLDED = 12
"""A column that folds is not made narrower."""

_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Column(NamedTuple):
    """A column of a table.

    On a narrow terminal the text of one that `folds` may be broken over lines, and those that can be `spared` are left
    out: the highest numbers first, and all that have the same number together. 0 always stays.
    """

    title: str
    right: bool = False
    folds: bool = False
    spared: int = 0


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
    lines += [[_shown(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(_width(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        cells = []
        for text, width, column in zip(line, widths, columns, strict=True):
            space = " " * (width - _width(text))
            cells.append(space + text if column.right else text + space)
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

    console = Console(highlight=False)
    widths = [_least_width(column, [row[i] for row in rows]) for i, column in enumerate(columns)]
    shown = _that_fit(columns, widths, console.width)
    if sum(widths[i] + _GAP for i in shown) - _GAP > console.width:
        # The terminal wraps its lines, which is hard to read, but all is there.
        _plain_table(columns, rows)
        return
    grid = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False, header_style="bold"
    )
    for i in shown:
        grid.add_column(
            columns[i].title,
            justify="right" if columns[i].right else "left",
            no_wrap=not columns[i].folds,
            overflow="fold",
            min_width=widths[i],
        )
    for row in rows:
        cells = [row[i] for i in shown]
        grid.add_row(*(Text(_shown(cell), cell[1] if isinstance(cell, tuple) else "") for cell in cells))
    console.print(grid)
    if left := [column.title for i, column in enumerate(columns) if i not in shown]:
        say(
            f"no room for {', '.join(dict.fromkeys(left))}; a pipe has all columns: | less -S",
            "bright_black",
            err=True,
        )


def _that_fit(columns: Sequence[Column], widths: Sequence[int], room: int) -> list[int]:
    """The places of the columns that are shown, without those to be spared until there is room for the rest."""
    shown = list(range(len(columns)))
    for rank in sorted({column.spared for column in columns if column.spared}, reverse=True):
        if sum(widths[i] + _GAP for i in shown) - _GAP <= room:
            break
        shown = [i for i in shown if columns[i].spared != rank]
    return shown


def _least_width(column: Column, cells: Sequence[Cell]) -> int:
    longest = max(_width(_shown(cell)) for cell in cells)
    return max(_width(column.title), min(longest, _FOLDED) if column.folds else longest)


def _width(text: str) -> int:
    """Columns of a terminal that a text takes."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "FW" else 1
        for letter in text
    )


def _shown(cell: Cell) -> str:
    return clean(cell if isinstance(cell, str) else cell[0])


def say(text: str, style: str | None = None, *, err: bool = False) -> None:
    """One line for people."""
    click.echo(click.style(clean(text), fg=style) if style else clean(text), err=err)


def warn(text: str) -> None:
    """A line that is no part of the answer."""
    click.echo(f"ferryman: {clean(text)}", err=True)


def json_line(record: Mapping[str, Any]) -> None:
    """One JSON object on a line of its own."""
    # As bytes: JSON is UTF-8, whatever else the terminal may be set to.
    click.echo(msgspec.json.encode(record, enc_hook=repr))


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
