"""Order: a lane is served by arrival, lanes as the plan says."""

from __future__ import annotations

from ferryman.job import OutcomeKind, State
from ferryman.store.records import LaneState, Take

from .driver import W1, W2, Ferry, new_job


def test_a_lane_is_served_in_the_order_of_arrival(ferry: Ferry) -> None:
    ids = [*ferry.add_many(3), *ferry.add_many(4)]

    assert ferry.drain(batch=2) == ids


def test_a_thousand_jobs_go_in_and_a_thousand_come_out(ferry: Ferry) -> None:
    ids = ferry.add_many(1_000)

    assert ferry.drain() == ids
    assert set(ferry.states(ids)) == {State.SUCCEEDED}


def test_the_plan_says_which_lane_comes_first(ferry: Ferry) -> None:
    low, high = ferry.add(priority=-9), ferry.add(priority=9)

    claims = ferry.claim(2, plan=[Take("default", -9, 1), Take("default", 9, 1)])

    assert [claim.id for claim in claims] == [low, high]


def test_a_take_gets_no_more_than_its_count(ferry: Ferry) -> None:
    first = ferry.add_many(5, queue="a")
    second = ferry.add_many(5, queue="b")

    claims = ferry.claim(10, plan=[Take("a", 0, 2), Take("b", 0, 3)])

    assert [claim.id for claim in claims] == [*first[:2], *second[:3]]


def test_a_claim_gets_no_more_than_its_limit(ferry: Ferry) -> None:
    first = ferry.add_many(3, queue="a")
    second = ferry.add_many(3, queue="b")

    claims = ferry.claim(4, plan=[Take("a", 0, 10), Take("b", 0, 10)])

    assert [claim.id for claim in claims] == [*first, second[0]]


def test_a_lane_can_be_named_twice_in_a_plan(ferry: Ferry) -> None:
    urgent = ferry.add_many(3, priority=1)
    plain = ferry.add_many(3)

    claims = ferry.claim(9, plan=[Take("default", 1, 1), Take("default", 0, 1), Take("default", 1, 5)])

    assert [claim.id for claim in claims] == [urgent[0], plain[0], urgent[1], urgent[2]]


def test_a_plan_for_lanes_that_hold_nothing_gets_nothing(ferry: Ferry) -> None:
    ferry.add()

    assert ferry.claim(5, plan=[Take("nowhere", 0, 5), Take("default", 5, 5)]) == []
    assert ferry.claim(5, plan=[]) == []
    assert ferry.claim(0) == []


def test_a_released_job_keeps_its_place(ferry: Ferry) -> None:
    ids = ferry.add_many(3)
    claim = ferry.take()

    ferry.settle(claim, OutcomeKind.RELEASED)

    assert ferry.drain() == ids


def test_a_retried_job_goes_before_those_that_arrived_later(ferry: Ferry) -> None:
    ids = ferry.add_many(3, max_attempts=2)

    ferry.finish_next(OutcomeKind.RETRY)

    assert ferry.drain() == ids


def test_two_workers_share_a_lane_in_order(ferry: Ferry) -> None:
    ids = ferry.add_many(4)
    ferry.register(W2)

    claims = [ferry.take(W1), ferry.take(W2), ferry.take(W1), ferry.take(W2)]

    assert [claim.id for claim in claims] == ids


def test_a_claim_tells_the_lanes_that_still_have_ready_jobs(ferry: Ferry) -> None:
    started = ferry.clock.now()
    ferry.add_many(2)
    ferry.clock.advance(1)
    ferry.add_many(3, queue="email", priority=2)
    ferry.add(queue="later", delay=1_000)

    claimed = ferry.claimed(1, plan=[Take("default", 0, 1)])

    assert sorted(claimed.lanes, key=lambda lane: lane.queue) == [
        LaneState("default", 0, 1, started),
        LaneState("email", 2, 3, started + 1_000),
    ]
    assert claimed.now == ferry.clock.now()
    assert claimed.next_due == ferry.clock.now() + 1_000


def test_a_lane_is_not_told_once_it_is_empty(ferry: Ferry) -> None:
    ferry.add_many(2)

    assert ferry.claimed(2).lanes == []
    assert ferry.claimed(2).next_due is None


def test_a_worker_is_told_of_its_own_queues_only(ferry: Ferry) -> None:
    ferry.enqueue(new_job(queue="a"), new_job(queue="b"), new_job(queue="c"))
    ferry.register(W2, queues=["a", "c", "empty"])

    lanes = ferry.claimed(1, worker=W2, plan=[]).lanes

    assert sorted(lane.queue for lane in lanes) == ["a", "c"]


def test_a_claim_carries_what_an_executor_needs(ferry: Ferry) -> None:
    enqueued = ferry.clock.now()
    job = new_job(
        task="send", args=b"\x00args", options=b"opts", queue="email", key="k", max_attempts=3, delay=500
    )
    ferry.enqueue(job)
    ferry.clock.advance(2)

    claim = ferry.take()

    assert (claim.id, claim.task, claim.queue) == (job.id, "send", "email")
    assert (claim.args, claim.options, claim.key) == (b"\x00args", b"opts", "k")
    assert (claim.attempt, claim.max_attempts, claim.deaths) == (1, 3, 0)
    assert (claim.enqueued_at, claim.ready_at) == (enqueued, enqueued + 500)


def test_a_claimed_job_reads_as_running(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.clock.advance(1)

    ferry.take()

    running = ferry.job(job)
    assert (running.state, running.worker, running.attempt) == (State.RUNNING, W1, 1)
    assert running.started_at == ferry.clock.now()
    assert running.finished_at is None
