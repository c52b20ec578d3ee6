"""``ferryman stats``: what was done lately, how long jobs waited, and how long they ran."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import click
import msgspec

from ferryman.cli.output import Cell, Column, json_line, local_time, number, stamps, table
from ferryman.cli.params import moment
from ferryman.cli.target import Target, listing, pass_target
from ferryman.policy.latency import percentile
from ferryman.policy.why import span
from ferryman.store.records import MinuteStats

__all__ = ["Tally", "bar", "merge", "short", "stats"]

K = TypeVar("K")

_MINUTE = 60_000
_PERCENTS = (50, 95, 99)
_UNITS = (("d", 86_400_000_000), ("h", 3_600_000_000), ("m", 60_000_000), ("s", 1_000_000), ("ms", 1_000))

_TITLES = {"queue": "Queue", "task": "Task", "minute": "Minute", None: "Queue / task"}
_MINUTE_AND_BAR = 16
"""Columns of the terminal that a minute and its bar share; with them the table is a hundred wide."""


class Tally(msgspec.Struct):
    """What was done in all minutes of a group, as `MinuteStats` says it of one."""

    enqueued: int = 0
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    waited: Counter[int] = msgspec.field(default_factory=Counter)
    ran: Counter[int] = msgspec.field(default_factory=Counter)

    def add(self, part: MinuteStats) -> None:
        self.enqueued += part.enqueued
        self.succeeded += part.succeeded
        self.failed += part.failed
        self.dead += part.dead
        self.waited.update(part.waited)
        self.ran.update(part.ran)


def merge(parts: Iterable[MinuteStats], group: Callable[[MinuteStats], K]) -> dict[K, Tally]:
    """Add up the statistics of each group; a percentile of a sum of histograms is that of all their counts."""
    tallies: dict[K, Tally] = {}
    for part in parts:
        tallies.setdefault(group(part), Tally()).add(part)
    return tallies


@click.command()
@click.option(
    "--since",
    type=moment,
    default="1h",
    show_default=True,
    help="From when on, in whole minutes: 10m, 2d, or 2025-01-31T14:00.",
)
@click.option(
    "--by",
    type=click.Choice(["queue", "task", "minute"]),
    help="A row for each of these, instead of each queue and task.",
)
@click.option("--queue", "queues", metavar="NAME", multiple=True, help="Of this queue.")
@click.option("--task", "tasks", metavar="NAME", multiple=True, help="Of this task.")
@listing
@pass_target
def stats(
    target: Target, since: int, by: str | None, queues: tuple[str, ...], tasks: tuple[str, ...]
) -> None:
    """Show what was done lately, and the percentiles of how long jobs waited and ran.

    Succeeded and dead count jobs, failed counts attempts, those followed by a retry included. Waiting lasts
    from ready to started, run time from there to the end of the attempt; both are counted when the attempt
    ends, and half (p50), 95 % or 99 % of the attempts took no longer than shown. With --by minute, a bar
    shows how many jobs succeeded in each. Statistics are kept for 30 days if the settings do not say otherwise.

    \b
    Examples:
      ferryman stats
      ferryman stats --since 1d --by queue
      ferryman stats --since 20m --by minute --task app.send_email
      ferryman stats --json | jq 'select(.waited_p99_ms > 1000) | .queue'
    """
    now = target.now()
    # One minute more than is over, for the clock of the store may be ahead of ours.
    found = target.run(target.existing.stats(since - since % _MINUTE, now + _MINUTE))
    chosen = [
        part for part in found if (not queues or part.queue in queues) and (not tasks or part.task in tasks)
    ]
    groups = sorted(merge(chosen, _grouping(by)).items())
    if target.json:
        for key, tally in groups:
            json_line({**_key_fields(by, key), **_tally_fields(tally)})
        return
    columns = [Column(_TITLES[by], folds=by != "minute")]
    columns.append(Column("Enqueued", right=True, spared=2))
    columns += [Column(title, right=True) for title in ("Succeeded", "Failed", "Dead")]
    for time in ("Wait", "Run"):
        columns += [Column(f"{time} p50", right=True), Column("p95", right=True, spared=4)]
        columns.append(Column("p99", right=True, spared=3))
    if by == "minute":
        columns.append(Column("Rate", spared=1))
        rows = _minute_rows([(minute, tally) for (minute,), tally in groups])
    else:
        rows = [[" / ".join(key), *_numbers(tally)] for key, tally in groups]
    for total in merge(chosen, lambda _: None).values():
        cells: list[Cell] = [("total", "bold"), *_numbers(total)]
        rows.append([*cells, ""] if by == "minute" else cells)
    period = "minute" if now - since < _MINUTE else span(now - since)
    if found:
        empty = f"nothing was done in the last {period} that matches; see: ferryman stats --by queue"
    else:
        empty = f"nothing was enqueued or ended in the last {period}; look further back with --since 1d"
    table(columns, rows, empty)


def _grouping(by: str | None) -> Callable[[MinuteStats], tuple[Any, ...]]:
    match by:
        case "queue":
            return lambda part: (part.queue,)
        case "task":
            return lambda part: (part.task,)
        case "minute":
            return lambda part: (part.minute,)
        case _:
            return lambda part: (part.queue, part.task)


# -- for people ------------------------------------------------------------------------------------------


def _minute_rows(minutes: Sequence[tuple[int, Tally]]) -> list[list[Cell]]:
    """A row for each minute, with dots where nothing happened in between."""
    if not minutes:
        return []
    names = [local_time(minute) for minute, _ in minutes]
    one_day = names[0][:10] == names[-1][:10]
    most = max(tally.succeeded for _, tally in minutes)
    rows: list[list[Cell]] = []
    before = minutes[0][0]
    for (minute, tally), name in zip(minutes, names, strict=True):
        if minute - before > _MINUTE:
            rows.append([("...", "bright_black"), *[""] * 11])
        before = minute
        label = name[11:16] if one_day else name[5:16]
        width = _MINUTE_AND_BAR - len(label)
        rows.append([label, *_numbers(tally), (bar(tally.succeeded, most, width), "green")])
    return rows


def bar(value: int, most: int, width: int) -> str:
    """A bar that is as much of the width as the value is of the most; anything at all is seen."""
    return "#" * max(round(value / most * width), 1) if value else ""


def _numbers(tally: Tally) -> list[Cell]:
    cells = [number(tally.enqueued), number(tally.succeeded), number(tally.failed)]
    cells.append((f"{tally.dead:,}", "red") if tally.dead else number(0))
    for histogram in (tally.waited, tally.ran):
        cells += [short(percentile(histogram, percent / 100)) for percent in _PERCENTS]
    return cells


def short(us: int | None) -> str:
    """A duration of µs in five columns, in one unit: as exact as a histogram is."""
    if us is None:
        return "-"
    for unit, size in _UNITS:
        if us >= size:
            value = us / size
            return f"{round(value, 1 if value < 10 else None):g}{unit}"
    return f"{us}µs" if us else "0µs"


# -- for programs ----------------------------------------------------------------------------------------


def _key_fields(by: str | None, key: tuple[Any, ...]) -> dict[str, Any]:
    if by == "minute":
        return stamps(minute=key[0])
    return dict(zip((by,) if by else ("queue", "task"), key, strict=True))


def _tally_fields(tally: Tally) -> Mapping[str, Any]:
    fields: dict[str, Any] = {
        "enqueued": tally.enqueued,
        "succeeded": tally.succeeded,
        "failed": tally.failed,
        "dead": tally.dead,
    }
    for name, histogram in (("waited", tally.waited), ("ran", tally.ran)):
        for percent in _PERCENTS:
            us = percentile(histogram, percent / 100)
            fields[f"{name}_p{percent}_ms"] = None if us is None else us / 1_000
    return fields
