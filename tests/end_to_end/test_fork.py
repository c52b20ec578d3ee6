"""A producer that forks, as web servers do: parent and children go on to enqueue, and nothing is damaged."""

from __future__ import annotations

import multiprocessing
import os
import select
import signal
import subprocess
import sys
import threading
import traceback
import warnings

from ferryman import Ferryman
from tests.end_to_end.harness import Harbour, wait_for

MARK = """
@app.task
def mark(n: int) -> int:
    return n
"""


def reap(children: list[int]) -> None:
    """Wait for forked children to end well; one that hangs is killed."""
    for pid in children:
        ended = os.pidfd_open(pid)
        if not select.select([ended], [], [], 12)[0]:
            os.kill(pid, signal.SIGKILL)
        os.close(ended)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0


def fork_and(harbour: Harbour, first: int, count: int) -> int:
    """A forked child that enqueues so many jobs, one by one."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forks of threaded processes, which is what this is about.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            for n in range(first, first + count):
                harbour.app.enqueue("tasks.mark", n)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return pid


def test_children_and_parent_enqueue_side_by_side(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(0)

    children = [fork_and(harbour, 1_000 * child, 60) for child in range(1, 5)]
    own = [tasks.mark.enqueue(n) for n in range(1, 60)]
    reap(children)

    assert harbour.counts() == {"ready": 300}
    assert len(own) == 59
    harbour.start_worker()
    wait_for(harbour.settled(succeeded=300))
    assert own[-1].result(timeout=1) == 59


def test_forks_while_other_threads_enqueue(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(0)
    ends = threading.Event()
    made = [0, 0]

    def produce(place: int) -> None:
        while not ends.is_set():
            tasks.mark.enqueue(place)
            made[place] += 1

    threads = [threading.Thread(target=produce, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(8):
            reap([fork_and(harbour, 1_000 * round_, 10)])
    finally:
        ends.set()
        for thread in threads:
            thread.join()

    assert harbour.counts() == {"ready": 81 + sum(made)}


def test_a_child_of_a_child_and_a_parent_that_ends_first(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(0)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            tasks.mark.enqueue(1)
            fork_and(harbour, 2, 20)
        finally:
            os._exit(0)
    reap([pid])
    tasks.mark.enqueue(100)

    wait_for(harbour.settled(ready=23))


def test_a_parent_that_lets_go_of_the_store_takes_no_jobs_of_its_child_along(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        try:
            tasks.mark.enqueue(1)
            harbour.touch("child")
            wait_for((harbour.folder / "parent").exists)
            for n in range(2, 20):
                tasks.mark.enqueue(n)
        finally:
            os._exit(0)

    wait_for((harbour.folder / "child").exists)
    harbour.app.close()
    harbour.touch("parent")
    reap([pid])

    assert harbour.counts() == {"ready": 20}


SPREAD = """
import multiprocessing, tasks

def produce(first):
    for n in range(first, first + 50):
        tasks.mark.enqueue(n)
    return len(tasks.mark.enqueue_many([(n,) for n in range(50)]))

if __name__ == "__main__":
    tasks.mark.enqueue(0)
    with multiprocessing.get_context("fork").Pool(3) as pool:
        answers = pool.map_async(produce, [100, 200, 300])
        own = produce(400)
        print(sum(answers.get(30)) + own)
"""


def test_a_pool_of_forked_processes(harbour: Harbour) -> None:
    harbour.load(MARK)
    (harbour.folder / "spread.py").write_text(SPREAD)

    said = subprocess.run(
        [sys.executable, "spread.py"],
        cwd=harbour.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )

    assert said.stdout.split() == ["200"]
    assert harbour.counts() == {"ready": 401}


def test_a_task_that_forks_leaves_its_executor_in_order(harbour: Harbour) -> None:
    tasks = harbour.load(MARK + FORKS)
    worker = harbour.start_worker("--executors", "1", "--concurrency", "2")

    handles = [tasks.forks.enqueue(n) for n in range(4)]
    assert [handle.result(timeout=10) for handle in handles] == [0, 1, 2, 3]

    wait_for(harbour.settled(succeeded=8))
    assert worker.stop() == 0


FORKS = """
@app.task
def forks(n: int) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            mark.enqueue(n)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    return n
"""


def test_a_memory_store_survives_a_fork_of_its_program() -> None:
    app = Ferryman("memory://")

    @app.task
    def mark(n: int) -> int:
        return n

    with app.worker():
        assert mark.enqueue(1).result(timeout=5) == 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = multiprocessing.get_context("fork").Process(target=os._exit, args=(0,))
            child.start()
            child.join()
        assert child.exitcode == 0
        assert mark.enqueue(2).result(timeout=5) == 2
