"""Outcomes: what becomes of a job when an attempt has ended."""

from __future__ import annotations

import pytest

from ferryman.job import MAX_DEATHS, ErrorInfo, Outcome, OutcomeKind, State

from .driver import BOOM, W1, W2, Ferry


def test_a_job_that_succeeded_keeps_its_result(ferry: Ferry) -> None:
    job = ferry.add()
    claim = ferry.take()
    ferry.clock.advance(3)

    ferry.settle(claim, OutcomeKind.SUCCEEDED, result=b"\x00out", ran_us=2_000_000)

    done = ferry.job(job)
    assert (done.state, done.result, done.worker) == (State.SUCCEEDED, b"\x00out", W1)
    assert (done.started_at, done.finished_at) == (ferry.clock.now() - 2_000, ferry.clock.now())
    assert (done.attempt, list(ferry.history(job).attempts)) == (1, [])


def test_a_failed_attempt_is_recorded_and_the_job_runs_again(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=3)
    claim = ferry.take()
    ferry.clock.advance(2)

    ferry.settle(claim, OutcomeKind.RETRY, error=BOOM, ran_us=1_500_000)

    (attempt,) = ferry.history(job).attempts
    assert (ferry.state(job), ferry.job(job).attempt) == (State.READY, 1)
    assert ferry.job(job).run_at == ferry.clock.now()
    assert ferry.job(job).started_at == attempt.started_at
    assert (attempt.number, attempt.kind, attempt.worker) == (1, OutcomeKind.RETRY, W1)
    assert (attempt.started_at, attempt.finished_at) == (ferry.clock.now() - 1_500, ferry.clock.now())
    assert attempt.error == BOOM
    assert ferry.take().attempt == 2


def test_the_last_attempt_that_fails_makes_the_job_dead(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=2)
    ferry.finish_next(OutcomeKind.RETRY, error=ErrorInfo("ValueError", "one"))
    ferry.finish_next(OutcomeKind.RETRY, error=ErrorInfo("ValueError", "two\nlines"), delay=5_000)

    dead = ferry.job(job)
    assert (dead.state, dead.attempt, dead.finished_at) == (State.DEAD, 2, ferry.clock.now())
    assert dead.reason == "ValueError: two"
    errors = [attempt.error for attempt in ferry.history(job).attempts]
    assert [error and error.message for error in errors] == ["one", "two\nlines"]


def test_a_job_can_die_at_its_first_attempt(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=10)

    ferry.finish_next(OutcomeKind.DEAD, error=BOOM)

    (attempt,) = ferry.history(job).attempts
    assert (ferry.state(job), ferry.job(job).reason) == (State.DEAD, "ValueError: boom")
    assert (attempt.number, attempt.kind, attempt.error) == (1, OutcomeKind.DEAD, BOOM)
    ferry.clock.advance(3600)
    assert ferry.claim() == []


def test_a_snooze_spends_no_attempt_and_is_recorded(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=1)

    ferry.finish_next(OutcomeKind.SNOOZED, delay=2_000, reason="no boat")

    snoozed = ferry.job(job)
    (record,) = ferry.history(job).attempts
    assert (snoozed.state, snoozed.attempt, snoozed.reason) == (State.SCHEDULED, 0, "no boat")
    assert snoozed.run_at == ferry.clock.now() + 2_000
    assert (record.kind, record.reason) == (OutcomeKind.SNOOZED, "no boat")
    assert ferry.claim() == []
    ferry.clock.advance(2)
    assert ferry.take().attempt == 1


def test_a_job_can_be_snoozed_any_number_of_times(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=1)

    for _ in range(10):
        ferry.finish_next(OutcomeKind.SNOOZED, delay=1_000)
        ferry.clock.advance(1)

    assert ferry.finish_next() == job
    assert (ferry.state(job), ferry.job(job).attempt) == (State.SUCCEEDED, 1)


