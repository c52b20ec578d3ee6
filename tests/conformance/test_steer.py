"""Steering: what people do to jobs and queues."""

from __future__ import annotations

import pytest

from ferryman.job import RERUNS, ErrorInfo, JobId, OutcomeKind, State
from ferryman.store.records import Filter, Order, QueueRecord, QueueSettings, Take

from .driver import ALL, W1, W2, Ferry, new_job

# -- pausing


def test_a_paused_queue_gives_nothing_until_it_is_resumed(ferry: Ferry) -> None:
    paused, other = ferry.add(), ferry.add(queue="other")
    ferry.run(ferry.store.pause(["default"], True))

    claimed = ferry.claimed(5)
    ferry.run(ferry.store.pause(["default"], False))

    assert [claim.id for claim in claimed.jobs] == [other]
    assert claimed.lanes == []
    assert ferry.take().id == paused


def test_a_paused_queue_takes_jobs_and_settles_those_that_run(ferry: Ferry) -> None:
    first = ferry.add()
    claim = ferry.take()
    ferry.run(ferry.store.pause(["default"], True))

    ferry.succeed(claim)
    second = ferry.add()

    assert ferry.states([first, second]) == [State.SUCCEEDED, State.READY]


def test_a_queue_can_be_paused_before_it_exists(ferry: Ferry) -> None:
    ferry.run(ferry.store.pause(["new"], True))

    ferry.add(queue="new")

    assert ferry.claim(plan=[Take("new", 0, 1)]) == []
    assert ferry.run(ferry.store.queues()) == [QueueRecord(QueueSettings(name="new"), True)]


def test_a_declaration_does_not_resume_a_paused_queue(ferry: Ferry) -> None:
    ferry.run(ferry.store.pause(["default"], True))

    ferry.run(ferry.store.declare([QueueSettings(name="default", max_size=7)]))

    assert ferry.run(ferry.store.queues()) == [QueueRecord(QueueSettings(name="default", max_size=7), True)]


def test_a_paused_queue_is_no_work_for_a_worker(ferry: Ferry) -> None:
    ferry.add()
    ferry.run(ferry.store.pause(["default"], True))

    assert ferry.run(ferry.store.peek(W1)).work is False


# -- cancelling


def test_pending_jobs_are_cancelled_in_every_state(ferry: Ferry) -> None:
    parent = ferry.add(queue="parents")
    ids = [
        ferry.add(after=(parent,)),
        ferry.add(delay=1_000),
        ferry.add(key="k"),
        ferry.add(key="k"),
    ]

    count = ferry.run(ferry.store.cancel(Filter(queues=("default",)), ALL, "not today"))

    assert count == 4
    for job in ids:
        cancelled = ferry.job(job)
        assert (cancelled.state, cancelled.reason) == (State.CANCELLED, "not today")
        assert cancelled.finished_at == ferry.clock.now()
    ferry.clock.advance(5)
    assert ferry.drain() == [parent]


