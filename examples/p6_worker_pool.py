"""A pool of two worker processes. One is killed with SIGKILL; the other takes over its jobs and finishes them.

    $ python examples/p6_worker_pool.py
    80 images to resize, and two workers
    ╔════════════════════════════════════════════════════════════════╗
    ║                       Worker Pool Status                       ║
    ╠════════════════════════════════════════════════════════════════╣
    ║ Queue: images                                                  ║
    ║ Pending: 48 | Active: 8 | Completed: 24 | Failed: 0            ║
    ╠═════════════╦══════════╦══════════╦══════════════╦═════════════╣
    ║ Worker      ║ Load     ║ Status   ║ Last Seen    ║ Jobs Done   ║
    ╠═════════════╬══════════╬══════════╬══════════════╬═════════════╣
    ║ 3f9a1c      ║ 4/4      ║ active   ║ 0.1s ago     ║ 12          ║
    ║ 77d02e      ║ 4/4      ║ active   ║ 0.0s ago     ║ 11          ║
    ╚═════════════╩══════════╩══════════╩══════════════╩═════════════╝
    kill -9 3f9a1c, with 4 jobs in hand
    Recovered 4 jobs from dead worker 3f9a1c after 0.4s
    … the table again: 3f9a1c is DEAD, 77d02e has done the rest …
    80 of 80 images resized; 4 of them were begun twice

Only the life of the workers is short here: in production they run on, ``ferryman worker p6_worker_pool:app``,
and ``ferryman workers`` shows such a table.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ferryman import Context, Ferryman, State
from ferryman.store.records import Filter, WorkerRecord

# The workers import this file as well, and are told which folder it is.
FOLDER = Path(os.environ.get("POOL_FOLDER") or tempfile.mkdtemp(prefix="ferryman-example-"))
app = Ferryman(f"sqlite:///{FOLDER / 'jobs.db'}")


@app.task(queue="images")
def resize(ctx: Context, name: str) -> str:
    time.sleep(0.1)
    return f"{name}, at attempt {ctx.attempt}"


def main() -> None:
    images = resize.enqueue_many([(f"image-{number:03}.png",) for number in range(1, 81)])
    print(f"{len(images)} images to resize, and two workers")
    first, second = start_worker(), start_worker()
    try:
        wait_until(lambda: len(workers()) == 2 and all(worker.status.done for worker in workers()))
        show_pool()
        kill(first)
        wait_until(lambda: counts()[State.SUCCEEDED] == len(images))
        # Workers say with each heartbeat what they are at.
        wait_until(lambda: not any(worker.status.running for worker in workers() if worker.gone is None))
        show_pool()
    finally:
        for process in (first, second):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
                process.wait()
    results = [image.result(timeout=0) for image in images]
    again = sum(result.endswith("attempt 2") for result in results)
    print(f"{len(results)} of {len(images)} images resized; {again} of them were begun twice")
    app.close()
    shutil.rmtree(FOLDER)


# -- workers ---------------------------------------------------------------------------------------


def start_worker() -> subprocess.Popen[bytes]:
    """What ``ferryman worker`` in another terminal would do."""
    return subprocess.Popen(
        [
            Path(sys.executable).with_name("ferryman"), "worker", f"{__file__}:app", "--concurrency", "4",
            "--heartbeat", "0.2", "--lease", "10", "--log-level", "ERROR",
        ],
        env={**os.environ, "POOL_FOLDER": str(FOLDER)},
        start_new_session=True,
    )  # fmt: skip


def kill(process: subprocess.Popen[bytes]) -> None:
    """The supervisor and its executors at once, and see what becomes of their jobs."""
    victim = next(worker for worker in workers() if worker.info.pid == process.pid)
    os.killpg(process.pid, signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    running = app.store.runner().run(app.store.find(Filter(states=(State.RUNNING,)), 1_000))
    orphans = [job.id for job in running if job.worker == victim.info.id]
    print(f"kill -9 {short(victim)}, with {len(orphans)} jobs in hand")
    wait_until(lambda: any(worker.gone == "dead" for worker in workers()))
    print(
        f"Recovered {len(orphans)} jobs from dead worker {short(victim)} after {time.monotonic() - killed:.1f}s"
    )


def workers() -> list[WorkerRecord]:
    return app.store.runner().run(app.store.workers())


def short(worker: WorkerRecord) -> str:
    return worker.info.id.rpartition("-")[2]


# -- looking ---------------------------------------------------------------------------------------


def counts() -> dict[State, int]:
    total = dict.fromkeys(State, 0)
    for lane in app.store.runner().run(app.store.lanes()):
        for state, count in lane.counts.items():
            total[state] += count
    return total


def show_pool() -> None:
    """All of it is in the store, so anybody who can read that can draw this."""
    widths = (13, 10, 10, 14, 13)
    total, now = counts(), time.time() * 1000
    pending = sum(total[state] for state in (State.WAITING, State.SCHEDULED, State.READY, State.PARKED))

    def line(left: str, middle: str, right: str) -> str:
        return left + middle.join("═" * width for width in widths) + right

    def row(*cells: str) -> str:
        return (
            "║" + "║".join(f" {cell:<{width - 1}}" for cell, width in zip(cells, widths, strict=True)) + "║"
        )

    inner = sum(widths) + len(widths) - 1
    figures = (
        f"Pending: {pending} | Active: {total[State.RUNNING]} | Completed: {total[State.SUCCEEDED]:,} "
        f"| Failed: {total[State.DEAD]}"
    )
    print(line("╔", "═", "╗"))
    print(f"║{'Worker Pool Status':^{inner}}║")
    print(line("╠", "═", "╣"))
    print(f"║ {'Queue: images':<{inner - 1}}║")
    print(f"║ {figures:<{inner - 1}}║")
    print(line("╠", "╦", "╣"))
    print(row("Worker", "Load", "Status", "Last Seen", "Jobs Done"))
    print(line("╠", "╬", "╣"))
    for worker in workers():
        status = "DEAD" if worker.gone == "dead" else worker.status.state
        running = 0 if worker.gone else worker.status.running
        seen = f"{(now - worker.seen_at) / 1000:.1f}s ago"
        load = f"{running}/{worker.info.concurrency}"
        print(row(short(worker), load, status, seen, f"{worker.status.done:,}"))
    print(line("╚", "╩", "╝"), flush=True)


def wait_until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > give_up:
            raise SystemExit("this takes too long; is the machine very busy?")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
