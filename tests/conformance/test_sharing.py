"""Sharing: several stores on one place, in one process or in several, as one."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable

from ferryman.job import OutcomeKind, State, UniqueKey
from ferryman.store.records import Enqueued, Take

from .driver import W1, Ferry, new_job, wakes


def test_waiting_ends_when_another_store_of_the_same_place_commits(shared_ferry: Ferry) -> None:
    other = shared_ferry.reopen()

    assert wakes(shared_ferry.runner, other, other.runner())
    other.close()


def test_two_stores_of_the_same_place_share_their_jobs(shared_ferry: Ferry) -> None:
    other = shared_ferry.reopen()
    job = shared_ferry.add(unique=UniqueKey("u"))

    (duplicate,) = other.runner().run(other.enqueue([new_job(unique=UniqueKey("u"))]))
    claimed = other.runner().run(other.claim(W1, [Take("default", 0, 1)], 1))
    other.close()

    assert duplicate == Enqueued(job, duplicate=True)
    assert [claim.id for claim in claimed.jobs] == [job]
    assert shared_ferry.settle(claimed.jobs[0], OutcomeKind.SUCCEEDED)


def test_what_was_enqueued_outlives_the_store_object(shared_ferry: Ferry) -> None:
    job = shared_ferry.add(args=b"kept", key="k")
    parked = shared_ferry.add(key="k")

    other = shared_ferry.reopen()
    found = other.runner().run(other.get([job, parked]))
    other.close()

    assert [one and one.state for one in found] == [State.READY, State.PARKED]
    assert found[0] is not None
    assert found[0].args == b"kept"


def _in_child(work: Callable[[], None]) -> int:
    """Run `work` in a forked child; its exit status."""
    with warnings.catch_warnings():
        # Python 3.12 warns of forks beside threads; a store must bear them.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_forked_child_can_go_on_using_the_store(shared_ferry: Ferry) -> None:
    ferry = shared_ferry
    before = ferry.add()

    def child() -> None:
        assert ferry.finish_next() == before
        ferry.store.runner().run(ferry.store.enqueue([new_job(task="of-the-child")]))

    status = _in_child(child)
    ferry.add(task="of-the-parent")

    assert status == 0
    assert [job.task for job in ferry.jobs()] == ["work", "of-the-child", "of-the-parent"]
    assert ferry.state(before) is State.SUCCEEDED


def test_parent_and_child_produce_at_the_same_time(shared_ferry: Ferry) -> None:
    ferry = shared_ferry
    ferry.add()
    reader, writer = os.pipe()

    def child() -> None:
        os.write(writer, b"go")
        for _ in range(50):
            ferry.add(task="of-the-child")

    def produce_beside() -> None:
        os.read(reader, 2)
        for _ in range(50):
            ferry.add(task="of-the-parent")

    beside = threading.Thread(target=produce_beside)
    beside.start()
    status = _in_child(child)
    beside.join()
    os.close(reader)
    os.close(writer)

    tasks = [job.task for job in ferry.jobs()]
    assert status == 0
    assert (tasks.count("of-the-child"), tasks.count("of-the-parent")) == (50, 50)


def test_a_child_forked_beside_an_event_loop_can_use_the_store(shared_ferry: Ferry) -> None:
    ferry = shared_ferry

    def child() -> None:
        ferry.add_many(2, task="of-the-child")

    async def live() -> int:
        runner = ferry.store.async_runner()
        await runner.run(ferry.store.enqueue([new_job()]))
        status = _in_child(child)
        await runner.run(ferry.store.enqueue([new_job()]))
        await runner.close()
        return status

    status = asyncio.run(live())

    assert status == 0
    assert len(ferry.jobs()) == 4
