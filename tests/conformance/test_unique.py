"""Unique keys: at most one job of a key at a time."""

from __future__ import annotations

import pytest

from ferryman.job import OutcomeKind, State, UniqueKey
from ferryman.store.records import Enqueued, Filter

from .driver import ALL, Ferry, new_job

UNTIL_FINISHED = UniqueKey("report")
UNTIL_STARTED = UniqueKey("report", until="started")
A_MINUTE = UniqueKey("report", period=60_000)


@pytest.mark.parametrize("unique", [UNTIL_FINISHED, UNTIL_STARTED, A_MINUTE])
def test_a_second_job_of_the_key_is_a_duplicate_of_the_first(ferry: Ferry, unique: UniqueKey) -> None:
    first = ferry.add(unique=unique)

    (answer,) = ferry.enqueue(new_job(unique=unique))

    assert answer == Enqueued(first, duplicate=True)
    assert [job.id for job in ferry.jobs()] == [first]


def test_the_key_can_be_taken_by_an_earlier_job_of_the_batch(ferry: Ferry) -> None:
    first, second, other = (
        new_job(unique=UNTIL_FINISHED),
        new_job(unique=UNTIL_FINISHED),
        new_job(unique=UniqueKey("other")),
    )

    answers = ferry.enqueue(first, second, other)

    assert answers == [Enqueued(first.id), Enqueued(first.id, duplicate=True), Enqueued(other.id)]


def test_a_key_is_taken_in_all_queues_and_by_all_tasks(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_FINISHED)

    (answer,) = ferry.enqueue(new_job(task="else", queue="elsewhere", priority=5, unique=UNTIL_FINISHED))

    assert answer == Enqueued(first, duplicate=True)


@pytest.mark.parametrize(
    "kind", [OutcomeKind.SUCCEEDED, OutcomeKind.DEAD, OutcomeKind.CANCELLED], ids=lambda kind: kind.name
)
def test_the_key_is_free_when_the_job_has_finished(ferry: Ferry, kind: OutcomeKind) -> None:
    ferry.add(unique=UNTIL_FINISHED)

    claim = ferry.take()
    (running,) = ferry.enqueue(new_job(unique=UNTIL_FINISHED))
    ferry.settle(claim, kind)
    (finished,) = ferry.enqueue(new_job(unique=UNTIL_FINISHED))

    assert (running.duplicate, finished.duplicate) == (True, False)


def test_the_key_is_kept_through_retries(ferry: Ferry) -> None:
    ferry.add(unique=UNTIL_FINISHED, max_attempts=3)
    ferry.finish_next(OutcomeKind.RETRY, delay=5_000)

    (answer,) = ferry.enqueue(new_job(unique=UNTIL_FINISHED))

    assert answer.duplicate


def test_a_key_until_started_is_free_once_the_job_was_started(ferry: Ferry) -> None:
    ferry.add(unique=UNTIL_STARTED)
    ferry.take()

    second, third = new_job(unique=UNTIL_STARTED), new_job(unique=UNTIL_STARTED)
    answers = ferry.enqueue(second, third)

    assert answers == [Enqueued(second.id), Enqueued(second.id, duplicate=True)]


def test_a_job_that_finishes_does_not_free_the_key_that_another_has_taken(ferry: Ferry) -> None:
    ferry.add(unique=UNTIL_STARTED)
    claim = ferry.take()
    second = ferry.add(unique=UNTIL_STARTED)

    ferry.succeed(claim)
    (answer,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))

    assert answer == Enqueued(second, duplicate=True)


def test_a_key_until_started_is_taken_again_by_a_job_that_was_claimed_but_not_started(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_STARTED)
    ferry.settle(ferry.take(), OutcomeKind.RELEASED)

    (before,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))
    ferry.take()
    (after,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))

    assert before == Enqueued(first, duplicate=True)
    assert not after.duplicate


def test_a_retry_that_was_claimed_but_not_started_does_not_take_the_key_again(ferry: Ferry) -> None:
    ferry.add(unique=UNTIL_STARTED, max_attempts=3)
    ferry.finish_next(OutcomeKind.RETRY)

    ferry.settle(ferry.take(), OutcomeKind.RELEASED)
    (answer,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))

    assert not answer.duplicate


def test_a_replayed_job_that_was_claimed_but_not_started_takes_its_key_again(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_STARTED, max_attempts=2)
    ferry.finish_next(OutcomeKind.RETRY)
    ferry.finish_next(OutcomeKind.DEAD)
    ferry.replay(first)

    ferry.settle(ferry.take(), OutcomeKind.RELEASED)
    (answer,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))

    assert answer == Enqueued(first, duplicate=True)


def test_a_key_that_another_has_taken_meanwhile_stays_with_that_one(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_STARTED)
    claim = ferry.take()
    second = ferry.add(unique=UNTIL_STARTED)
    ferry.settle(claim, OutcomeKind.RELEASED)

    (answer,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))
    started = [ferry.finish_next() for _ in range(2)]
    (later,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))

    assert answer == Enqueued(second, duplicate=True)
    assert started == [first, second]
    assert not later.duplicate


