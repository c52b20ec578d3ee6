"""One run: files become jobs, and their worker is watched, and wounded."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple
from uuid import uuid4

from ferryman.app import App
from ferryman.cli.demo.catalogue import QUEUE, Catalogue, FileFacts, catalogue_file, report
from ferryman.cli.demo.display import Display, Standing
from ferryman.cli.demo.process import WorkerProcess, kill
from ferryman.clock import SystemClock
from ferryman.errors import FerrymanError
from ferryman.handle import JobHandle
from ferryman.job import FINISHED, State

__all__ = ["Gauge", "Jobs", "Kill", "enqueue_files", "watch"]

_BATCH = 250
_TICK = 0.1
_KILL_AT = 0.4
"""The share of jobs done at which an executor is killed."""
_LOOK_FOR_EXECUTORS = 0.5
_STALLED = 60.0
"""Seconds without any change after which nobody should wait any longer."""
_MINUTE = 60_000


class Jobs(NamedTuple):
    """What was enqueued."""

    files: Sequence[str]
    handles: Sequence[JobHandle[FileFacts]]
    """One for each file, in the same order."""
    report: JobHandle[Catalogue]
    tag: str
    """All jobs of this run have it."""


class Kill(NamedTuple):
    """An executor that was killed."""

    pid: int
    at: int
    """The moment, in ms since the epoch."""
    second: float
    """Since the first look."""


def enqueue_files(files: Sequence[str]) -> Jobs:
    """A job for each file, and the report that waits for all of them."""
    tag = f"demo-{uuid4().hex[:8]}"
    task = catalogue_file.options(tags=(tag,))
    handles: list[JobHandle[FileFacts]] = []
    for start in range(0, len(files), _BATCH):
        handles += task.enqueue_many([(file,) for file in files[start : start + _BATCH]])
    return Jobs(files, handles, report.options(tags=(tag,), after=handles).enqueue(), tag)


class Gauge:
    """How far the files are, by the store's own counts. Make one before anything is enqueued."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._minute = SystemClock().now() // _MINUTE * _MINUTE
        self._counts, self._failed = self._counted(), self._failures()

    @property
    def left_behind(self) -> int:
        """Unfinished jobs of an earlier demo in the same store."""
        return sum(count for state, count in self._counts.items() if state not in FINISHED)

    def read(self, total: int) -> Standing:
        """The present state of `total` files."""
        counts = self._counted()
        return Standing(
            total,
            succeeded=counts[State.SUCCEEDED] - self._counts[State.SUCCEEDED],
            dead=counts[State.DEAD] - self._counts[State.DEAD],
            running=counts[State.RUNNING],
            retrying=counts[State.SCHEDULED],
            failed=self._failures() - self._failed,
        )

    def _counted(self) -> dict[State, int]:
        lanes = self._app.store.runner().run(self._app.store.lanes())
        # The report has a lane of its own, since it has another priority.
        return dict.fromkeys(State, 0) | next(
            (dict(lane.counts) for lane in lanes if (lane.queue, lane.priority) == (QUEUE, 0)), {}
        )

    def _failures(self) -> int:
        until = SystemClock().now() + _MINUTE
        stats = self._app.store.runner().run(self._app.store.stats(self._minute, until))
        return sum(minute.failed for minute in stats if minute.queue == QUEUE)


def watch(gauge: Gauge, jobs: Jobs, worker: WorkerProcess, display: Display, *, wound: bool) -> Kill | None:
    """Wait for the report, and kill an executor on the way if told to `wound` the worker.

    Raises FerrymanError if the worker ends, or nothing happens any more.
    """
    began = moved = time.monotonic()
    look_at = 0.0
    executors: list[int] = []
    killed: Kill | None = None
    last: Standing | None = None
    while jobs.report.status() not in FINISHED:
        worker.check()
        now = time.monotonic()
        if now >= look_at:
            executors, look_at = worker.executors(), now + _LOOK_FOR_EXECUTORS
        standing = gauge.read(len(jobs.files))
        if standing != last:
            last, moved = standing, now
        elif now - moved > _STALLED:
            raise FerrymanError(f"nothing has happened for {_STALLED:g} s; is the queue {QUEUE!r} paused?")
        if wound and not killed and executors and _is_midway(standing) and kill(executors[0]):
            killed, look_at = Kill(executors[0], SystemClock().now(), now - began), now
            display.tell(
                f"  killed executor {killed.pid} with SIGKILL after {killed.second:.1f} s, "
                f"with {standing.done:,} files done and {standing.running} running",
                "bold red",
            )
        display.show(standing, executors)
        time.sleep(_TICK)
    return killed


def _is_midway(standing: Standing) -> bool:
    return standing.done >= _KILL_AT * standing.total and standing.running > 0
