"""What Ferryman takes when it does nothing: time to import it, memory, and the processor while idle."""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ferryman import Ferryman, State
from ferryman.cli.bench.draining import fill
from ferryman.cli.bench.figures import Extent, Figure, make_figure
from ferryman.cli.bench.ground import Ground, fresh_app
from ferryman.cli.bench.running import Running, count, run_worker, wait_for

__all__ = ["measure_idle", "measure_import", "measure_memory"]

_IMPORT = """
import time
begun = time.perf_counter()
import ferryman
print((time.perf_counter() - begun) * 1000)
"""
_IMPORTS = 10
_SOME_JOBS = 1_000


def measure_import(ground: Ground, extent: Extent) -> Iterator[Figure]:  # noqa: ARG001
    """``import ferryman`` in a fresh interpreter, by the clock: the median of ten."""
    times = [
        float(subprocess.run([sys.executable, "-c", _IMPORT], stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603
        for _ in range(_IMPORTS + 1)
    ]
    # The first one may have had to compile, or to read from the disk.
    yield make_figure("import_time", ground.url, statistics.median(times[1:]))


def measure_idle(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """The processor time of an idle worker, its executors included, in per cent of one core."""
    with fresh_app(ground) as app, run_worker(app) as running:
        pids = _after_some_jobs(app, running, extent)
        before, begun = _ticks(pids), time.perf_counter()
        time.sleep(2 * extent.seconds)
        used = (_ticks(pids) - before) / os.sysconf("SC_CLK_TCK")
        running.check()
        yield make_figure("idle_cpu", ground.url, used / (time.perf_counter() - begun) * 100)


def measure_memory(ground: Ground, extent: Extent) -> Iterator[Figure]:
    """Resident memory of the supervisor and of its largest executor, once they have run some jobs."""
    with fresh_app(ground) as app, run_worker(app) as running:
        supervisor, *executors = _after_some_jobs(app, running, extent)
        yield make_figure("rss_supervisor", ground.url, _resident(supervisor))
        yield make_figure("rss_executor", ground.url, max(map(_resident, executors)))


def _after_some_jobs(app: Ferryman, running: Running, extent: Extent) -> list[int]:
    """The supervisor's process id and those of its executors, once all of them are up and have become quiet."""
    assert running.pid is not None
    supervisor = running.pid
    (record,) = app.store.runner().run(app.store.workers())
    executors = min(len(os.sched_getaffinity(0)), record.info.concurrency)
    wait_for(lambda: len(_children(supervisor)) == executors, running, nap=0.02)
    jobs = min(_SOME_JOBS, extent.jobs)
    fill(app, jobs)
    wait_for(lambda: count(app, State.SUCCEEDED) == jobs, running, nap=0.02)
    time.sleep(min(1.0, extent.seconds))
    return [supervisor, *_children(supervisor)]


def _children(pid: int) -> list[int]:
    """Of the main thread, which starts all executors."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _ticks(pids: list[int]) -> int:
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(fields[11]) + int(fields[12])
    return total


def _resident(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0