def test_a_key_that_another_had_for_a_period_that_is_over_is_free(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_STARTED)
    claim = ferry.take()
    ferry.add(unique=UniqueKey("report", period=1_000), delay=10_000)
    ferry.clock.advance(2)
    ferry.settle(claim, OutcomeKind.RELEASED)

    (answer,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))

    assert answer == Enqueued(first, duplicate=True)


def test_a_job_that_is_to_be_cancelled_does_not_take_its_key_again(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_STARTED)
    claim = ferry.take()
    ferry.cancel(first)
    ferry.settle(claim, OutcomeKind.RELEASED)

    (answer,) = ferry.enqueue(new_job(unique=UNTIL_STARTED))

    assert not answer.duplicate


@pytest.mark.parametrize("unique", [UNTIL_FINISHED, UNTIL_STARTED])
def test_cancelling_or_deleting_a_pending_job_frees_its_key(ferry: Ferry, unique: UniqueKey) -> None:
    ferry.cancel(ferry.add(unique=unique))
    second = ferry.add(unique=unique)

    ferry.delete(second)

    assert ferry.state(ferry.add(unique=unique)) is State.READY


def test_an_expired_job_frees_its_key(ferry: Ferry) -> None:
    ferry.add(unique=UNTIL_FINISHED, ttl=1_000)
    ferry.clock.advance(2)
    ferry.claim()

    (answer,) = ferry.enqueue(new_job(unique=UNTIL_FINISHED))

    assert not answer.duplicate


def test_a_key_with_a_period_is_taken_for_so_long_whatever_becomes_of_the_job(ferry: Ferry) -> None:
    first = ferry.add(unique=A_MINUTE)
    ferry.finish_next()
    ferry.clock.advance(59)

    (within,) = ferry.enqueue(new_job(unique=A_MINUTE))
    ferry.clock.advance(2)
    (after,) = ferry.enqueue(new_job(unique=A_MINUTE))

    assert within == Enqueued(first, duplicate=True)
    assert not after.duplicate


def test_a_key_with_a_period_is_free_afterwards_even_if_the_job_still_waits(ferry: Ferry) -> None:
    ferry.add(unique=A_MINUTE, delay=3_600_000)
    ferry.clock.advance(61)

    second = ferry.add(unique=A_MINUTE)
    (third,) = ferry.enqueue(new_job(unique=A_MINUTE))

    assert third == Enqueued(second, duplicate=True)


def test_a_finished_job_takes_its_key_again_when_it_is_replayed(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_FINISHED)
    ferry.finish_next(OutcomeKind.DEAD)

    ferry.replay(first)
    (answer,) = ferry.enqueue(new_job(unique=UNTIL_FINISHED))

    assert answer == Enqueued(first, duplicate=True)


def test_a_job_whose_key_is_taken_by_another_is_not_replayed(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_FINISHED)
    ferry.finish_next(OutcomeKind.DEAD)
    ferry.add(unique=UNTIL_FINISHED)

    assert ferry.replay(first) == 0
    assert ferry.state(first) is State.DEAD


def test_a_job_whose_key_another_has_for_a_period_is_not_replayed(ferry: Ferry) -> None:
    first = ferry.add(unique=A_MINUTE)
    ferry.finish_next(OutcomeKind.DEAD)
    ferry.clock.advance(61)
    ferry.add(unique=A_MINUTE)

    within = ferry.replay(first)
    ferry.clock.advance(61)
    after = ferry.replay(first)

    assert (within, after) == (0, 1)


def test_of_two_finished_jobs_of_a_key_one_is_replayed(ferry: Ferry) -> None:
    ids = []
    for _ in range(2):
        ids.append(ferry.add(unique=UNTIL_FINISHED))
        ferry.finish_next(OutcomeKind.DEAD)

    assert ferry.replay(*ids) == 1
    assert ferry.states(ids) == [State.READY, State.DEAD]


def test_a_duplicate_changes_nothing_about_the_job_that_has_the_key(ferry: Ferry) -> None:
    first = ferry.add(unique=UNTIL_FINISHED, args=b"first", key="k")
    before = ferry.history(first)

    ferry.enqueue(new_job(unique=UNTIL_FINISHED, args=b"second", key="k", room=5, priority=3))
    third = ferry.add(key="k")

    assert ferry.history(first) == before
    assert ferry.state(third) is State.PARKED


def test_a_job_born_cancelled_leaves_its_key_to_the_next_of_its_batch(ferry: Ferry) -> None:
    failed = ferry.add()
    ferry.run(ferry.store.cancel(Filter(ids=(failed,)), ALL))
    first, second = (new_job(after=(failed,), unique=UNTIL_FINISHED) for _ in range(2))
    third, fourth = (new_job(unique=UNTIL_FINISHED) for _ in range(2))

    answers = ferry.enqueue(first, second, third, fourth)

    assert answers == [
        Enqueued(first.id),
        Enqueued(second.id),
        Enqueued(third.id),
        Enqueued(third.id, duplicate=True),
    ]
