"""What is seen while the jobs run: a bar and a line at a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol, Self

from ferryman.errors import MissingExtra

if TYPE_CHECKING:
    from rich.console import Group

__all__ = ["Display", "LiveDisplay", "PlainDisplay", "Standing"]

_EVERY = 2.0
"""Seconds between the lines of a plain display."""


class Standing(NamedTuple):
    """How far the jobs are."""

    total: int
    succeeded: int = 0
    dead: int = 0
    running: int = 0
    retrying: int = 0
    """Failed, and waiting for their next attempt."""
    failed: int = 0
    """Attempts that failed or crashed."""

    @property
    def done(self) -> int:
        return self.succeeded + self.dead


class Display(Protocol):
    """To be used in a ``with`` statement."""

    def show(self, standing: Standing, executors: Sequence[int]) -> None:
        """The present state; call this some times a second."""
        ...

    def tell(self, text: str, style: str = "") -> None:
        """Something happened."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class _Pace:
    """Jobs a second, over the last second."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def of(self, done: int) -> float:
        now = time.monotonic()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[0][0] < now - 1.0:
            self._seen.popleft()
        since, before = self._seen[0]
        return (done - before) / (now - since) if now > since else 0.0


class PlainDisplay:
    """Lines for pipes and logs."""

    def __init__(self, emit: Callable[[str], None]) -> None:
        self._emit = emit
        self._pace = _Pace()
        self._next = time.monotonic() + _EVERY

    def show(self, standing: Standing, executors: Sequence[int]) -> None:
        pace = self._pace.of(standing.done)
        if time.monotonic() < self._next:
            return
        self._next += _EVERY
        self._emit(
            f"  {standing.done:,} of {standing.total:,} done, {pace:,.0f} jobs/s, {_line(standing, executors)}"
        )

    def tell(self, text: str, style: str = "") -> None:  # noqa: ARG002
        self._emit(text)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LiveDisplay:
    """A bar and a line, drawn anew in place."""

    def __init__(self) -> None:
        try:
            from rich.console import Console
            from rich.live import Live
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
        except ModuleNotFoundError as error:
            raise MissingExtra('the demo needs the package rich: pip install "ferryman[cli]"') from error
        self._console = Console(highlight=False)
        self._bar = Progress(
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:>3.0f}%"),
            MofNCompleteColumn(),
            TextColumn("[bold]{task.fields[pace]:>5,.0f}[/] jobs/s"),
            TimeElapsedColumn(),
            console=self._console,
            expand=True,
        )
        self._task = self._bar.add_task("", total=None, pace=0.0)
        self._pace = _Pace()
        self._live = Live(console=self._console, refresh_per_second=10, transient=True)

    def show(self, standing: Standing, executors: Sequence[int]) -> None:
        self._bar.update(
            self._task, total=standing.total, completed=standing.done, pace=self._pace.of(standing.done)
        )
        self._live.update(self._drawn(standing, executors))

    def tell(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False, soft_wrap=True)

    def _drawn(self, standing: Standing, executors: Sequence[int]) -> Group:
        from rich.console import Group
        from rich.text import Text

        return Group(self._bar, Text(_line(standing, executors), style="bright_black"))

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def _line(standing: Standing, executors: Sequence[int]) -> str:
    pids = " ".join(map(str, executors)) or "starting"
    return (
        f"{standing.running} running, {standing.failed} failed attempts, {standing.retrying} to be retried, "
        f"{standing.dead} dead; executors {pids}"
    )