def test_a_job_that_succeeds_after_a_snooze_needs_no_reason(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.finish_next(OutcomeKind.SNOOZED, delay=1_000, reason="no boat")
    ferry.clock.advance(1)

    ferry.finish_next()

    assert ferry.job(job).reason is None


def test_a_job_that_cancels_itself_says_why(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=5)

    ferry.finish_next(OutcomeKind.CANCELLED, reason="not needed")

    cancelled = ferry.job(job)
    assert (cancelled.state, cancelled.reason) == (State.CANCELLED, "not needed")
    assert cancelled.finished_at == ferry.clock.now()


def test_a_released_job_is_as_if_it_had_never_been_claimed(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=1)
    ready_since = ferry.clock.now()
    ferry.clock.advance(5)
    claim = ferry.take()
    ferry.clock.advance(5)

    ferry.settle(claim, OutcomeKind.RELEASED)

    released = ferry.job(job)
    assert (released.state, released.attempt, released.worker) == (State.READY, 0, None)
    assert list(ferry.history(job).attempts) == []
    again = ferry.take()
    assert (again.attempt, again.ready_at) == (1, ready_since)
    assert again.lease > claim.lease


def test_a_crash_spends_the_attempt_counts_a_death_and_keeps_the_place(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, max_attempts=5)
    ready_since = ferry.clock.now()
    claim = ferry.take()
    ferry.clock.advance(1)

    ferry.settle(claim, OutcomeKind.CRASHED, error=ErrorInfo("Crashed", "signal 9"), ran_us=400_000)

    (attempt,) = ferry.history(first).attempts
    assert ferry.job(first).started_at == attempt.started_at == ferry.clock.now() - 400
    assert (ferry.state(first), ferry.job(first).attempt, ferry.job(first).deaths) == (State.READY, 1, 1)
    assert (attempt.kind, attempt.error) == (OutcomeKind.CRASHED, ErrorInfo("Crashed", "signal 9"))
    one, two = ferry.claim(2)
    assert (one.id, one.attempt, one.deaths, one.ready_at) == (first, 2, 1, ready_since)
    assert two.id == second


def test_a_crash_without_an_error_is_recorded_with_one(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=2)

    ferry.finish_next(OutcomeKind.CRASHED)

    (attempt,) = ferry.history(job).attempts
    assert attempt.error is not None
    assert attempt.error.type == "Crashed"


def test_a_crash_in_the_last_attempt_makes_the_job_dead(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=1)

    ferry.finish_next(OutcomeKind.CRASHED, error=ErrorInfo("Crashed", "signal 9"))

    assert (ferry.state(job), ferry.job(job).reason) == (State.DEAD, "Crashed: signal 9")
    assert ferry.job(job).deaths == 1


def test_a_poison_pill_is_put_with_the_dead_letters(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=100)

    for _ in range(MAX_DEATHS):
        assert ferry.finish_next(OutcomeKind.CRASHED) == job

    assert (ferry.state(job), ferry.job(job).deaths) == (State.DEAD, MAX_DEATHS)
    assert ferry.job(job).attempt == MAX_DEATHS
    assert ferry.claim() == []


@pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.CRASHED])
@pytest.mark.parametrize("most", [1, 2, 3])
def test_attempts_never_exceed_their_maximum(ferry: Ferry, kind: OutcomeKind, most: int) -> None:
    job = ferry.add(max_attempts=most)
    attempts = []

    while claims := ferry.claim():
        attempts.append(claims[0].attempt)
        ferry.settle(claims[0], kind)

    assert attempts == list(range(1, most + 1))
    assert (ferry.state(job), ferry.job(job).attempt) == (State.DEAD, most)


def test_crashes_and_failures_share_one_count_of_attempts(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=3)

    for kind in (OutcomeKind.RETRY, OutcomeKind.CRASHED, OutcomeKind.RETRY):
        ferry.finish_next(kind)

    numbers = [(attempt.number, attempt.kind) for attempt in ferry.history(job).attempts]
    assert ferry.state(job) is State.DEAD
    assert numbers == [(1, OutcomeKind.RETRY), (2, OutcomeKind.CRASHED), (3, OutcomeKind.RETRY)]


def test_a_rescue_in_the_last_attempt_makes_the_job_dead(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=1)
    ferry.take()

    (rescued,) = ferry.run(ferry.store.rescue([W1]))

    (attempt,) = ferry.history(job).attempts
    assert (rescued.worker, rescued.again, rescued.dead) == (W1, 0, 1)
    assert ferry.state(job) is State.DEAD
    assert attempt.kind is OutcomeKind.CRASHED
    assert attempt.error is not None
    assert attempt.error.type == "WorkerLost"


def test_leaving_gives_back_what_is_held_without_a_death(ferry: Ferry) -> None:
    ready_since = ferry.clock.now()
    job = ferry.add(max_attempts=3)
    ferry.clock.advance(1)
    ferry.take()
    ferry.clock.advance(1)
    ferry.register(W2)

    ferry.run(ferry.store.leave(W1))

    assert (ferry.state(job), ferry.job(job).deaths) == (State.READY, 0)
    again = ferry.take(W2)
    assert (again.id, again.attempt, again.deaths, again.ready_at) == (job, 2, 0, ready_since)


@pytest.mark.parametrize(
    "kind", [OutcomeKind.SUCCEEDED, OutcomeKind.DEAD, OutcomeKind.CANCELLED], ids=lambda kind: kind.name
)
def test_a_finished_job_never_runs_again_by_itself(ferry: Ferry, kind: OutcomeKind) -> None:
    job = ferry.add(max_attempts=5)
    ferry.finish_next(kind)
    before = ferry.job(job)

    ferry.clock.advance(24 * 3600)
    claims = ferry.claim()
    ferry.run(ferry.store.rescue([W1]))

    assert claims == []
    assert ferry.job(job) == before


def test_one_batch_can_carry_every_kind_of_outcome(ferry: Ferry) -> None:
    ferry.add_many(len(OutcomeKind), max_attempts=2)
    claims = ferry.claim(len(OutcomeKind))

    outcomes = [
        Outcome(claim.id, claim.lease, kind, delay=1_000, error=BOOM)
        for claim, kind in zip(claims, OutcomeKind, strict=True)
    ]
    answers = ferry.run(ferry.store.settle(W1, outcomes))

    assert answers == [True] * len(OutcomeKind)
    assert ferry.states([claim.id for claim in claims]) == [
        State.SUCCEEDED,
        State.SCHEDULED,
        State.DEAD,
        State.SCHEDULED,
        State.CANCELLED,
        State.READY,
        State.READY,
    ]