def test_finished_jobs_are_not_cancelled(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.finish_next()
    before = ferry.job(job)

    assert ferry.cancel(job) == 0
    assert ferry.job(job) == before


def test_a_running_job_is_cancelled_by_an_order_to_its_worker(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.register(W2)
    claim = ferry.take()

    count = ferry.cancel(job, reason="stop it")

    assert (count, ferry.state(job)) == (1, State.RUNNING)
    assert ferry.run(ferry.store.peek(W1)).orders is True
    assert ferry.heartbeat(W2) == []
    assert ferry.heartbeat(W1) == [Order("cancel", job, "stop it")]
    assert ferry.heartbeat(W1) == []
    assert ferry.settle(claim, OutcomeKind.CANCELLED, reason="stop it")
    assert ferry.state(job) is State.CANCELLED


def test_a_running_job_is_told_to_stop_once_for_each_lease(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=3)
    ferry.take()
    counts = [ferry.cancel(job), ferry.cancel(job)]
    ferry.heartbeat()
    counts.append(ferry.cancel(job))

    ferry.run(ferry.store.rescue([W1]))
    ferry.replay(job)
    ferry.register(W2)
    ferry.take(W2)
    counts.append(ferry.cancel(job))

    assert counts == [1, 0, 0, 1]
    assert [order.job for order in ferry.heartbeat(W2)] == [job]


def test_cancelling_a_job_tells_its_children(ferry: Ferry) -> None:
    parent = ferry.add(queue="parents")
    child = ferry.add(after=(parent,))
    grandchild = ferry.add(after=(child,))
    heir = ferry.add(after=(parent,), on_parent_failure="continue")

    count = ferry.cancel(parent)

    assert count == 1
    assert ferry.states([child, grandchild, heir]) == [State.CANCELLED, State.CANCELLED, State.READY]


# -- replaying


def _end(ferry: Ferry, state: State) -> JobId:
    """A job that ended in this state."""
    job = ferry.add(max_attempts=3, ttl=5_000 if state is State.EXPIRED else None)
    if state is State.CANCELLED:
        ferry.cancel(job, reason="why not")
    elif state is State.EXPIRED:
        ferry.clock.advance(6)
        ferry.claim()
    else:
        kind = OutcomeKind.SUCCEEDED if state is State.SUCCEEDED else OutcomeKind.DEAD
        ferry.finish_next(kind, result=b"r" if state is State.SUCCEEDED else None)
    assert ferry.state(job) is state
    return job


@pytest.mark.parametrize("state", [State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED])
def test_a_finished_job_is_replayed_with_all_its_attempts(ferry: Ferry, state: State) -> None:
    job = _end(ferry, state)
    ferry.clock.advance(2)

    count = ferry.replay(job)

    replayed = ferry.job(job)
    assert count == 1
    assert (replayed.state, replayed.attempt, replayed.deaths) == (State.READY, 0, 0)
    assert (replayed.run_at, replayed.finished_at) == (ferry.clock.now(), None)
    claims = []
    for _ in range(3):
        claims.append(ferry.take())
        ferry.settle(claims[-1], OutcomeKind.RETRY)
    assert [claim.attempt for claim in claims] == [1, 2, 3]
    assert ferry.state(job) is State.DEAD


def test_a_replay_keeps_the_history_of_earlier_attempts(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=2)
    ferry.finish_next(OutcomeKind.RETRY)
    ferry.finish_next(OutcomeKind.RETRY)

    ferry.replay(job)
    ferry.finish_next(OutcomeKind.RETRY)

    assert [attempt.number for attempt in ferry.history(job).attempts] == [1, 2, 1]


def test_a_poison_pill_that_is_replayed_has_all_its_deaths_before_it(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=10)
    for _ in range(3):
        ferry.finish_next(OutcomeKind.CRASHED)
    assert ferry.state(job) is State.DEAD

    ferry.replay(job)
    ferry.finish_next(OutcomeKind.CRASHED)

    assert ferry.state(job) is State.READY


@pytest.mark.parametrize("step", ["pending", "running"])
def test_a_job_that_is_not_finished_is_not_replayed(ferry: Ferry, step: str) -> None:
    job = ferry.add()
    if step == "running":
        ferry.take()
    before = ferry.job(job)

    assert ferry.replay(job) == 0
    assert ferry.job(job) == before


def test_dead_letters_are_replayed_by_their_cause(ferry: Ferry) -> None:
    ids = ferry.add_many(3)
    for message in ("timeout", "refused", "timeout"):
        ferry.finish_next(OutcomeKind.DEAD, error=ErrorInfo("IOError", message))

    which = Filter(states=(State.DEAD,), causes=("IOError: timeout",))
    count = ferry.run(ferry.store.replay(which, ALL))

    assert count == 2
    assert ferry.states(ids) == [State.READY, State.DEAD, State.READY]


# -- editing and moving


def test_the_arguments_of_a_dead_letter_can_be_mended(ferry: Ferry) -> None:
    job = ferry.add(args=b"wrong")
    ferry.finish_next(OutcomeKind.DEAD)

    edited = ferry.run(ferry.store.edit(job, b"right"))
    ferry.replay(job)

    assert edited is True
    assert ferry.take().args == b"right"


def test_a_pending_job_can_be_edited_and_a_running_one_cannot(ferry: Ferry) -> None:
    job = ferry.add(args=b"one")

    pending = ferry.run(ferry.store.edit(job, b"two"))
    claim = ferry.take()
    running = ferry.run(ferry.store.edit(job, b"three"))

    assert (pending, running) == (True, False)
    assert (claim.args, ferry.job(job).args) == (b"two", b"two")


def test_a_job_that_is_not_there_cannot_be_edited(ferry: Ferry) -> None:
    assert ferry.run(ferry.store.edit(JobId("0" * 32), b"x")) is False


def test_a_job_moves_to_another_priority(ferry: Ferry) -> None:
    first, second, third = ferry.add_many(3)

    count = ferry.run(ferry.store.reprioritise(Filter(ids=(third,)), 7, ALL))

    assert (count, ferry.job(third).priority) == (1, 7)
    assert ferry.drain() == [third, first, second]


def test_pending_jobs_move_in_every_state_and_others_do_not(ferry: Ferry) -> None:
    done = ferry.add()
    ferry.finish_next()
    running = ferry.add()
    ferry.take()
    pending = [
        ferry.add(after=(running,)),
        ferry.add(delay=1_000),
        ferry.add(key="k"),
        ferry.add(key="k"),
    ]
    before = ferry.states(pending)

    count = ferry.run(ferry.store.reprioritise(Filter(), 5, ALL))

    assert count == 4
    assert ferry.states(pending) == before
    assert {ferry.job(job).priority for job in pending} == {5}
    assert (ferry.job(done).priority, ferry.job(running).priority) == (0, 0)


def test_jobs_that_have_the_priority_already_are_not_counted(ferry: Ferry) -> None:
    ferry.add_many(2, priority=5)
    ferry.add_many(3)

    counts = [ferry.run(ferry.store.reprioritise(Filter(), 5, ALL)) for _ in range(2)]

    assert counts == [3, 0]


# -- deleting


def test_jobs_are_deleted_with_all_that_is_known_of_them(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=2, tags=("red",))
    ferry.finish_next(OutcomeKind.RETRY)
    ferry.finish_next(OutcomeKind.RETRY)

    count = ferry.delete(job)

    assert count == 1
    assert not ferry.has(job)
    assert ferry.run(ferry.store.history(job)) is None
    assert ferry.run(ferry.store.find(Filter(tags=("red",)), ALL)) == []
    assert ferry.run(ferry.store.causes(Filter())) == []


def test_running_jobs_are_not_deleted(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.take()

    assert ferry.delete(job) == 0
    assert ferry.state(job) is State.RUNNING


def test_pending_jobs_are_deleted_in_every_state(ferry: Ferry) -> None:
    parent = ferry.add(queue="parents")
    ferry.add(after=(parent,))
    ferry.add(delay=1_000)
    ferry.add_many(2, key="k")

    count = ferry.run(ferry.store.delete(Filter(queues=("default",)), ALL))
    ferry.clock.advance(2)

    assert count == 4
    assert ferry.drain() == [parent]
    assert [job.id for job in ferry.jobs()] == [parent]


def test_deleting_a_pending_parent_tells_all_its_generations(ferry: Ferry) -> None:
    parent = ferry.add(queue="parents")
    child = ferry.add(after=(parent,))
    grandchild = ferry.add(after=(child,))
    heir = ferry.add(after=(child,), on_parent_failure="continue")

    ferry.run(ferry.store.delete(Filter(queues=("parents",)), ALL))

    assert ferry.states([child, grandchild, heir]) == [State.CANCELLED, State.CANCELLED, State.READY]


def test_a_deleted_job_may_be_enqueued_anew(ferry: Ferry) -> None:
    job = new_job()
    ferry.enqueue(job)
    ferry.delete(job.id)

    (answer,) = ferry.enqueue(job)

    assert not answer.duplicate
    assert ferry.drain() == [job.id]


@pytest.mark.parametrize("kind", sorted(RERUNS))
def test_a_running_job_that_was_to_be_cancelled_does_not_run_again(ferry: Ferry, kind: OutcomeKind) -> None:
    job = ferry.add(max_attempts=5)
    claim = ferry.take()
    ferry.cancel(job)

    ferry.settle(claim, kind, delay=1_000)

    assert ferry.states([job]) == [State.CANCELLED]


def test_a_job_that_was_to_be_cancelled_does_not_outlive_its_worker(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=5)
    ferry.take()
    ferry.cancel(job)

    (rescued,) = ferry.run(ferry.store.rescue([W1]))

    assert (rescued.again, rescued.dead) == (0, 0)
    assert ferry.states([job]) == [State.CANCELLED]
