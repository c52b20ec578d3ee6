"""Keys with room: no more jobs of a key at once than it has places, and none left behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest

from ferryman.job import JobId, Outcome, OutcomeKind, State
from ferryman.store.records import Filter, QueueSettings

from .driver import ALL, BOOM, LEASE, W1, W2, Ferry, new_job

READY, PARKED, RUNNING = State.READY, State.PARKED, State.RUNNING


def test_a_key_lets_in_as_many_jobs_as_it_has_room_for(ferry: Ferry) -> None:
    ids = ferry.add_many(5, key="k", room=2)

    assert ferry.states(ids) == [READY, READY, PARKED, PARKED, PARKED]
    assert [claim.id for claim in ferry.claim(5)] == ids[:2]


def test_keys_do_not_hinder_one_another_nor_jobs_without_a_key(ferry: Ferry) -> None:
    ferry.add_many(2, key="a")
    ferry.add_many(2, key="b")
    free = ferry.add_many(2)

    claims = ferry.claim(10)

    assert [claim.key for claim in claims] == ["a", "b", None, None]
    assert [claim.id for claim in claims[2:]] == free


@pytest.mark.parametrize(
    "kind", [OutcomeKind.SUCCEEDED, OutcomeKind.DEAD, OutcomeKind.CANCELLED], ids=lambda kind: kind.name
)
def test_a_job_that_finishes_lets_the_next_one_in(ferry: Ferry, kind: OutcomeKind) -> None:
    ids = ferry.add_many(3, key="k")

    ferry.finish_next(kind)

    assert ferry.states(ids[1:]) == [READY, PARKED]
    assert ferry.job(ids[1]).run_at == ferry.clock.now()


def test_parked_jobs_are_let_in_by_priority_then_by_arrival(ferry: Ferry) -> None:
    first = ferry.add(key="k")
    low = ferry.add(key="k", priority=-1)
    high_one, high_two = ferry.add_many(2, key="k", priority=5)
    plain = ferry.add(key="k")

    assert ferry.drain() == [first, high_one, high_two, plain, low]


def test_a_key_is_shared_by_all_queues(ferry: Ferry) -> None:
    here = ferry.add(key="k", queue="a")
    there = ferry.add(key="k", queue="b")

    assert ferry.states([here, there]) == [READY, PARKED]
    assert ferry.drain() == [here, there]


def test_a_batch_that_frees_several_places_lets_in_as_many(ferry: Ferry) -> None:
    ids = ferry.add_many(8, key="k", room=3)
    claims = ferry.claim(8)

    ferry.succeed(*claims)

    assert ferry.states(ids[3:]) == [READY, READY, READY, PARKED, PARKED]


@pytest.mark.parametrize("freed_first", [True, False])
def test_of_a_parked_job_and_one_that_arrives_as_the_place_becomes_free_one_gets_in(
    ferry: Ferry, freed_first: bool
) -> None:
    ferry.add(key="k")
    parked = ferry.add(key="k")
    parent = ferry.add()
    child = ferry.add(after=(parent,), key="k")
    holder, other = ferry.claim(2)
    outcomes = [
        Outcome(holder.id, holder.lease, OutcomeKind.DEAD, error=BOOM),
        Outcome(other.id, other.lease, OutcomeKind.SUCCEEDED),
    ]

    ferry.run(ferry.store.settle(W1, outcomes if freed_first else outcomes[::-1]))
    states = ferry.states([parked, child])
    drained = ferry.drain()

    assert sorted(states, key=str) == sorted([READY, PARKED], key=str)
    assert sorted(drained) == sorted([parked, child])


def test_hundreds_of_jobs_of_a_key_run_one_by_one(ferry: Ferry) -> None:
    ids = ferry.add_many(200, key="k")

    assert ferry.drain() == ids


def test_a_job_that_waits_for_its_retry_gives_its_place_to_the_next(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k", max_attempts=3)

    ferry.finish_next(OutcomeKind.RETRY, delay=1_000)

    assert ferry.states([first, second]) == [State.SCHEDULED, READY]


def test_a_snoozed_job_gives_its_place_to_the_next(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k")

    ferry.finish_next(OutcomeKind.SNOOZED, delay=1_000)

    assert ferry.states([first, second]) == [State.SCHEDULED, READY]


def test_a_job_that_comes_back_to_a_full_key_is_parked(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k", max_attempts=3)
    ferry.finish_next(OutcomeKind.RETRY, delay=1_000)
    ferry.take()

    ferry.clock.advance(1)
    ferry.claim()

    assert ferry.states([first, second]) == [PARKED, RUNNING]


@pytest.mark.parametrize("kind", [OutcomeKind.RETRY, OutcomeKind.CRASHED, OutcomeKind.RELEASED])
def test_a_job_that_runs_again_at_once_keeps_its_place(ferry: Ferry, kind: OutcomeKind) -> None:
    first, second = ferry.add_many(2, key="k", max_attempts=3)

    ferry.finish_next(kind)

    assert ferry.states([first, second]) == [READY, PARKED]


def test_ordered_jobs_run_one_at_a_time(ferry: Ferry) -> None:
    ids = ferry.add_many(4, key="k", ordered=True)

    assert [claim.id for claim in ferry.claim(5)] == ids[:1]


def test_ordered_jobs_run_in_the_order_of_arrival_through_retries(ferry: Ferry) -> None:
    ids = ferry.add_many(3, key="k", ordered=True, max_attempts=3)
    ran = []

    for kind in (OutcomeKind.RETRY, OutcomeKind.SNOOZED, OutcomeKind.CRASHED):
        ran.append(ferry.finish_next(kind, delay=5_000))
        assert ferry.states(ids[1:]) == [PARKED, PARKED]
        ferry.clock.advance(5)

    assert ran == [ids[0]] * 3
    assert ferry.states(ids[1:]) == [PARKED, PARKED]
    assert ferry.drain() == ids


def test_ordered_jobs_do_not_overtake_by_priority(ferry: Ferry) -> None:
    first = ferry.add(key="k", ordered=True)
    second = ferry.add(key="k", ordered=True)
    urgent = ferry.add(key="k", ordered=True, priority=9)

    assert ferry.drain() == [first, second, urgent]


@pytest.mark.parametrize("steer", ["cancel", "delete"])
def test_steering_away_an_admitted_job_lets_the_next_one_in(ferry: Ferry, steer: str) -> None:
    first, second, third = ferry.add_many(3, key="k")

    assert getattr(ferry, steer)(first) == 1

    assert ferry.states([second, third]) == [READY, PARKED]


@pytest.mark.parametrize("steer", ["cancel", "delete"])
def test_steering_away_a_parked_job_frees_no_place(ferry: Ferry, steer: str) -> None:
    first, second, third = ferry.add_many(3, key="k")

    assert getattr(ferry, steer)(second) == 1

    assert ferry.states([first, third]) == [READY, PARKED]
    assert ferry.drain() == [first, third]


def test_cancelling_all_jobs_of_a_key_leaves_it_empty(ferry: Ferry) -> None:
    ferry.add_many(5, key="k", room=2)

    assert ferry.run(ferry.store.cancel(Filter(queues=("default",)), ALL)) == 5

    assert ferry.state(ferry.add(key="k")) is READY


def test_an_ordered_job_that_is_cancelled_between_attempts_lets_the_next_one_in(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k", ordered=True, max_attempts=3)
    ferry.finish_next(OutcomeKind.RETRY, delay=60_000)
    held = ferry.state(second)

    ferry.cancel(first)

    assert (held, ferry.state(second)) == (PARKED, READY)


def test_a_rescue_gives_back_the_places_of_dead_workers(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k", max_attempts=1)
    ferry.take()
    ferry.register(W2, lease=10 * LEASE)

    ferry.clock.advance(LEASE / 1000 + 1)
    ferry.run(ferry.store.rescue())

    assert ferry.states([first, second]) == [State.DEAD, READY]
    assert ferry.take(W2).id == second


def test_a_lost_settle_frees_no_place(ferry: Ferry) -> None:
    ids = ferry.add_many(3, key="k", max_attempts=5)
    claim = ferry.take()
    ferry.succeed(claim)

    ferry.run(ferry.store.settle(W1, [Outcome(claim.id, claim.lease, OutcomeKind.DEAD, error=BOOM)]))

    assert ferry.states(ids) == [State.SUCCEEDED, READY, PARKED]


def test_the_last_enqueue_says_how_much_room_there_is(ferry: Ferry) -> None:
    ids = ferry.add_many(3, key="k", room=1)

    ids.append(ferry.add(key="k", room=3))

    states = ferry.states(ids)
    assert sorted(states) == [READY, READY, READY, PARKED]  # type: ignore[type-var]


def test_a_key_that_got_smaller_lets_nobody_in_until_it_has_room(ferry: Ferry) -> None:
    ferry.add_many(3, key="k", room=3)
    claims = ferry.claim(3)
    late = ferry.add(key="k", room=1)

    ferry.succeed(claims[0], claims[1])
    still = ferry.state(late)
    ferry.succeed(claims[2])

    assert (still, ferry.state(late)) == (PARKED, READY)


def test_a_replayed_job_is_parked_if_its_key_is_full(ferry: Ferry) -> None:
    first = ferry.add(key="k")
    ferry.finish_next(OutcomeKind.DEAD)
    second = ferry.add(key="k")

    ferry.replay(first)

    assert ferry.states([first, second]) == [PARKED, READY]
    ferry.finish_next()
    assert ferry.states([first, second]) == [READY, State.SUCCEEDED]


def test_several_due_jobs_of_a_key_are_let_in_within_its_room(ferry: Ferry) -> None:
    ids = ferry.add_many(4, key="k", room=2, delay=1_000)
    ferry.clock.advance(1)

    claims = ferry.claim(10)

    assert [claim.id for claim in claims] == ids[:2]
    assert ferry.states(ids[2:]) == [PARKED, PARKED]


def test_a_key_that_was_empty_in_between_lets_its_due_jobs_in(ferry: Ferry) -> None:
    ids = ferry.add_many(3, key="k", room=2, delay=1_000)
    ferry.add(key="k", room=2)
    ferry.finish_next()

    ferry.clock.advance(1)
    claims = ferry.claim(10)

    assert [claim.id for claim in claims] == ids[:2]
    assert ferry.state(ids[2]) is PARKED


def test_a_replay_does_not_change_what_the_last_enqueue_said_of_the_room(ferry: Ferry) -> None:
    first = ferry.add(key="k", room=3)
    ferry.finish_next(OutcomeKind.DEAD)
    ids = ferry.add_many(2, key="k", room=1)

    ferry.replay(first)

    assert ferry.states([first, *ids]) == [PARKED, READY, PARKED]


def test_a_replayed_job_enters_a_key_that_was_empty(ferry: Ferry) -> None:
    ids = ferry.add_many(3, key="k", room=2)
    for _ in ids:
        ferry.finish_next(OutcomeKind.DEAD)

    ferry.replay(*ids)

    assert ferry.states(ids) == [READY, READY, PARKED]
    assert ferry.drain() == ids


def test_children_let_go_by_a_parent_are_let_in_within_the_room_of_their_key(ferry: Ferry) -> None:
    parent = ferry.add()
    ids = ferry.add_many(3, key="k", after=(parent,))

    ferry.finish_next()

    assert ferry.states(ids) == [READY, PARKED, PARKED]
    assert ferry.drain() == ids


def test_a_parked_job_can_be_made_more_urgent(ferry: Ferry) -> None:
    first, second, third = ferry.add_many(3, key="k")

    ferry.run(ferry.store.reprioritise(Filter(ids=(third,)), 5, ALL))

    assert ferry.drain() == [first, third, second]


def _ways(ferry: Ferry, fields: dict[str, Any]) -> list[Callable[[], list[JobId]]]:
    """Ways to enqueue some jobs, each of which returns when they are there for good."""

    def in_a_transaction() -> list[JobId]:
        with ferry.store.transaction() as connection:
            guest = ferry.store.using(connection)
            answers = guest.runner.run(guest.enqueue([new_job(**fields) for _ in range(2)]))
            return [answer.id for answer in answers]

    ways: list[Callable[[], list[JobId]]] = [
        lambda: [ferry.add(**fields)],
        lambda: ferry.add_many(3, **fields),
        lambda: [answer.id for answer in ferry.enqueue(new_job(), new_job(**fields))[1:]],
    ]
    if ferry.store.capabilities.joins:
        ways.append(in_a_transaction)
    return ways


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "fields", [{"key": "k", "ordered": True}, {"queue": "fair", "tenant": "acme"}], ids=["key", "tenant"]
)
def test_jobs_that_have_an_order_run_in_the_order_of_arrival_however_they_arrived(
    ferry: Ferry, fields: dict[str, Any], seed: int
) -> None:
    ferry.run(ferry.store.declare([QueueSettings(name="fair", fair=True)]))
    luck = random.Random(seed)
    ways = _ways(ferry, fields)
    arrived: list[JobId] = []
    ran: list[JobId] = []

    for way in luck.sample(ways * 4, len(ways) * 4):
        arrived += way()
        if luck.random() < 0.2:
            ran += ferry.drain()
    ran += ferry.drain()

    assert [job for job in ran if job in set(arrived)] == arrived
