"""``ferryman worker`` as a process, beside the rest of the command line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from .conftest import APP, Quay

PROGRAM = [sys.executable, "-c", "from ferryman.cli import main; main()"]


@pytest.fixture
def at_work(quay: Quay) -> Iterator[subprocess.Popen[bytes]]:
    """A worker of two queues, on an app that leaves the choice of the store to the command line."""
    (quay.folder / "mill.py").write_text(APP.replace('App("sqlite:///jobs.db")', "App()"))
    options = ["--queues", "sums, default", "--concurrency", "3", "--executors", "1", "--url", quay.url]
    environment = {name: value for name, value in os.environ.items() if name != "FERRYMAN_URL"}
    with subprocess.Popen([*PROGRAM, "worker", "mill:app", *options], env=environment) as process:
        yield process
        process.kill()


def test_a_worker_runs_what_is_enqueued_and_leaves_when_told_to(
    quay: Quay, at_work: subprocess.Popen[bytes]
) -> None:
    result = quay.ferryman("enqueue", "app.add", "a=1", "b=2", "--queue", "sums", "--wait")
    (worker,) = quay.lines("workers")
    at_work.send_signal(signal.SIGTERM)

    assert result.stdout.splitlines()[1] == "3"
    assert (worker["pid"], worker["concurrency"], worker["queues"]) == (at_work.pid, 3, ["sums", "default"])
    assert at_work.wait() == 0
    assert quay.lines("workers")[0]["state"] == "stopped"


def test_a_worker_stops_when_the_command_line_says_so(quay: Quay, at_work: subprocess.Popen[bytes]) -> None:
    quay.ferryman("enqueue", "app.add", "a=1", "--queue", "sums", "--wait")

    assert quay.ferryman("workers", "stop", "--all").exit_code == 0
    assert at_work.wait() == 0


def test_a_worker_whose_log_nobody_reads_any_more_ends_well(quay: Quay) -> None:
    (quay.folder / "mill.py").write_text(APP)
    unset = ("FERRYMAN_URL", "PYTHONUNBUFFERED")  # What is buffered is lost at the very end.
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    command = [*PROGRAM, "worker", "mill:app", "--url", quay.url]
    with subprocess.Popen(command, env=environment, cwd=quay.folder, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()

        process.send_signal(signal.SIGTERM)

        assert process.wait() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere:app",), "ferryman: there is no module 'nowhere'"),
        (("mill:app", "--url", ""), "ferryman: the store URL ''"),
        (("mill:app", "--queues", ","), "--queues names no queue"),
        (("mill:app", "--concurrency", "0"), "--concurrency"),
        ((), "MODULE:ATTR"),
    ],
)
def test_a_worker_that_cannot_start_says_why(quay: Quay, arguments: tuple[str, ...], words: str) -> None:
    (quay.folder / "mill.py").write_text(APP)

    done = subprocess.run(
        [*PROGRAM, "worker", *arguments], capture_output=True, text=True, check=False, cwd=quay.folder
    )

    assert done.returncode == 2
    assert words in done.stderr
