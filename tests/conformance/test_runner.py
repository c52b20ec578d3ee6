"""Runners: one transaction is all or nothing, from any thread or event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from ferryman.errors import UnknownParent
from ferryman.io.operation import Operation, Requests
from ferryman.job import JobId, NewJob, State, UniqueKey, WorkerId, new_id
from ferryman.store.records import Enqueued, Filter, Take

from .driver import ALL, W1, Ferry, new_job, wakes

THREADS = 8


def _orphan() -> NewJob:
    """A job that every store refuses."""
    return new_job(after=(new_id(),))


def _in_threads(work: Callable[[int], None]) -> None:
    """Run `work(n)` in several threads that start together; raises the first error."""
    errors: list[BaseException] = []
    start = threading.Barrier(THREADS)

    def run(number: int) -> None:
        try:
            start.wait(30)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


# -- all or nothing


def test_an_operation_can_be_performed_more_than_once(ferry: Ferry) -> None:
    job = new_job()
    operation = ferry.store.enqueue([job])

    first, second = ferry.run(operation), ferry.run(operation)

    assert (first, second) == ([Enqueued(job.id)], [Enqueued(job.id, duplicate=True)])


def test_several_operations_are_one_transaction_in_order(ferry: Ferry) -> None:
    job = new_job()

    answers = ferry.runner.run_all(
        [
            ferry.store.enqueue([job]),
            ferry.store.claim(W1, [Take("default", 0, 1)], 1),
            ferry.store.get([job.id]),
        ]
    )

    assert answers[0] == [Enqueued(job.id)]
    assert [claim.id for claim in answers[1].jobs] == [job.id]
    assert answers[2][0].state is State.RUNNING


def test_one_operation_that_fails_undoes_those_before_it(ferry: Ferry) -> None:
    kept = ferry.add(key="k")
    before = ferry.history(kept)

    with pytest.raises(UnknownParent):
        ferry.runner.run_all(
            [
                ferry.store.enqueue([new_job(key="k"), new_job(unique=UniqueKey("u"))]),
                ferry.store.claim(W1, [Take("default", 0, 5)], 5),
                ferry.store.pause(["elsewhere"], True),
                ferry.store.kv_put("key", b"value", expected=None),
                ferry.store.enqueue([_orphan()]),
                ferry.store.delete(Filter(), ALL),
            ]
        )

    assert [job.id for job in ferry.jobs()] == [kept]
    assert ferry.history(kept) == before
    assert ferry.run(ferry.store.kv_get("key")) is None
    assert [queue.settings.name for queue in ferry.run(ferry.store.queues())] == ["default"]
    assert not ferry.enqueue(new_job(unique=UniqueKey("u")))[0].duplicate


def test_no_operations_are_no_transaction(ferry: Ferry) -> None:
    assert ferry.runner.run_all([]) == []


def test_a_runner_that_was_closed_opens_again(ferry: Ferry) -> None:
    job = ferry.add()

    ferry.runner.close()

    assert ferry.state(job) is State.READY
    assert ferry.finish_next() == job


def test_two_runners_see_the_same_store(ferry: Ferry) -> None:
    other = ferry.store.runner()
    job = new_job()

    other.run(ferry.store.enqueue([job]))

    assert ferry.finish_next() == job.id
    (seen,) = other.run(ferry.store.get([job.id]))
    assert seen is not None
    assert seen.state is State.SUCCEEDED


# -- the asyncio runner


def test_the_asyncio_runner_performs_the_same_operations(ferry: Ferry) -> None:
    store, job = ferry.store, new_job(max_attempts=2)

    async def live() -> list[object]:
        runner = store.async_runner()
        try:
            enqueued = await runner.run(store.enqueue([job]))
            claimed = await runner.run(store.claim(W1, [Take("default", 0, 1)], 1))
            (kept,) = await runner.run(store.get([job.id]))
            return [enqueued, [claim.id for claim in claimed.jobs], kept and kept.state]
        finally:
            await runner.close()

    answers = asyncio.run(live())

    assert answers == [[Enqueued(job.id)], [job.id], State.RUNNING]
    assert ferry.state(job.id) is State.RUNNING


def test_the_asyncio_runner_undoes_an_operation_that_fails(ferry: Ferry) -> None:
    store, job = ferry.store, new_job()

    async def live() -> None:
        runner = store.async_runner()
        try:
            with pytest.raises(UnknownParent):
                await runner.run(store.enqueue([new_job(), _orphan()]))
            await runner.run(store.enqueue([job]))
        finally:
            await runner.close()

    asyncio.run(live())

    assert [kept.id for kept in ferry.jobs()] == [job.id]


def test_many_coroutines_enqueue_at_once_and_each_gets_its_own_answer(ferry: Ferry) -> None:
    store = ferry.store
    jobs = [new_job() if n % 10 else _orphan() for n in range(100)]

    async def live() -> list[object]:
        runner = store.async_runner()
        try:
            calls = (runner.run(store.enqueue([job])) for job in jobs)
            return list(await asyncio.gather(*calls, return_exceptions=True))
        finally:
            await runner.close()

    answers = asyncio.run(live())

    for job, answer in zip(jobs, answers, strict=True):
        if job.after:
            assert isinstance(answer, UnknownParent)
        else:
            assert answer == [Enqueued(job.id)]
    assert {kept.id for kept in ferry.jobs()} == {job.id for job in jobs if not job.after}


def test_each_event_loop_may_have_its_own_runner_in_turn(ferry: Ferry) -> None:
    store = ferry.store

    async def live(job: NewJob) -> None:
        runner = store.async_runner()
        await runner.run(store.enqueue([job]))
        await runner.close()

    jobs = [new_job() for _ in range(3)]
    for job in jobs:
        asyncio.run(live(job))

    assert ferry.drain() == [job.id for job in jobs]


# -- threads


def test_threads_that_race_for_a_unique_key_make_one_job(ferry: Ferry) -> None:
    answers: list[Enqueued] = []

    def race(_: int) -> None:
        for n in range(10):
            job = new_job(unique=UniqueKey(f"key-{n}"))
            answers.extend(ferry.enqueue(job))

    _in_threads(race)

    created = [answer.id for answer in answers if not answer.duplicate]
    assert len(answers) == THREADS * 10
    assert len(created) == 10
    assert {answer.id for answer in answers} == set(created) == {job.id for job in ferry.jobs()}


def test_threads_that_race_for_jobs_get_each_job_once(ferry: Ferry) -> None:
    ids = ferry.add_many(400)
    got: list[list[JobId]] = [[] for _ in range(THREADS)]
    workers = [ferry.register(WorkerId(f"racer-{n}")) for n in range(THREADS)]

    def race(number: int) -> None:
        while claims := ferry.claim(7, worker=workers[number]):
            got[number] += [claim.id for claim in claims]
            ferry.succeed(*claims, worker=workers[number])

    _in_threads(race)

    assert sorted(job for mine in got for job in mine) == sorted(ids)
    for mine in got:
        assert mine == sorted(mine, key=ids.index)
    assert set(ferry.states(ids)) == {State.SUCCEEDED}


def test_threads_that_race_for_a_key_never_exceed_its_room(ferry: Ferry) -> None:
    ids = ferry.add_many(60, key="k", room=2)
    workers = [ferry.register(WorkerId(f"racer-{n}")) for n in range(THREADS)]
    inside: list[int] = []
    now_inside = 0
    counting = threading.Lock()

    def race(number: int) -> None:
        nonlocal now_inside
        for _ in range(200):
            for claim in ferry.claim(1, worker=workers[number]):
                with counting:
                    now_inside += 1
                    inside.append(now_inside)
                with counting:
                    now_inside -= 1
                ferry.succeed(claim, worker=workers[number])
            if all(state is State.SUCCEEDED for state in ferry.states(ids[-2:])):
                return

    _in_threads(race)
    ferry.drain()

    assert max(inside) <= 2
    assert set(ferry.states(ids)) == {State.SUCCEEDED}


def test_an_enqueue_that_is_refused_does_not_harm_those_beside_it(ferry: Ferry) -> None:
    kept: list[JobId] = []

    def race(number: int) -> None:
        for _ in range(20):
            if number % 2:
                with pytest.raises(UnknownParent):
                    ferry.run(ferry.store.enqueue([new_job(), _orphan()]))
            else:
                job = new_job()
                ferry.run(ferry.store.enqueue([job]))
                kept.append(job.id)

    _in_threads(race)

    assert {job.id for job in ferry.jobs()} == set(kept)


def test_an_operation_that_breaks_does_not_harm_those_beside_it(ferry: Ferry) -> None:
    kept: list[JobId] = []

    def breaking(now: int) -> Requests[None]:
        yield from ferry.store.enqueue([new_job()]).body(now)
        raise ZeroDivisionError

    def race(number: int) -> None:
        for _ in range(20):
            if number % 2:
                with pytest.raises(ZeroDivisionError):
                    ferry.run(Operation("breaking", breaking))
            else:
                job = new_job()
                ferry.run(ferry.store.enqueue([job]))
                kept.append(job.id)

    _in_threads(race)

    stored = {job.id for job in ferry.jobs()}
    if ferry.store.capabilities.undoes_late:
        assert stored == set(kept)
    assert stored >= set(kept)


def test_a_thread_beside_a_crowd_of_coroutines_gets_its_own_answers(ferry: Ferry) -> None:
    store = ferry.store
    crowd = [new_job(task="of-the-crowd") for _ in range(1_000)]
    mine: list[JobId] = []
    over = threading.Event()

    def produce() -> None:
        while not over.is_set():
            mine.append(ferry.add(task="of-the-thread"))

    async def live() -> None:
        runner = store.async_runner()
        answers = await asyncio.gather(*(runner.run(store.enqueue([job])) for job in crowd))
        assert answers == [[Enqueued(job.id)] for job in crowd]
        await runner.close()

    with ThreadPoolExecutor(1) as pool:
        producing = pool.submit(produce)
        try:
            asyncio.run(live())
        finally:
            over.set()
        producing.result()

    assert {job.id for job in ferry.jobs()} == {*mine, *(job.id for job in crowd)}


def test_a_lock_that_threads_race_for_goes_to_one(ferry: Ferry) -> None:
    tokens: list[int | None] = []

    def race(number: int) -> None:
        tokens.append(ferry.run(ferry.store.lock("leader", f"owner-{number}", 10_000)))

    _in_threads(race)

    assert len([token for token in tokens if token is not None]) == 1


def test_counters_kept_by_compare_and_set_lose_nothing(ferry: Ferry) -> None:
    def race(_: int) -> None:
        for _ in range(10):
            while True:
                entry = ferry.run(ferry.store.kv_get("count"))
                value = int(entry.value) if entry else 0
                put = ferry.store.kv_put(
                    "count", str(value + 1).encode(), expected=entry.version if entry else None
                )
                if ferry.run(put) is not None:
                    break

    _in_threads(race)

    entry = ferry.run(ferry.store.kv_get("count"))
    assert entry is not None
    assert entry.value == str(THREADS * 10).encode()


# -- waiting


def test_waiting_ends_by_itself(ferry: Ferry) -> None:
    ferry.runner.wait(0.001)


def test_waiting_ends_when_another_thread_commits(ferry: Ferry) -> None:
    assert wakes(ferry.runner, ferry.store, ferry.runner)


def test_waiting_in_an_event_loop_ends_when_a_thread_commits(ferry: Ferry) -> None:
    stop = threading.Event()

    def produce() -> None:
        while not stop.wait(0.05):
            ferry.run(ferry.store.enqueue([new_job()]))

    async def live() -> None:
        runner = ferry.store.async_runner()
        await runner.wait(60)
        await runner.close()

    producer = threading.Thread(target=produce)
    producer.start()
    try:
        asyncio.run(asyncio.wait_for(live(), 30))
    finally:
        stop.set()
        producer.join()
