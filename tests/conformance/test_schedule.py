"""Schedule: jobs that are not to run yet, and jobs that are not to run any more."""

from __future__ import annotations

import pytest

from ferryman.job import OutcomeKind, State
from ferryman.store.records import Filter, Take

from .driver import ALL, Ferry, new_job


def test_a_delayed_job_waits_for_its_moment(ferry: Ferry) -> None:
    job = ferry.add(delay=5_000)

    ferry.clock.advance(4.999)
    early = ferry.claim()
    waiting = ferry.state(job)
    ferry.clock.advance(0.001)

    assert (early, waiting) == ([], State.SCHEDULED)
    assert ferry.take().id == job


def test_a_job_for_a_moment_waits_for_that_moment(ferry: Ferry) -> None:
    moment = ferry.clock.now() + 3_000
    job = ferry.add(at=moment)

    assert (ferry.state(job), ferry.job(job).run_at) == (State.SCHEDULED, moment)
    ferry.clock.advance(3)

    assert ferry.take().id == job


def test_a_moment_that_has_passed_is_now(ferry: Ferry) -> None:
    job = ferry.add(at=ferry.clock.now() - 60_000)

    assert ferry.state(job) is State.READY
    assert ferry.take().id == job


def test_due_jobs_are_promoted_in_every_queue_whatever_the_plan(ferry: Ferry) -> None:
    here, there = ferry.add(delay=10), ferry.add(queue="other", priority=3, delay=10)
    ferry.clock.advance(1)

    claimed = ferry.claimed(1, plan=[Take("default", 0, 1)])

    assert [claim.id for claim in claimed.jobs] == [here]
    assert ferry.state(there) is State.READY
    assert [(lane.queue, lane.priority, lane.depth) for lane in claimed.lanes] == [("other", 3, 1)]


def test_a_due_job_says_that_it_has_been_ready_since_it_was_due(ferry: Ferry) -> None:
    due = ferry.clock.now() + 1_000
    ferry.add(delay=1_000)
    ferry.clock.advance(5)

    assert ferry.take().ready_at == due


def test_a_claim_says_when_the_next_job_is_due(ferry: Ferry) -> None:
    ferry.add(delay=9_000, queue="other")
    ferry.add(delay=4_000)

    assert ferry.claimed(1, plan=[]).next_due == ferry.clock.now() + 4_000
    ferry.clock.advance(4)
    assert ferry.claimed(1, plan=[]).next_due == ferry.clock.now() + 5_000


def test_a_due_job_that_arrived_first_goes_first(ferry: Ferry) -> None:
    first = ferry.add(delay=1_000)
    second = ferry.add()
    ferry.clock.advance(1)

    assert ferry.drain() == [first, second]


def test_a_thousand_due_jobs_are_all_promoted(ferry: Ferry) -> None:
    ids = ferry.add_many(1_000, delay=1_000)
    ferry.clock.advance(1)

    assert ferry.drain() == ids


def test_a_retry_with_a_delay_waits_for_it(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=2)

    ferry.finish_next(OutcomeKind.RETRY, delay=30_000)

    assert (ferry.state(job), ferry.job(job).run_at) == (State.SCHEDULED, ferry.clock.now() + 30_000)
    assert ferry.claim() == []
    ferry.clock.advance(30)
    assert ferry.take().attempt == 2


@pytest.mark.parametrize("field", ["ttl", "deadline"])
def test_a_job_past_its_deadline_is_never_started(ferry: Ferry, field: str) -> None:
    job = ferry.add(**{field: 1_000 if field == "ttl" else ferry.clock.now() + 1_000})

    ferry.clock.advance(1.5)
    claims = ferry.claim()

    expired = ferry.job(job)
    assert claims == []
    assert (expired.state, expired.finished_at) == (State.EXPIRED, ferry.clock.now())


def test_a_job_before_its_deadline_is_started(ferry: Ferry) -> None:
    job = ferry.add(ttl=1_000)
    ferry.clock.advance(0.9)

    claim = ferry.take()
    ferry.clock.advance(60)

    assert claim.id == job
    assert ferry.settle(claim, OutcomeKind.SUCCEEDED)
    assert ferry.state(job) is State.SUCCEEDED


def test_jobs_expire_in_every_pending_state(ferry: Ferry) -> None:
    parent = ferry.add(queue="parents")
    scheduled = ferry.add(delay=60_000, ttl=1_000)
    waiting = ferry.add(after=(parent,), ttl=1_000)
    admitted = ferry.add(key="k", ttl=1_000)
    parked = ferry.add(key="k", ttl=1_000)
    before = ferry.states([scheduled, waiting, admitted, parked])

    ferry.clock.advance(2)
    ferry.claim(plan=[])

    assert before == [State.SCHEDULED, State.WAITING, State.READY, State.PARKED]
    assert ferry.states([scheduled, waiting, admitted, parked]) == [State.EXPIRED] * 4


def test_jobs_expire_in_a_paused_queue_too(ferry: Ferry) -> None:
    job = ferry.add(ttl=1_000)
    ferry.run(ferry.store.pause(["default"], True))

    ferry.clock.advance(2)
    ferry.claim()

    assert ferry.state(job) is State.EXPIRED


def test_an_expired_job_lets_the_next_of_its_key_in(ferry: Ferry) -> None:
    ferry.add(key="k", ttl=1_000)
    parked = ferry.add(key="k")
    ferry.clock.advance(2)

    claims = ferry.claim()

    assert [claim.id for claim in claims] == [parked]


def test_jobs_that_are_late_at_once_expire_one_after_the_other(ferry: Ferry) -> None:
    holder = ferry.add(key="k", ordered=True, ttl=1_000)
    child = ferry.add(key="k", ordered=True, after=(holder,), on_parent_failure="continue")
    late_child = ferry.add(after=(holder,), ttl=1_000)
    parked = ferry.add(key="k", ordered=True, ttl=1_000)
    last = ferry.add(key="k", ordered=True)

    ferry.clock.advance(1.001)
    ferry.claim(0, plan=[])

    # The place of the key went to the one that was parked, and by its end to the first one of those that were left.
    expected = [State.EXPIRED, State.READY, State.CANCELLED, State.EXPIRED, State.PARKED]
    assert ferry.states([holder, child, late_child, parked, last]) == expected


def test_a_deadline_holds_between_attempts_too(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=5, ttl=10_000)
    ferry.finish_next(OutcomeKind.RETRY, delay=5_000)

    ferry.clock.advance(20)
    claims = ferry.claim()

    assert claims == []
    assert ferry.state(job) is State.EXPIRED


def test_hundreds_of_expired_jobs_do_not_hide_the_live_one_behind_them(ferry: Ferry) -> None:
    ferry.add_many(500, ttl=1_000)
    last = ferry.add()
    ferry.clock.advance(2)

    assert ferry.drain() == [last]
    assert len(ferry.run(ferry.store.find(Filter(states=(State.EXPIRED,)), ALL))) == 500


def test_a_paused_queue_is_due_all_the_same(ferry: Ferry) -> None:
    ferry.enqueue(new_job(delay=1_000))
    ferry.run(ferry.store.pause(["default"], True))

    assert ferry.claimed(1).next_due == ferry.clock.now() + 1_000
