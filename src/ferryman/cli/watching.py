"""Progress of long work, on standard error: bars for people at a terminal, nothing for others."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

__all__ = ["watching"]


@contextlib.contextmanager
def watching() -> Iterator[Callable[[str, int, int | None], None]]:
    """A function that shows what is being done, how many jobs that concerns by now, and of how many if that is known."""
    if not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bars: dict[str, TaskID] = {}

        def show(what: str, done: int, total: int | None) -> None:
            bar = bars.get(what)
            if bar is None:
                bar = bars[what] = progress.add_task(what)
            progress.update(bar, completed=done, total=total)

        yield show
