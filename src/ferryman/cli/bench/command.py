"""``ferryman bench``: chooses what to measure, shows how far it is, and what came out."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from ferryman.cli.bench import claiming, draining, enqueueing, footprint, latency, serving
from ferryman.cli.bench.figures import NAMES, Extent, Figure, target_of
from ferryman.cli.bench.ground import Ground, open_ground
from ferryman.cli.bench.servers import Server
from ferryman.cli.output import Cell, Column, json_line, say, table, warn
from ferryman.cli.params import duration
from ferryman.cli.target import Target, pass_target

__all__ = ["bench"]


_LEAST_SECONDS = 0.05
_MOST_JOBS = 400_000
"""Workers with the default settings delete finished jobs beyond half a million, and then none could be counted."""


class _Measure(NamedTuple):
    """One run, and the figures that it gives."""

    names: tuple[str, ...]
    take: Callable[[Ground, Extent], Iterator[Figure]]
    doing: str
    watches_processes: bool = False
    needs_server: bool = False


_MEASURES = (
    _Measure(("enqueue_bulk",), enqueueing.measure_bulk, "enqueueing in batches of 100"),
    _Measure(("enqueue_batch",), enqueueing.measure_batch, "enqueueing 10,000 at once"),
    _Measure(("enqueue_one",), enqueueing.measure_one, "enqueueing one by one"),
    _Measure(("enqueue_async",), enqueueing.measure_async, "enqueueing from a thousand coroutines"),
    _Measure(("drain",), draining.measure_drain, "draining a backlog"),
    _Measure(
        ("steady_rate", "steady_size"),
        serving.measure_steadiness,
        "draining ten backlogs in a row",
        needs_server=True,
    ),
    _Measure(("latency_p50", "latency_p99"), latency.measure_latency, "waiting for single jobs to start"),
    _Measure(
        ("enqueue_p99_under_drain",), draining.measure_enqueue_under_drain, "enqueueing beside a busy worker"
    ),
    _Measure(
        ("claim_growth",), claiming.measure_claim_growth, "claiming from a long line and from a short one"
    ),
    _Measure(("idle_cpu",), footprint.measure_idle, "watching an idle worker", watches_processes=True),
    _Measure(
        ("idle_statements",),
        serving.measure_statements,
        "counting what an idle worker asks",
        needs_server=True,
    ),
    _Measure(("job_memory",), serving.measure_job_memory, "weighing jobs that wait", needs_server=True),
    _Measure(("import_time",), footprint.measure_import, "importing ferryman"),
    _Measure(
        ("rss_supervisor", "rss_executor"),
        footprint.measure_memory,
        "looking at memory",
        watches_processes=True,
    ),
)


def _long_enough(text: str) -> float:
    seconds = duration(text)
    if seconds < _LEAST_SECONDS:
        raise click.BadParameter(
            f"{text} is too short a time to measure in; give {_LEAST_SECONDS} s at least"
        )
    return seconds


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAME]...")
@click.option(
    "--only",
    multiple=True,
    type=click.Choice(NAMES),
    metavar="NAME",
    help="Measure this alone; names may follow.",
)
@click.option(
    "--store",
    metavar="URL",
    help="The store's kind and place: measured are files of its own in a SQLite file's folder, by default the "
    "working directory, or a schema or prefix of its own on a server; they are removed.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
@click.option(
    "--jobs",
    type=click.IntRange(100, _MOST_JOBS),
    default=Extent().jobs,
    show_default=True,
    help="Jobs that a worker drains.",
)
@click.option(
    "--seconds",
    type=_long_enough,
    metavar="DURATION",
    default=Extent().seconds,
    show_default=True,
    help="For how long each rate is taken.",
)
@pass_target
def bench(
    target: Target,
    names: Sequence[str],
    only: Sequence[str],
    store: str | None,
    as_json: bool,
    jobs: int,
    seconds: float,
) -> None:
    """Measure this machine: real workers, real syncs, and floors beside them: what the store's driver alone would
    reach in the same run.

    \b
    The figures:
      enqueue_bulk, enqueue_one   jobs a second that one producer stores: in batches of 100, one by one
      enqueue_batch               the same, with 10,000 in one call
      enqueue_async               a thousand coroutines at once, over one after the other
      drain                       no-op jobs a second, claim to settle, by one worker
      steady_rate                 the rate after a million jobs, over that of the first ones; its floor is the same
                                  of the driver alone on an empty store, which tells how steady the machine was
      steady_size                 and the size of the tables, over that at half time
      latency_p50, latency_p99    from just before the enqueue to the task's first line, idle worker
      enqueue_p99_under_drain     an enqueue while a worker drains at full speed
      claim_growth                a claim with a million jobs waiting, over one with a thousand
      idle_cpu                    an idle worker with its executors, in per cent of a core
      idle_statements             what an idle worker asks its server in a second
      job_memory                  memory of the server for a waiting job (Redis)
      import_time                 import ferryman in a fresh process
      rss_supervisor              resident memory of the supervisor
      rss_executor                and of its largest executor

    A ratio is the figure over its floor. Of a rate, 1 or more is as good as the driver alone. Of a latency, 1 is, and
    2 is twice as slow; its floor is a row of 100 bytes that one process stores, another takes, and a third is told of.

    \b
    Examples:
      ferryman bench
      ferryman bench --only drain latency_p50
      ferryman bench --store sqlite:////data/any.db --json
      ferryman bench --store redis://localhost
    """
    wanted = {*names, *only} or set(NAMES)
    extent = Extent(jobs, seconds)
    with _ended_by_sigterm(), open_ground(store or target.url) as ground:
        measures = _possible([each for each in _MEASURES if wanted.intersection(each.names)], ground)
        _describe(ground, extent)
        figures: list[Figure] = []
        with _progress(len(measures), quiet=as_json) as show:
            for measure in measures:
                show(measure)
                for figure in measure.take(ground, extent):
                    if figure.name not in wanted:
                        continue
                    if as_json:
                        json_line(msgspec.structs.asdict(figure))
                    figures.append(figure)
        if not as_json:
            _show(figures)


def _possible(measures: Sequence[_Measure], ground: Ground) -> list[_Measure]:
    """Leaves out, with a word, what cannot be measured here."""
    kept: list[_Measure] = []
    for measure in measures:
        names = ", ".join(measure.names)
        if measure.watches_processes and not ground.has_processes:
            warn(f"{names}: left out, since a worker on {ground.url} is no process of its own")
        elif measure.watches_processes and not Path("/proc/self/stat").exists():
            warn(f"{names}: left out, since this machine has no /proc to read it from")
        elif measure.needs_server and not isinstance(ground, Server):
            continue  # It is not a figure of such a store.
        else:
            kept.append(measure)
    return kept


def _describe(ground: Ground, extent: Extent) -> None:
    """On stderr: what the figures were measured on, without which they mean little."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    warn(
        f"measuring on {ground.about}, {cores} cores, {platform.system()} {platform.machine()}, "
        f"{platform.python_implementation()} {platform.python_version()}"
    )
    if extent.jobs < Extent().jobs or extent.seconds < Extent().seconds:
        warn("a short run: its figures vary, and should not be held against the targets")


