"""The account of a run as people and programs read it."""

from __future__ import annotations

import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ferryman.cli.demo.account import Account, Aftermath
from ferryman.cli.demo.catalogue import FileFacts
from ferryman.cli.demo.sources import Sources
from ferryman.cli.output import Cell, Column, number, say, table

__all__ = ["as_fields", "show_account", "show_next"]

_NAMED = 2
"""Files that are named for each cause, or each fault."""


def show_account(account: Account, sources: Sources, seconds: float) -> None:
    """The tables, and the sum."""
    _show_totals(account, seconds)
    _show_files("The largest files", account.catalogue.largest, sources)
    _show_files("The slowest files", account.catalogue.slowest, sources)
    _show_dead(account, sources)
    _show_sum(account, sources)


def _show_totals(account: Account, seconds: float) -> None:
    found = account.catalogue
    counts = {
        "Files": len(found.paths), "Lines": found.lines, "Tokens": found.tokens,
        "Functions": found.functions, "Classes": found.classes,
    }  # fmt: skip
    _title("The report")
    table(
        [
            *(Column(name, right=True) for name in counts),
            Column("MB", right=True),
            Column("CPU s", right=True),
        ],
        [[*map(number, counts.values()), f"{found.bytes / 1e6:.1f}", f"{found.seconds:.1f}"]],
        "",
    )
    say(f"{account.files / seconds:,.0f} files a second, {seconds:.1f} s altogether")


def _show_files(title: str, files: Sequence[FileFacts], sources: Sources) -> None:
    _title(title)
    columns = (
        Column("kB", right=True),
        Column("Lines", right=True),
        Column("Functions", right=True),
        Column("CPU ms", right=True),
        Column("SHA-256"),
        Column("File", folds=True),
    )
    rows: list[tuple[Cell, ...]] = [
        (
            f"{file.bytes / 1e3:,.0f}",
            number(file.lines),
            number(file.functions),
            f"{file.seconds * 1e3:,.0f}",
            (file.sha256[:12], "bright_black"),
            sources.short(file.path),
        )
        for file in files
    ]
    table(columns, rows, "none")


def _show_dead(account: Account, sources: Sources) -> None:
    _title("Dead letters, by cause")
    columns = (
        Column("Count", right=True),
        Column("Tries", right=True),
        Column("Cause", folds=True),
        Column("Files", folds=True),
    )
    rows: list[tuple[Cell, ...]] = []
    for group in account.causes:
        letters = [letter for letter in account.dead if letter.cause == group.cause]
        tries = sorted({letter.attempts for letter in letters})
        rows.append(
            (
                number(group.count),
                " or ".join(map(str, tries)),
                (group.cause, "red"),
                _some([letter.path for letter in letters], sources),
            )
        )
    table(columns, rows, "no dead letters")
    if sources.damaged:
        say(f"No broken file was found, so {len(sources.damaged)} damaged copies were added to the others.")


def _show_sum(account: Account, sources: Sources) -> None:
    """The sum that has to come out, and what does not fit."""
    _title("Was every file counted exactly once?")
    if account.aftermath:
        _show_aftermath(account.aftermath, sources)
    again = account.attempts - account.files
    say(
        f"{account.files:,} files were enqueued; {account.attempts:,} attempts were made, {again:,} of them a repeat"
    )
    say(
        f"{len(account.catalogue.paths):,} in the report + {len(account.dead):,} dead letters "
        f"= {len(account.catalogue.paths) + len(account.dead):,}"
    )
    for paths, fault in (
        (account.missing, "missing"),
        (account.repeated, "counted more than once"),
        (account.unjust, "dead, although nothing is wrong with them"),
    ):
        if paths:
            say(f"{len(paths):,} files are {fault}: {_some(paths, sources)}", "red")
    if account.is_right:
        say("Yes: none is missing, none is there twice, and only broken files died.", "green")
    else:
        say("No.", "red")


def _show_aftermath(aftermath: Aftermath, sources: Sources) -> None:
    text = f"Executor {aftermath.pid} was killed after {aftermath.second:.1f} s"
    if not aftermath.again:
        say(f"{text}, between two files: nothing had to be run again")
    else:
        count = len(aftermath.again)
        files = f"{count} file{'' if count == 1 else 's'}"
        say(
            f"{text}, in the middle of {files}; {'it' if count == 1 else 'they'} ran again within "
            f"{aftermath.started_ms} ms:"
        )
        say(f"  {_some(aftermath.again, sources)}")


def _some(paths: Sequence[str], sources: Sources) -> str:
    names = ", ".join(map(sources.short, paths[:_NAMED]))
    return names if len(paths) <= _NAMED else f"{names} and {len(paths) - _NAMED} more"


def _title(text: str) -> None:
    say("")
    say(text, "cyan")


# -- what next ---------------------------------------------------------------------------------------------


def show_next(account: Account, url: str, kept: Path | None) -> None:
    """The commands that a person would type now; if everything is gone, those for the next time.

    `kept` is the folder that stays, of those that the demo made.
    """
    program = _program()
    _title("What next")
    if kept is None and not url:
        url = "sqlite:///demo.db"
        say("All this was in a temporary folder that is gone now. To look around, keep it in a file:")
        say(f"  {program} demo --url {url}")
        id_ = "ID"
    else:
        id_ = account.dead[0].id if account.dead else "ID"
    ferryman = f"{program} --url {shlex.quote(url)}"
    for command in ("dead list", f"jobs show {id_}", "jobs list --state succeeded --limit 5", "workers"):
        say(f"  {ferryman} {command}")
    if kept is not None:
        say(f"Kept: {kept}; remove it with: rm -r {shlex.quote(str(kept))}")


def _program() -> str:
    """How this program was called, if that is a way to call it again."""
    called = Path(sys.argv[0])
    if called.name != "ferryman" or shutil.which("ferryman") == str(called.absolute()):
        return "ferryman"
    return shlex.quote(sys.argv[0])


# -- for programs ------------------------------------------------------------------------------------------


def as_fields(account: Account, sources: Sources, seconds: float, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, in one object."""
    found = account.catalogue
    return {
        "ok": account.is_right,
        "folder": str(sources.root),
        "files": account.files,
        "files_found": sources.found,
        "damaged_copies": [str(path) for path in sources.damaged],
        "counted": len(found.paths),
        "dead": len(account.dead),
        "missing": account.missing,
        "repeated": account.repeated,
        "unjust": account.unjust,
        "attempts": account.attempts,
        "bytes": found.bytes,
        "lines": found.lines,
        "tokens": found.tokens,
        "functions": found.functions,
        "classes": found.classes,
        "cpu_seconds": found.seconds,
        "largest": msgspec.to_builtins(found.largest),
        "slowest": msgspec.to_builtins(found.slowest),
        "dead_letters": msgspec.to_builtins(account.dead),
        "causes": [{"cause": group.cause, "count": group.count} for group in account.causes],
        "kill": msgspec.to_builtins(account.aftermath),
        "seconds": seconds,
        **kept,
    }
