"""Filters and limits: which jobs a verb means, and how many it changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ferryman.job import JobId, OutcomeKind, State
from ferryman.store.records import Filter

from .driver import ALL, BOOM, Ferry, new_job


def _cancel(ferry: Ferry, which: Filter, limit: int) -> int:
    return ferry.run(ferry.store.cancel(which, limit))


def _delete(ferry: Ferry, which: Filter, limit: int) -> int:
    return ferry.run(ferry.store.delete(which, limit))


def _reprioritise(ferry: Ferry, which: Filter, limit: int) -> int:
    return ferry.run(ferry.store.reprioritise(which, 3, limit))


def _replay(ferry: Ferry, which: Filter, limit: int) -> int:
    return ferry.run(ferry.store.replay(which, limit))


Verb = Callable[[Ferry, Filter, int], int]


@pytest.mark.parametrize("verb", [_cancel, _delete, _reprioritise, _replay])
def test_a_limit_takes_the_oldest_first_until_none_is_left(ferry: Ferry, verb: Verb) -> None:
    ids = ferry.add_many(5)
    if verb is _replay:
        for _ in ids:
            ferry.finish_next(OutcomeKind.DEAD)
    before = ferry.run(ferry.store.get(ids))

    counts = [verb(ferry, Filter(), 2)]
    after = ferry.run(ferry.store.get(ids))
    counts += [verb(ferry, Filter(), 2) for _ in range(3)]

    assert counts == [2, 2, 1, 0]
    assert [one != two for one, two in zip(before, after, strict=True)] == [True, True, False, False, False]


@pytest.mark.parametrize("verb", [_cancel, _delete, _reprioritise, _replay])
def test_a_limit_is_not_used_up_by_jobs_that_cannot_be_changed(ferry: Ferry, verb: Verb) -> None:
    unchangeable = ferry.add()
    if verb in (_cancel, _reprioritise):
        ferry.finish_next()
    else:
        ferry.take()
    changeable = ferry.add(queue="other")
    if verb is _replay:
        ferry.cancel(changeable)
    before = ferry.run(ferry.store.get([unchangeable, changeable]))

    count = verb(ferry, Filter(), 1)

    after = ferry.run(ferry.store.get([unchangeable, changeable]))
    assert count == 1
    assert (before[0] == after[0], before[1] == after[1]) == (True, False)


def _shelf(ferry: Ferry) -> dict[str, JobId]:
    """Six jobs that differ in one thing each; the clock moves on between them."""
    jobs = {
        "plain": new_job(),
        "queue": new_job(queue="email"),
        "task": new_job(task="send"),
        "red": new_job(tags=("red",)),
        "both": new_job(tags=("blue", "red")),
        "late": new_job(delay=60_000),
    }
    for job in jobs.values():
        ferry.enqueue(job)
        ferry.clock.advance(1)
    return {name: job.id for name, job in jobs.items()}


FILTERS: list[tuple[Callable[[Ferry, dict[str, JobId]], Filter], set[str]]] = [
    (lambda f, ids: Filter(), {"plain", "queue", "task", "red", "both", "late"}),
    (lambda f, ids: Filter(ids=(ids["red"], ids["task"], JobId("0" * 32))), {"red", "task"}),
    (lambda f, ids: Filter(queues=("email",)), {"queue"}),
    (lambda f, ids: Filter(queues=("email", "nowhere")), {"queue"}),
    (lambda f, ids: Filter(tasks=("send",)), {"task"}),
    (lambda f, ids: Filter(tags=("red",)), {"red", "both"}),
    (lambda f, ids: Filter(tags=("blue", "red")), {"red", "both"}),
    (lambda f, ids: Filter(tags=("blue",)), {"both"}),
    (lambda f, ids: Filter(tags=("re",)), set()),
    (lambda f, ids: Filter(states=(State.SCHEDULED,)), {"late"}),
    (lambda f, ids: Filter(states=(State.SCHEDULED, State.DEAD)), {"late"}),
    (lambda f, ids: Filter(since=f.clock.now() - 2_000), {"both", "late"}),
    (lambda f, ids: Filter(until=f.clock.now() - 4_000), {"plain", "queue"}),
    (lambda f, ids: Filter(since=f.clock.now() - 5_000, until=f.clock.now() - 3_000), {"queue", "task"}),
    (lambda f, ids: Filter(tags=("red",), ids=(ids["red"], ids["plain"])), {"red"}),
    (lambda f, ids: Filter(queues=("email",), tasks=("send",)), set()),
]


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_a_filter_means_the_jobs_for_which_all_its_conditions_hold(ferry: Ferry, number: int) -> None:
    make, expected = FILTERS[number]
    ids = _shelf(ferry)
    which = make(ferry, ids)

    found = ferry.run(ferry.store.find(which, ALL))
    count = ferry.run(ferry.store.cancel(which, ALL))

    assert {job.id for job in found} == {ids[name] for name in expected}
    assert count == len(expected)
    cancelled = ferry.run(ferry.store.find(Filter(states=(State.CANCELLED,)), ALL))
    assert {job.id for job in cancelled} == {ids[name] for name in expected}


def test_a_cause_means_dead_letters_alone(ferry: Ferry) -> None:
    dead, retried = ferry.add_many(2, max_attempts=2)
    ferry.finish_next(OutcomeKind.DEAD, error=BOOM)
    ferry.finish_next(OutcomeKind.RETRY, error=BOOM)

    found = ferry.run(ferry.store.find(Filter(causes=(BOOM.cause, "else")), ALL))

    assert [job.id for job in found] == [dead]
    assert ferry.state(retried) is State.READY