@contextlib.contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[_Measure], None]]:
    """A function to be told what is measured next. A terminal sees a bar, others a line each."""
    if quiet:
        yield lambda _: None
        return
    if not sys.stderr.isatty():
        yield lambda measure: say(f"{measure.doing}…", err=True)
        return
    # Imported late: workers and programs that read JSON have no use for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    # Drawing takes from what is measured, so it is done seldom.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=1) as progress:
        bar = progress.add_task("", total=total)
        taken = 0

        def show(measure: _Measure) -> None:
            nonlocal taken
            progress.update(bar, description=measure.doing, completed=taken)
            taken += 1

        yield show


def _show(figures: Sequence[Figure]) -> None:
    columns = [Column("Figure"), Column("Value", right=True), Column("Unit"), Column("Floor", right=True)]
    columns += [Column("Ratio", right=True), Column("Target"), Column("Reached")]
    table(columns, [_row(figure) for figure in figures], "nothing could be measured")


def _row(figure: Figure) -> list[Cell]:
    target = target_of(figure)
    reached: Cell = "-"
    if target is not None and (met := target.is_met(figure)) is not None:
        reached = ("yes", "green") if met else ("no", "red")
    floor = "-" if figure.floor is None else _digits(figure.floor)
    ratio = "-" if figure.ratio is None else f"{figure.ratio:.2f}"
    return [figure.name, _digits(figure.value), figure.unit, floor, ratio, str(target or "-"), reached]


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 1_000 else f"{number:,.4g}"


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM end this program as ^C does: with its workers ended and its files removed."""

    def end(*_: Any) -> None:
        raise SystemExit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
