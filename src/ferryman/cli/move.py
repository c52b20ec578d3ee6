"""``ferryman move``: all jobs of one store to another."""

from __future__ import annotations

from collections import Counter

import click

from ferryman.cli.output import Cell, Column, json_line, number, say, table, warn
from ferryman.cli.selection import ask
from ferryman.cli.target import Target, pass_target, sqlite_file
from ferryman.cli.watching import watching
from ferryman.errors import ConfigError, StoreUnavailable
from ferryman.job import State
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.values import counted

__all__ = ["move"]


@click.command()
@click.argument("source", metavar="FROM")
@click.argument("goal", metavar="TO")
@click.option("--all", "history", is_flag=True, help="Succeeded, cancelled and expired jobs too.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option(
    "--anew", is_flag=True, help="Give up a move to another store that was begun and has not ended."
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, for programs.")
@pass_target
def move(target: Target, source: str, goal: str, history: bool, yes: bool, anew: bool, as_json: bool) -> None:
    """Move all jobs that may run again, dead letters too, from one store to another; both are URLs.

    The queues of FROM are paused until the end, and what runs there is waited for. Jobs are deleted in FROM when they have
    been seen in TO, which deletes no finished jobs until the end. Producers may go on meanwhile. A move that was killed is
    begun again by the same command, within a day: no job is lost, and none runs twice.

    \b
    Examples:
      ferryman move sqlite:///jobs.db postgresql://localhost/shop
      ferryman move redis://old:6379/0 redis://new:6379/0 --all --yes
    """
    from ferryman.moving.mover import MOVED, Mover

    here, there = _open(source, exists=True), _open(goal, exists=False)
    try:
        lanes = here.runner().run(here.lanes())
        total = sum(lane.counts.get(state, 0) for lane in lanes for state in (*MOVED, State.RUNNING))
        ask(
            f"Move {counted(total)} from {here.url} to {there.url}, pausing all queues of the former until then?",
            yes,
        )
        with watching() as watch:
            mover = Mover(here, there, target.settings.blobs, history=history, watch=watch)
            moved = mover.run(anew=anew)
        _show(moved.jobs, as_json)
        say(
            f"{counted(moved.jobs.total())} moved and verified"
            + (f", and {counted(moved.parents, 'finished parent')} copied" if moved.parents else "")
            + f"; {here.url} has none left that may run",
            err=as_json,
        )
        if moved.lost_payloads:
            warn(
                f"{moved.lost_payloads:,} payloads outside the store were not in their place; their jobs will say so"
            )
    finally:
        here.close()
        there.close()


def _open(url: str, *, exists: bool) -> Store:
    path = sqlite_file(url)
    if exists and path is not None and not path.exists():
        raise StoreUnavailable(f"there is no store at {path}; is this the right directory?")
    store = open_store(url)
    if not store.capabilities.shared:
        raise ConfigError(f"the store {store.url} lives inside one program, so its jobs cannot be moved")
    return store


def _show(jobs: Counter[tuple[str, State]], as_json: bool) -> None:
    """Counts for each queue and state."""
    queues = sorted({queue for queue, _ in jobs})
    if as_json:
        for queue in queues:
            json_line({"queue": queue, **{state.label: jobs[queue, state] for state in State}})
        return
    states = [state for state in State if any(jobs[queue, state] for queue in queues)]
    columns = [
        Column("Queue", folds=True),
        *[Column(state.label.capitalize(), right=True) for state in states],
    ]
    rows: list[list[Cell]] = [[queue, *[number(jobs[queue, state]) for state in states]] for queue in queues]
    table(columns, rows, "there was nothing to move")
