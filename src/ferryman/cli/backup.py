"""``ferryman backup`` and ``ferryman restore``: all jobs of a store in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ferryman.cli.output import Column, json_line, number, say, state_cell, table, warn
from ferryman.cli.selection import ask
from ferryman.cli.target import Target, listing, pass_target
from ferryman.cli.watching import watching
from ferryman.errors import ConfigError
from ferryman.job import State
from ferryman.values import counted

__all__ = ["backup", "restore"]


class _File(click.Path):
    """A file with a name: a backup cannot be a stream, for it is read once more when it is written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value in ("", "-"):
            self.fail(f"{value!r} is no name of a file", param, ctx)
        return super().convert(value, param, ctx)


_FILE = _File(dir_okay=False, path_type=Path)


@click.command()
@click.argument("file", type=_FILE)
@click.option("--force", is_flag=True, help="Replace FILE if there is one.")
@listing
@pass_target
def backup(target: Target, file: Path, force: bool) -> None:
    """Write all jobs of a store into one file, with results, history, queue settings and pauses.

    Producers and workers may go on: each job is in the file as it was at one moment, but not all at the same one. The file
    appears under its name when it is whole and has been read once more; what had that name is there until then.

    \b
    Examples:
      ferryman backup jobs.ferry
      ferryman backup /backups/$(date +%F).ferry --url postgresql://localhost/shop
    """
    from ferryman.moving import backup as work

    if file.exists() and not force:
        raise ConfigError(
            f"there is a file {str(file)!r} already; name another, or say --force to replace it"
        )
    store = target.existing
    with watching() as watch:
        saved = work.backup(store, file, target.settings.blobs, watch)
    if target.json:
        json_line({"file": str(file), "jobs": saved.jobs, "bytes": saved.size, **_by_state(saved.counts)})
    else:
        _show(saved.counts)
        say(f"{counted(saved.jobs)} in {file} ({saved.size:,} bytes), verified by reading it")
    if saved.left_outside:
        why = (
            "set blobs.url to have them in it"
            if target.settings.blobs.url is None
            else "they are not in their place any more"
        )
        warn(
            f"payloads of {counted(saved.left_outside)} lie outside the store and are not in the file; {why}"
        )


@click.command()
@click.argument("file", type=_FILE)
@click.option(
    "--merge", is_flag=True, help="Into a store that has jobs: those it knows are left as they are."
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@listing
@pass_target
def restore(target: Target, file: Path, merge: bool, yes: bool) -> None:
    """Store the jobs of a backup, in a store of any kind. Jobs that ran when it was made are ready to run again.

    All of the file is checked before anything is stored. A restore that was killed is begun again with --merge.

    \b
    Examples:
      ferryman restore jobs.ferry --url redis://localhost:6379/0
      ferryman restore jobs.ferry --merge --yes
    """
    from ferryman.moving import backup as work
    from ferryman.moving.chest import ChestReader

    header = ChestReader(file).header
    store = target.store
    ask(
        f"Restore what {header.url} had, {counted(sum(header.counts.values()))}, into {store.url}? "
        "Its workers begin with that at once.",
        yes,
    )
    with watching() as watch:
        restored = work.restore(store, file, target.settings, watch, merge=merge)
    if target.json:
        json_line({"jobs": restored.jobs, "new": restored.new, **_by_state(restored.counts)})
    else:
        _show(restored.counts)
        say(f"new of {counted(restored.jobs)}: {restored.new:,}; {store.url} has all of them now")


def _by_state(counts: Mapping[str, int]) -> dict[str, int]:
    return {state.label: counts.get(state.label, 0) for state in State}


def _show(counts: Mapping[str, int]) -> None:
    found = [state for state in State if counts.get(state.label)]
    columns = (Column("State"), Column("Jobs", right=True))
    table(columns, [(state_cell(state), number(counts[state.label])) for state in found], "no jobs")
