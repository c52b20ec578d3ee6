"""``ferryman demo``: the command, from an empty folder to a folder that is gone again."""

from __future__ import annotations

import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import click

from ferryman.cli.output import json_line, say, warn
from ferryman.cli.target import Target, listing, pass_target, sqlite_file
from ferryman.errors import ConfigError

if TYPE_CHECKING:
    from ferryman.cli.demo.account import Account
    from ferryman.cli.demo.display import Display
    from ferryman.cli.demo.process import WorkerProcess
    from ferryman.cli.demo.run import Gauge, Jobs, Kill
    from ferryman.cli.demo.sources import Sources

__all__ = ["demo"]


@click.command()
@click.option(
    "--files",
    type=click.IntRange(1),
    metavar="N",
    help="No more than so many files, not counting damaged copies.",
)
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Catalogue the Python files below this folder, not the standard library.",
)
@click.option("--no-kill", is_flag=True, help="Let the worker work in peace.")
@click.option("--keep", is_flag=True, help="Keep the temporary folder, with the store and the worker's log.")
@listing
@pass_target
def demo(target: Target, files: int | None, folder: Path | None, no_kill: bool, keep: bool) -> None:
    """Watch real work go through a queue, with a crash on the way.

    Each source file of Python's standard library becomes a job that reads, hashes, parses and tokenises it; one
    more job waits for them all and makes a report. A real worker runs them. In the middle one of its
    executors is killed. Some of the files are broken on purpose, for Python's own tests: they fail, are retried
    or given up, and end as dead letters. At the end each file must have been counted exactly once.

    Files are only read. The store is a SQLite file in a temporary folder, unless --url names one. The exit code is
    1 if the count is wrong.

    \b
    Examples:
      ferryman demo
      ferryman demo --files 500 --no-kill
      ferryman demo --url sqlite:///demo.db      and then: ferryman --url sqlite:///demo.db dead list
    """
    with _ended_by_signals(), _workshop(target, keep) as workshop:
        account = _run(target, workshop, limit=files, root=folder, wound=not no_kill)
        if not account.is_right:
            workshop.keep = True
    if not account.is_right:
        click.get_current_context().exit(1)


class _Workshop:
    """The temporary folder."""

    def __init__(self, path: Path, keep: bool) -> None:
        self.path = path
        self.keep = keep


@contextlib.contextmanager
def _workshop(target: Target, keep: bool) -> Iterator[_Workshop]:
    workshop = _Workshop(Path(tempfile.mkdtemp(prefix="ferryman-demo-")), keep)
    try:
        yield workshop
    finally:
        target.close()
        if not workshop.keep:
            shutil.rmtree(workshop.path, ignore_errors=True)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Make a closed terminal and a plain ``kill`` leave nothing behind, as ^C does."""

    def end(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(
    target: Target, workshop: _Workshop, *, limit: int | None, root: Path | None, wound: bool
) -> Account:
    from ferryman.cli.demo.account import draw_up
    from ferryman.cli.demo.process import WorkerProcess
    from ferryman.cli.demo.report import as_fields, show_account, show_next
    from ferryman.cli.demo.run import Gauge
    from ferryman.cli.demo.sources import find_sources, standard_library

    named = target.url
    target.url = url = _absolute(named) if named else f"sqlite:///{quote(str(workshop.path / 'demo.db'))}"
    target.app_name = "ferryman.cli.demo.catalogue:app"
    assert target.store  # One that the worker can see as well.
    app = target.app
    gauge = Gauge(app)
    if gauge.left_behind:
        raise ConfigError(
            f"an earlier demo has left {gauge.left_behind} jobs in {app.store.url}; "
            f"delete them first: {_purge(url)}"
        )
    sources = find_sources(root or standard_library(), limit, workshop.path)
    began = time.monotonic()
    try:
        with _display(target.json) as display:
            _introduce(display, sources, is_library=root is None)
            jobs, killed = _cross(gauge, sources, WorkerProcess(url, workshop.path), display, wound=wound)
    except BaseException:
        if named:
            warn(f"what is left to do stays in the store; to delete it: {_purge(url)}")
        raise
    seconds = time.monotonic() - began
    account = draw_up(app, jobs, killed)
    kept = workshop.path if workshop.keep or not account.is_right else None
    if target.json:
        places = {"url": url if named or kept else None, "kept": None if kept is None else str(kept)}
        json_line(as_fields(account, sources, seconds, places))
    else:
        show_account(account, sources, seconds)
        show_next(account, url if named or kept else "", kept)
    return account


def _cross(
    gauge: Gauge, sources: Sources, worker: WorkerProcess, display: Display, *, wound: bool
) -> tuple[Jobs, Kill | None]:
    """Enqueue the files, and see them through."""
    from ferryman.cli.demo.run import enqueue_files, watch

    began = time.monotonic()
    try:
        jobs = enqueue_files([str(path) for path in sources.files])
        display.tell(
            f"  enqueued {len(jobs.files):,} jobs and a report that waits for them, in "
            f"{time.monotonic() - began:.2f} s; started a worker, process {worker.pid}"
        )
        return jobs, watch(gauge, jobs, worker, display, wound=wound)
    finally:
        worker.stop()


def _display(quiet: bool) -> Display:
    from ferryman.cli.demo.display import LiveDisplay, PlainDisplay

    if quiet:
        return PlainDisplay(lambda _: None)
    return LiveDisplay() if sys.stdout.isatty() else PlainDisplay(say)


def _introduce(display: Display, sources: Sources, *, is_library: bool) -> None:
    python = "the standard library of Python " + ".".join(map(str, sys.version_info[:3]))
    what = python if is_library else "Python files"
    count = len(sources.files) - len(sources.damaged)
    of = "all" if count == sources.found else f"{count:,} of"
    display.tell(f"Cataloguing {what}: {of} {sources.found:,} files")
    display.tell(f"  below {sources.root}")
    if sources.damaged:
        display.tell(
            f"  none of them is broken, so {len(sources.damaged)} damaged copies are added to see some fail"
        )


def _purge(url: str) -> str:
    return f"ferryman --url {shlex.quote(url)} purge demo"


def _absolute(url: str) -> str:
    """A URL that means the same in another directory."""
    path = sqlite_file(url)
    return url if path is None else f"sqlite:///{quote(str(path.absolute()))}"
