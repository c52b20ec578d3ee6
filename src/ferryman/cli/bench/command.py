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

from ferryman.cli.bench import claiming, draining, enqueueing, footprint, latency
from ferryman.cli.bench.figures import NAMES, Extent, Figure, target_of
from ferryman.cli.bench.ground import Ground, open_ground
from ferryman.cli.output import Cell, Column, json_line, say, table, warn
from ferryman.cli.target import Target, pass_target

__all__ = ["bench"]


class _Measure(NamedTuple):
    """One run, and the figures that it gives."""

    names: tuple[str, ...]
    take: Callable[[Ground, Extent], Iterator[Figure]]
    doing: str
    watches_processes: bool = False


_MEASURES = (
    _Measure(("enqueue_bulk",), enqueueing.measure_bulk, "enqueueing in batches of 100"),
    _Measure(("enqueue_one",), enqueueing.measure_one, "enqueueing one by one"),
    _Measure(("drain",), draining.measure_drain, "draining a backlog"),
    _Measure(("latency_p50", "latency_p99"), latency.measure_latency, "waiting for single jobs to start"),
    _Measure(("enqueue_p99_under_drain",), draining.measure_enqueue_under_drain, "enqueueing beside a busy worker"),
    _Measure(("claim_growth",), claiming.measure_claim_growth, "claiming from a long line and from a short one"),
    _Measure(("idle_cpu",), footprint.measure_idle, "watching an idle worker", watches_processes=True),
    _Measure(("import_time",), footprint.measure_import, "importing ferryman"),
    _Measure(
        ("rss_supervisor", "rss_executor"), footprint.measure_memory, "looking at memory", watches_processes=True
    ),
)


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(NAMES), metavar="[NAME]...")
@click.option(
    "--only", multiple=True, type=click.Choice(NAMES), metavar="NAME", help="Measure this alone; names may follow."
)
@click.option(
    "--store",
    metavar="URL",
    help="The kind of store, and for SQLite the folder: files of its own are measured there and removed. "
    "By default in the working directory.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
@click.option(
    "--jobs", type=click.IntRange(100), default=Extent().jobs, show_default=True, help="Jobs that a worker drains."
)
@click.option(
    "--seconds",
    type=click.FloatRange(0.05),
    default=Extent().seconds,
    show_default=True,
    help="For how long each rate is taken.",
)
@pass_target
def bench(
    target: Target, names: Sequence[str], only: Sequence[str], store: str | None, as_json: bool, jobs: int, seconds: float
) -> None:
    """Measure this machine: real workers, real syncs, and beside each rate what the store's driver alone would reach.

    \b
    The figures: NAMES

    \b
    Examples:
      ferryman bench
      ferryman bench --only drain latency_p50
      ferryman bench --store sqlite:////data/any.db --json
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
