"""Bounds: a queue holds so many pending jobs and no more."""

from __future__ import annotations

import pytest

from ferryman.errors import QueueFull
from ferryman.job import OutcomeKind, State, UniqueKey
from ferryman.store.records import Filter, QueueSettings

from .driver import ALL, Ferry, new_job


def _declare(ferry: Ferry, max_size: int | None, overflow: str = "reject") -> None:
    settings = QueueSettings(name="default", max_size=max_size, overflow=overflow)  # type: ignore[arg-type]
    ferry.run(ferry.store.declare([settings]))


@pytest.mark.parametrize("overflow", ["reject", "block"])
def test_a_full_queue_refuses_a_job_and_says_so(ferry: Ferry, overflow: str) -> None:
    _declare(ferry, 3, overflow)
    ids = ferry.add_many(3)

    with pytest.raises(QueueFull) as refusal:
        ferry.add()

    assert (refusal.value.queue, refusal.value.max_size) == ("default", 3)
    assert [job.id for job in ferry.jobs()] == ids


def test_a_batch_that_does_not_fit_is_refused_as_a_whole(ferry: Ferry) -> None:
    _declare(ferry, 3)
    ids = ferry.add_many(2)

    with pytest.raises(QueueFull):
        ferry.enqueue(new_job(queue="other"), new_job(), new_job())

    assert [job.id for job in ferry.jobs()] == ids


def test_duplicates_take_no_place_in_a_full_queue(ferry: Ferry) -> None:
    _declare(ferry, 1)
    job = new_job()
    ferry.enqueue(job)

    (answer,) = ferry.enqueue(job)

    assert answer.duplicate


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
def test_duplicates_push_nothing_out_of_a_full_queue(ferry: Ferry, overflow: str) -> None:
    _declare(ferry, 3, overflow)
    known = new_job()
    ferry.enqueue(known, new_job(unique=UniqueKey("u")))

    batch = [
        known,
        new_job(unique=UniqueKey("u")),
        new_job(unique=UniqueKey("new")),
        new_job(unique=UniqueKey("new")),
    ]
    answers = ferry.enqueue(*batch)

    assert [answer.duplicate for answer in answers] == [True, True, False, True]
    assert {job.state for job in ferry.jobs()} == {State.READY}
    assert len(ferry.jobs()) == 3


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
def test_duplicates_find_their_jobs_in_a_queue_that_is_over_its_bound(ferry: Ferry, overflow: str) -> None:
    known, unique = new_job(), new_job(unique=UniqueKey("u"))
    ferry.enqueue(known, unique)
    ids = ferry.add_many(3)
    _declare(ferry, 2, overflow)

    answers = ferry.enqueue(known, new_job(unique=UniqueKey("u")), new_job(queue="elsewhere"))

    assert [(answer.id, answer.duplicate) for answer in answers[:2]] == [(known.id, True), (unique.id, True)]
    assert not answers[2].duplicate
    assert ferry.states([known.id, unique.id, *ids]) == [State.READY] * 5


@pytest.mark.parametrize("overflow", ["reject", "drop_oldest"])
def test_a_job_born_cancelled_takes_no_place_in_a_full_queue(ferry: Ferry, overflow: str) -> None:
    _declare(ferry, 2, overflow)
    parent = ferry.add(queue="parents")
    ferry.cancel(parent)
    pending = ferry.add_many(2)

    child = ferry.add(after=(parent,))

    assert ferry.state(child) is State.CANCELLED
    assert ferry.states(pending) == [State.READY, State.READY]


def test_running_and_finished_jobs_do_not_count_against_the_bound(ferry: Ferry) -> None:
    _declare(ferry, 1)
    ferry.add()
    ferry.finish_next()
    ferry.add()
    ferry.take()

    assert ferry.state(ferry.add()) is State.READY


def test_jobs_pending_in_any_state_and_lane_count_against_the_bound(ferry: Ferry) -> None:
    _declare(ferry, 5)
    parent = ferry.add(key="k", priority=3)
    ferry.add(key="k")
    ferry.add(delay=60_000)
    ferry.add(after=(parent,))
    ferry.add()

    with pytest.raises(QueueFull):
        ferry.add(priority=-3)


def test_a_retry_goes_back_to_a_full_queue_all_the_same(ferry: Ferry) -> None:
    _declare(ferry, 1)
    job = ferry.add(max_attempts=2)
    claim = ferry.take()
    ferry.add()

    ferry.settle(claim, OutcomeKind.RETRY)

    assert ferry.state(job) is State.READY


def test_a_full_queue_that_drops_cancels_its_oldest(ferry: Ferry) -> None:
    _declare(ferry, 3, "drop_oldest")
    old = ferry.add_many(3)

    new = ferry.add_many(2)

    assert ferry.states(old) == [State.CANCELLED, State.CANCELLED, State.READY]
    assert ferry.job(old[0]).reason
    assert ferry.drain() == [old[2], *new]


def test_a_queue_that_drops_leaves_running_jobs_alone(ferry: Ferry) -> None:
    _declare(ferry, 2, "drop_oldest")
    running = ferry.add()
    claim = ferry.take()
    pending = ferry.add_many(2)

    ferry.add()

    assert ferry.states([running, *pending]) == [State.RUNNING, State.CANCELLED, State.READY]
    ferry.succeed(claim)


def test_what_is_dropped_lets_others_of_its_key_in(ferry: Ferry) -> None:
    _declare(ferry, 2, "drop_oldest")
    first, second = ferry.add_many(2, key="k")

    ferry.add()

    assert ferry.states([first, second]) == [State.CANCELLED, State.READY]


def test_what_is_dropped_may_let_in_one_that_is_dropped_next(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k")
    child = ferry.add(after=(first,), on_parent_failure="continue")
    elsewhere = ferry.add(queue="elsewhere", key="k")
    _declare(ferry, 3, "drop_oldest")

    ferry.add_many(3)

    assert ferry.states([first, second, child]) == [State.CANCELLED] * 3
    assert ferry.state(elsewhere) is State.READY


@pytest.mark.parametrize("overflow", ["reject", "block", "drop_oldest"])
def test_a_batch_larger_than_the_bound_is_refused(ferry: Ferry, overflow: str) -> None:
    _declare(ferry, 3, overflow)
    ids = ferry.add_many(2)

    with pytest.raises(QueueFull):
        ferry.add_many(4)

    assert ferry.states(ids) == [State.READY, State.READY]


def test_a_bound_that_is_lifted_binds_no_more(ferry: Ferry) -> None:
    _declare(ferry, 1)
    ferry.add()

    _declare(ferry, None)

    assert len(ferry.add_many(10)) == 10


def test_a_bound_set_below_what_is_there_drops_nothing_by_itself(ferry: Ferry) -> None:
    ids = ferry.add_many(5)

    _declare(ferry, 2)

    assert ferry.states(ids) == [State.READY] * 5
    with pytest.raises(QueueFull):
        ferry.add()


def test_a_bound_is_for_one_queue(ferry: Ferry) -> None:
    _declare(ferry, 1)
    ferry.add()

    assert len(ferry.add_many(5, queue="other")) == 5


def test_room_comes_back_when_pending_jobs_are_cancelled(ferry: Ferry) -> None:
    _declare(ferry, 3)
    ferry.add_many(3)

    ferry.run(ferry.store.cancel(Filter(queues=("default",)), ALL))

    assert len(ferry.add_many(3)) == 3
