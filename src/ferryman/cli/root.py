"""The root command: what is common to all commands, and where each of them is found."""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import signal
import sys
import traceback
from typing import Any, NamedTuple

import click

from ferryman.cli.target import NotThereError, Target
from ferryman.errors import (
    ConfigError,
    FerrymanError,
    InvalidJob,
    JobNotFound,
    StoreError,
    WorkerGone,
)

__all__ = ["EXIT_CODES", "exit_code", "root", "run"]

EXIT_CODES = """\b
Exit codes:
  0  fine
  1  the answer is no: a job died, a wait timed out, doctor found a problem
  2  the command was used wrongly, or a setting makes no sense
  3  the store cannot be used
  4  there is no such job, worker or queue"""

_EXAMPLES = """\b
Examples:
  ferryman worker app:app                 run the jobs of app.py
  ferryman enqueue app.add a=1 b=2        make one by hand
  ferryman queues                         see what waits, runs and died
  ferryman why 0192f3c4a1b2               why is this job not running?
  ferryman dead replay --task app.add     let dead letters run again
  ferryman doctor                         check the set-up"""


class _Entry(NamedTuple):
    """Where a command is found, and its line in the list of commands."""

    section: str
    module: str
    help: str


_COMMANDS = {
    "worker": _Entry("Run", "worker", "Run the jobs of an app."),
    "enqueue": _Entry("Run", "enqueue", "Store a job."),
    "demo": _Entry("Run", "demo.command", "Watch real work go through a queue, with a crash on the way."),
    "bench": _Entry("Run", "bench.command", "Measure this machine, beside the floors of its store."),
    "queues": _Entry("Look", "queues", "Show the queues and how many jobs they hold."),
    "stats": _Entry("Look", "stats", "Show what was done lately, and how long jobs waited and ran."),
    "jobs": _Entry("Look", "jobs", "List, show, cancel, retry, delete and wait for jobs."),
    "dead": _Entry("Look", "dead", "List, show, replay, edit and purge dead letters."),
    "workers": _Entry("Look", "workers", "Show the workers, and pause, drain or stop them."),
    "why": _Entry("Look", "why", "Say in a sentence why a job is not running."),
    "doctor": _Entry("Look", "doctor", "Check the set-up and say what to change."),
    "pause": _Entry("Steer", "queues", "Stop workers from taking jobs of a queue."),
    "resume": _Entry("Steer", "queues", "Let workers take jobs of a paused queue again."),
    "purge": _Entry("Steer", "queues", "Delete the jobs of a queue that are yet to run."),
    "move": _Entry("Set up", "move", "Move all jobs of one store to another."),
    "backup": _Entry("Set up", "backup", "Write all jobs of a store into one file."),
    "restore": _Entry("Set up", "backup", "Store the jobs of a backup."),
    "migrate": _Entry("Set up", "migrate", "Bring a store's tables to this version."),
    "completion": _Entry("Set up", "completion", "Print the completion script of a shell."),
}


class _Root(click.Group):
    """Imports a command's module when it is used, and ends Ferryman's errors as one line."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for arg in args:
            if any("\ud800" <= letter <= "\udfff" for letter in arg):
                # So Python hands on bytes that are no text; no store could keep them.
                raise click.UsageError(f"{arg!r} is no text in the encoding of this terminal")
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = _COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command = getattr(importlib.import_module(f"ferryman.cli.{entry.module}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in _COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, _COMMANDS, n=1)
            advice = f"did you mean {near[0]!r}?" if near else "see: ferryman --help"
            ctx.fail(f"there is no command {name!r}; {advice}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        for section in dict.fromkeys(entry.section for entry in _COMMANDS.values()):
            rows = [(name, entry.help) for name, entry in _COMMANDS.items() if entry.section == section]
            with formatter.section(section):
                formatter.write_dl(rows, col_max=12)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FerrymanError as error:
            if ctx.ensure_object(Target).debug:
                traceback.print_exc()
            click.echo(f"ferryman: {error}", err=True)
            ctx.exit(exit_code(error))
        except OSError as error:
            if error.errno == errno.EPIPE:
                # As programs end that do not look out for it: scripts know how to take that.
                ctx.exit(128 + signal.SIGPIPE)
            if ctx.ensure_object(Target).debug:
                traceback.print_exc()
            click.echo(f"ferryman: {error}", err=True)
            ctx.exit(1)
        except (KeyboardInterrupt, click.Abort):
            # The shell has shown ^C already; all it lacks is the end of that line.
            click.echo(err=True)
            ctx.exit(130)
        finally:
            ctx.ensure_object(Target).close()


def exit_code(error: FerrymanError) -> int:
    """How the program ends that could not handle this error."""
    match error:
        case StoreError():
            return 3
        case JobNotFound() | WorkerGone() | NotThereError():
            return 4
        case ConfigError() | InvalidJob():
            return 2
        case _:
            return 1


@click.group(
    cls=_Root,
    epilog=f"{_EXAMPLES}\n\n{EXIT_CODES}",
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "--url",
    metavar="URL",
    help="The store: sqlite:///jobs.db (relative), sqlite:////var/lib/jobs.db, redis://host:6379/0, "
    "postgresql://user@host/database. Else FERRYMAN_URL, else "
    "ferryman.toml, else sqlite:///ferryman.db.",
)
@click.option(
    "--debug",
    is_flag=True,
    envvar="FERRYMAN_DEBUG",
    help="Show the traceback of an error (also FERRYMAN_DEBUG=1).",
)
@click.version_option(package_name="ferryman", message="ferryman %(version)s")
@click.pass_context
def root(ctx: click.Context, url: str | None, debug: bool) -> None:
    """Background jobs that are never lost.

    Look at a store, steer what is in it, and run workers. Every listing takes --json: one object a line.
    """
    target = ctx.ensure_object(Target)
    target.url = url
    target.debug = debug
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def run() -> None:
    """The root command on this process's arguments; quiet about a reader that went away."""
    _mend_streams()
    try:
        root.main(prog_name="ferryman")
    finally:
        try:
            sys.stdout.flush()
        except OSError:
            # The write that failed first has been reported. What is left in the buffer must not be tried again when
            # the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _mend_streams() -> None:
    """Have all three, whatever the caller closed, and an output that takes letters its encoding lacks."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - open for as long as the process is
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
