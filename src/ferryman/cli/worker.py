"""``ferryman worker``: starts a worker. It imports neither the user's code nor anything that draws: the
supervisor that it becomes stays small."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ferryman.cli.params import duration
from ferryman.cli.target import Target, pass_target

__all__ = ["worker"]


@click.command()
@click.argument("app", metavar="MODULE:ATTR")
@click.option("--queues", metavar="A,B", help="The queues it serves, separated by commas; all if not given.")
@click.option("--concurrency", type=click.IntRange(1), help="Jobs that run at the same time.")
@click.option("--executors", type=click.IntRange(0), help="Processes that run them; 0 for one for each core.")
@click.option(
    "--max-memory", type=click.IntRange(0), metavar="MIB", help="Replace an executor that takes more."
)
@click.option(
    "--recycle-after", type=click.IntRange(0), metavar="N", help="Replace an executor after N jobs."
)
@click.option("--lease", type=duration, help="After so long without a heartbeat, others take over its jobs.")
@click.option("--heartbeat", type=duration, help="How often it says that it is alive.")
@click.option(
    "--shutdown-timeout", type=duration, help="How long running jobs may go on once it is told to stop."
)
@click.option(
    "--reload",
    is_flag=True,
    help="Start anew when a source file changes; for development. Needs ferryman[reload].",
)
@click.option(
    "--log-level",
    type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
    default="INFO",
    show_default=True,
)
@click.option("--url", metavar="URL", help="The store, whatever the app's code says.")
@pass_target
def worker(
    target: Target,
    /,
    app: str,
    queues: str | None,
    reload: bool,
    log_level: str,
    url: str | None,
    **overrides: Any,
) -> None:
    """Run the jobs of an app: MODULE:ATTR names the variable that holds it.

    It stops on ^C or SIGTERM: running jobs are finished, for as long as the shutdown timeout allows, and the rest
    goes back to its place. What is not said here comes from the app, the environment and ferryman.toml.

    \b
    Examples:
      ferryman worker app:app
      ferryman worker app:app --queues email,default --concurrency 32
      ferryman worker app:app --reload --log-level debug
    """
    from ferryman.worker.main import WorkerStart, run_worker

    names = None if queues is None else tuple(name.strip() for name in queues.split(",") if name.strip())
    if names == ():
        raise click.UsageError("--queues names no queue; leave it out to serve all")
    start = WorkerStart(
        target=app,
        url=target.url if url is None else url,
        queues=names,
        overrides={name: value for name, value in overrides.items() if value is not None},
        reload=reload,
        log_level=log_level.upper(),
    )
    code = run_worker(start)
    _let_go_of_the_log()
    click.get_current_context().exit(code)


def _let_go_of_the_log() -> None:
    """Whoever read it may have gone, as behind ``| head``: else the interpreter, which cannot say the last words, would
    make a failure of a clean end."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
