"""Fairness: tenants of a fair queue share it by weight, whatever their neighbours do."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from ferryman.job import JobId, NewJob, OutcomeKind
from ferryman.store.records import QueueSettings, Take

from .driver import Ferry, new_job


def _declare(ferry: Ferry, **weights: float) -> None:
    ferry.run(ferry.store.declare([QueueSettings(name="default", fair=True, weights=weights)]))


def _tenants(ferry: Ferry, count: int) -> list[str | None]:
    """The tenants of the next jobs, which are run."""
    claims = ferry.claim(count)
    ferry.succeed(*claims)
    return [ferry.job(claim.id).tenant for claim in claims]


@pytest.mark.parametrize("flood", [10, 100, 1_000])
def test_one_job_waits_behind_few_whatever_the_neighbours_flood(ferry: Ferry, flood: int) -> None:
    _declare(ferry)
    ferry.add_many(flood, tenant="loud")
    quiet = ferry.add(tenant="quiet")

    order = ferry.drain()

    assert order.index(quiet) <= 1


def test_tenants_take_turns(ferry: Ferry) -> None:
    _declare(ferry)
    for tenant in "abc":
        ferry.add_many(4, tenant=tenant)

    assert _tenants(ferry, 12) == list("abc") * 4


def test_a_tenants_own_jobs_run_in_the_order_of_arrival(ferry: Ferry) -> None:
    _declare(ferry, a=2)
    ids: dict[str, list[JobId]] = {"a": [], "b": []}
    for n in range(60):
        tenant = "aab"[n % 3]
        ids[tenant].append(ferry.add(tenant=tenant))

    order = ferry.drain(batch=7)

    for mine in ids.values():
        assert [job for job in order if job in mine] == mine


@pytest.mark.parametrize("weight", [2, 3, 7])
def test_tenants_share_by_weight(ferry: Ferry, weight: int) -> None:
    _declare(ferry, heavy=weight)
    ferry.add_many(300, tenant="heavy")
    ferry.add_many(300, tenant="light")

    shares = Counter(_tenants(ferry, 25 * (weight + 1)))

    assert abs(shares["heavy"] - 25 * weight) <= 1
    assert abs(shares["light"] - 25) <= 1


def test_a_newcomer_has_saved_up_no_credit(ferry: Ferry) -> None:
    _declare(ferry)
    ferry.add_many(200, tenant="old")
    _tenants(ferry, 100)

    ferry.add_many(50, tenant="new")

    assert Counter(_tenants(ferry, 20)) == {"old": 10, "new": 10}


def test_a_tenant_that_was_idle_has_saved_up_no_credit(ferry: Ferry) -> None:
    _declare(ferry)
    ferry.add(tenant="idle")
    ferry.add_many(200, tenant="busy")
    _tenants(ferry, 100)

    ferry.add_many(50, tenant="idle")

    assert Counter(_tenants(ferry, 20)) == {"busy": 10, "idle": 10}


def test_jobs_without_a_tenant_are_one_tenant_among_the_others(ferry: Ferry) -> None:
    _declare(ferry)
    ferry.add_many(5)
    ferry.add_many(5, tenant="a")

    assert Counter(_tenants(ferry, 6)) == {None: 3, "a": 3}


def test_a_plain_queue_goes_by_arrival_alone(ferry: Ferry) -> None:
    first = ferry.add_many(5, tenant="a")
    second = ferry.add_many(5, tenant="b")

    assert ferry.drain() == [*first, *second]


def test_fairness_holds_within_each_priority(ferry: Ferry) -> None:
    _declare(ferry)
    ferry.add_many(3, tenant="a")
    ferry.add_many(3, tenant="b")
    ferry.add_many(3, tenant="a", priority=5)
    ferry.add_many(3, tenant="b", priority=5)

    assert _tenants(ferry, 12) == list("ab") * 6


@pytest.mark.parametrize("kind", [OutcomeKind.RELEASED, OutcomeKind.CRASHED], ids=lambda kind: kind.name)
def test_a_job_given_back_keeps_its_turn(ferry: Ferry, kind: OutcomeKind) -> None:
    _declare(ferry)
    ferry.add_many(20, tenant="a", max_attempts=3)
    ferry.add_many(20, tenant="b", max_attempts=3)
    claims = ferry.claim(10)

    for claim in claims[:2]:
        ferry.settle(claim, kind)

    assert [claim.id for claim in ferry.claim(2)] == [claim.id for claim in claims[:2]]


def test_due_jobs_take_their_turn_among_the_tenants(ferry: Ferry) -> None:
    _declare(ferry)
    ferry.add_many(50, tenant="loud", delay=1_000)
    ferry.add_many(5, tenant="quiet", delay=1_000)
    ferry.clock.advance(1)

    assert Counter(_tenants(ferry, 10)) == {"loud": 5, "quiet": 5}


def test_parked_jobs_take_their_turn_when_they_are_let_in(ferry: Ferry) -> None:
    _declare(ferry)
    ferry.add_many(3, tenant="a", key="k")
    ferry.add_many(10, tenant="b")

    order = _tenants(ferry, 1) + _tenants(ferry, 3)

    assert order[0] == "a"
    assert "a" in order[1:]


def test_jobs_that_wait_already_are_left_as_they_are_by_a_declaration(ferry: Ferry) -> None:
    before = ferry.add_many(3, tenant="a")
    _declare(ferry)
    after = ferry.add(tenant="b")

    order = ferry.drain()

    assert [job for job in order if job in before] == before
    assert sorted(order) == sorted([*before, after])


def test_jobs_that_come_back_to_a_queue_that_is_fair_no_more_do_not_wait_behind_all_that_come(
    ferry: Ferry,
) -> None:
    _declare(ferry)
    jobs = ferry.add_many(2, max_attempts=3)
    released, crashed = ferry.claim(2)
    ferry.run(ferry.store.declare([QueueSettings(name="default")]))
    ferry.add()

    ferry.settle(released, OutcomeKind.RELEASED)
    ferry.settle(crashed, OutcomeKind.CRASHED)

    assert [claim.id for claim in ferry.claim(2)] == jobs


def test_everything_in_a_fair_queue_is_run(ferry: Ferry) -> None:
    _declare(ferry, t1=5, t2=0.5)
    ids = [ferry.add(tenant=f"t{n % 7}", priority=n % 2) for n in range(200)]

    assert sorted(ferry.drain(batch=13)) == sorted(ids)


def _jobs_of_all_kinds(luck: random.Random, queue: str, dead: JobId) -> list[NewJob]:
    """More than a hundred, nearly all of them alike."""
    jobs: list[NewJob] = []
    for _ in range(130):
        fields: dict[str, Any] = {"tenant": luck.choice(("t1", "t2"))}
        if luck.random() < 0.3:
            fields["key"] = f"{queue} {luck.randrange(5)}"
            fields["room"] = 4 if luck.random() < 0.97 else luck.randrange(1, 9)
        if luck.random() < 0.03:
            fields["delay"] = 1_000
        if luck.random() < 0.06 and jobs:
            fields["after"] = (luck.choice((dead, luck.choice(jobs).id)),)
            fields["on_parent_failure"] = luck.choice(("cancel", "continue", "hold"))
        jobs.append(new_job(queue=queue, **fields))
    return jobs


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_comes_to_what_its_jobs_would_come_to_one_by_one(ferry: Ferry, seed: int) -> None:
    dead = ferry.add()
    ferry.finish_next(OutcomeKind.DEAD)
    queues = ("together", "apart")
    ferry.run(
        ferry.store.declare([QueueSettings(name=queue, fair=True, weights={"t1": 2.5}) for queue in queues])
    )
    together, apart = (_jobs_of_all_kinds(random.Random(seed), queue, dead) for queue in queues)

    ferry.enqueue(*together)
    for job in apart:
        ferry.enqueue(job)

    assert ferry.states([job.id for job in together]) == ferry.states([job.id for job in apart])
    orders = [
        [ids.index(claim.id) for claim in ferry.claim(200, plan=[Take(queue, 0, 200)])]
        for queue, ids in zip(queues, ([job.id for job in jobs] for jobs in (together, apart)), strict=True)
    ]
    assert orders[0] == orders[1]
    assert len(orders[0]) > 80
