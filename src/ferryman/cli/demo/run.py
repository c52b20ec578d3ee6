"""One run: files become jobs, a worker is watched and wounded, and the jobs are asked how they ended."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from ferryman.app import App
from ferryman.cli.demo.catalogue import QUEUE, Catalogue, catalogue_file, report
from ferryman.cli.demo.display import Display, Standing
from ferryman.cli.demo.process import WorkerProcess, kill
from ferryman.clock import SystemClock
from ferryman.errors import FerrymanError
from ferryman.handle import JobHandle
from ferryman.job import FINISHED, PENDING, Job, State
from ferryman.store.port import Store

__all__ = ["Kill", "Order", "enqueue_files", "jobs_of", "unfinished", "watch"]

_BATCH = 250
_PAGE = 500
_TICK = 0.1
_KILL_AT = 0.4
"""The share of jobs done at which an executor is killed."""
_LOOK_FOR_EXECUTORS = 0.5
_STALLED = 60.0
"""Seconds without a job done after which nobody should wait any longer."""
_MINUTE = 60_000


class Order(NamedTuple):
    """What was enqueued."""

    files: Sequence[str]
    jobs: Sequence[JobHandle[object]]
    """One for each file, in the same order."""
    report: JobHandle[Catalogue]
    tag: str
    """All jobs of this run have it."""


class Kill(NamedTuple):
    """An executor that was killed on purpose."""

    pid: int
    at: int
    """The moment, in ms."""
    second: float
    """Seconds since the demo began to wait."""


def unfinished(store: Store, app: App) -> int:
    """Jobs that an earlier demo has left in this store."""
    lanes = app.perform(_lanes(store))
    return sum(count for lane in lanes for state, count in lane.items() if state in PENDING or state is State.RUNNING)
