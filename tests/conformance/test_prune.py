"""Pruning: finished jobs are kept for their time and up to their number, so that no disk fills up."""

from __future__ import annotations

import pytest

from ferryman.job import JobId, OutcomeKind, State
from ferryman.store.records import ARRIVING, Pruned, Retention

from .driver import ALL, W1, W2, Ferry

HOUR = 3_600_000


def _prune(ferry: Ferry, limit: int = ALL, **retention: int) -> int:
    return ferry.run(ferry.store.prune(Retention(**retention), limit)).jobs


def _finished(ferry: Ferry, kind: OutcomeKind, count: int = 1) -> list[JobId]:
    ferry.add_many(count)
    done = []
    for claim in ferry.claim(count):
        ferry.settle(claim, kind)
        done.append(claim.id)
    return done


KINDS = [
    (OutcomeKind.SUCCEEDED, "succeeded"),
    (OutcomeKind.DEAD, "dead"),
    (OutcomeKind.CANCELLED, "other"),
]


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_finished_jobs_are_pruned_when_their_time_is_over(ferry: Ferry, kind: OutcomeKind, name: str) -> None:
    (old,) = _finished(ferry, kind)
    ferry.clock.advance(3_000)
    (young,) = _finished(ferry, kind)
    ferry.clock.advance(1_000)

    count = _prune(ferry, **{name: HOUR})

    assert count == 1
    assert (ferry.has(old), ferry.has(young)) == (False, True)


@pytest.mark.parametrize(("kind", "name"), KINDS)
def test_finished_jobs_are_pruned_when_they_are_too_many(ferry: Ferry, kind: OutcomeKind, name: str) -> None:
    ids = []
    for _ in range(6):
        ids += _finished(ferry, kind)
        ferry.clock.advance(1)

    count = _prune(ferry, **{f"{name}_count": 2})

    assert count == 4
    assert [ferry.has(job) for job in ids] == [False] * 4 + [True] * 2


def test_each_kind_of_end_has_its_own_time(ferry: Ferry) -> None:
    (succeeded,) = _finished(ferry, OutcomeKind.SUCCEEDED)
    (dead,) = _finished(ferry, OutcomeKind.DEAD)
    (cancelled,) = _finished(ferry, OutcomeKind.CANCELLED)
    ferry.clock.advance(3 * 3_600)

    _prune(ferry, succeeded=HOUR, dead=5 * HOUR, other=2 * HOUR)

    assert [ferry.has(job) for job in (succeeded, dead, cancelled)] == [False, True, False]


def test_expired_jobs_are_pruned_with_the_others(ferry: Ferry) -> None:
    job = ferry.add(ttl=1_000)
    ferry.clock.advance(2)
    ferry.claim()
    assert ferry.state(job) is State.EXPIRED
    ferry.clock.advance(7_200)

    assert _prune(ferry, other=HOUR) == 1
    assert not ferry.has(job)


def test_a_limit_prunes_the_oldest_first(ferry: Ferry) -> None:
    ids = []
    for _ in range(5):
        ids += _finished(ferry, OutcomeKind.SUCCEEDED)
        ferry.clock.advance(1)
    ferry.clock.advance(7_200)

    first = _prune(ferry, limit=2, succeeded=HOUR)
    left = [ferry.has(job) for job in ids]
    rest = [_prune(ferry, limit=2, succeeded=HOUR) for _ in range(3)]

    assert (first, left) == (2, [False, False, True, True, True])
    assert rest == [2, 1, 0]


def test_a_pruning_says_whether_there_may_be_more(ferry: Ferry) -> None:
    _finished(ferry, OutcomeKind.SUCCEEDED, 5)
    ferry.clock.advance(7_200)

    answers = [ferry.run(ferry.store.prune(Retention(succeeded=HOUR), 2)) for _ in range(3)]

    assert answers == [Pruned(2, more=True), Pruned(2, more=True), Pruned(1, more=False)]


def test_a_pruning_of_too_many_says_whether_there_may_be_more(ferry: Ferry) -> None:
    _finished(ferry, OutcomeKind.SUCCEEDED, 5)

    answers = [ferry.run(ferry.store.prune(Retention(succeeded_count=1), 2)) for _ in range(3)]

    assert answers == [Pruned(2, more=True), Pruned(2, more=True), Pruned(0, more=False)]


def test_nothing_that_has_ended_is_pruned_while_jobs_are_moved_here(ferry: Ferry) -> None:
    (job,) = _finished(ferry, OutcomeKind.SUCCEEDED)
    ferry.run(ferry.store.kv_put(ARRIVING, b"", expected=None, ttl=10 * HOUR))
    ferry.clock.advance(2 * 3_600)

    assert _prune(ferry, succeeded=HOUR, succeeded_count=0) == 0
    assert ferry.has(job)
    ferry.clock.advance(10 * 3_600)

    assert _prune(ferry, succeeded=HOUR) == 1, "a move that never came to its end is not waited for"


def test_unfinished_jobs_are_never_pruned(ferry: Ferry) -> None:
    running = ferry.add(queue="first")
    ferry.take()
    ids = [
        running,
        ferry.add(delay=10**12),
        ferry.add(key="k"),
        ferry.add(key="k"),
        ferry.add(after=(running,)),
    ]
    ferry.clock.advance(100 * 24 * 3600)

    count = _prune(ferry, succeeded=0, dead=0, other=0, succeeded_count=0, dead_count=0, other_count=0)

    assert count == 0
    assert all(ferry.has(job) for job in ids)


@pytest.mark.parametrize("child", ["waiting", "ready", "running"])
def test_a_parent_stays_while_a_child_may_want_its_result(ferry: Ferry, child: str) -> None:
    parent = ferry.add()
    other = ferry.add(queue="other", delay=10**12)
    after = (parent, other) if child == "waiting" else (parent,)
    ferry.add(queue="children", after=after)
    claim = ferry.take()
    ferry.succeed(claim, result=b"result")
    if child == "running":
        ferry.take()
    ferry.clock.advance(48 * 3600)

    count = _prune(ferry, succeeded=HOUR, succeeded_count=0)

    assert count == 0
    assert ferry.job(parent).result == b"result"


def test_a_dead_parent_stays_while_a_child_is_held_by_it(ferry: Ferry) -> None:
    parent = ferry.add()
    ferry.add(after=(parent,), on_parent_failure="hold")
    ferry.finish_next(OutcomeKind.DEAD)
    ferry.clock.advance(48 * 3600)

    assert _prune(ferry, dead=HOUR, dead_count=0) == 0
    assert ferry.has(parent)


def test_a_parent_goes_once_its_children_have_finished(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,))
    ferry.drain()
    ferry.clock.advance(48 * 3600)

    while _prune(ferry, succeeded=HOUR):
        pass

    assert not ferry.has(parent)
    assert not ferry.has(child)


def test_parents_that_must_stay_do_not_use_up_the_limit(ferry: Ferry) -> None:
    parents = ferry.add_many(5)
    ferry.succeed(*ferry.claim(5))
    ferry.add_many(1, after=tuple(parents), delay=10**12)
    loose = ferry.add_many(3)
    ferry.succeed(*ferry.claim(3))
    ferry.clock.advance(48 * 3600)

    counts = [_prune(ferry, limit=2, succeeded=HOUR) for _ in range(3)]

    assert sum(counts) == 3
    assert not any(ferry.has(job) for job in loose)


def test_a_result_asked_to_be_kept_longer_outlives_the_retention(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.settle(ferry.take(), OutcomeKind.SUCCEEDED, result=b"r", keep_result=10 * HOUR)
    ferry.clock.advance(2 * 3_600)

    _prune(ferry, succeeded=HOUR)

    assert ferry.job(job).result == b"r"


def test_a_result_asked_to_be_kept_shorter_goes_before_the_retention(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.settle(ferry.take(), OutcomeKind.SUCCEEDED, result=b"r", keep_result=1_000)
    ferry.clock.advance(60)

    _prune(ferry, succeeded=HOUR)

    assert not ferry.has(job) or ferry.job(job).result is None


def test_old_statistics_are_pruned(ferry: Ferry) -> None:
    ferry.add()
    ferry.clock.advance(2 * 3_600)
    ferry.add()

    _prune(ferry, stats=HOUR)

    rows = ferry.run(ferry.store.stats(0, ferry.clock.now() + HOUR))
    assert [row.enqueued for row in rows] == [1]
    assert rows[0].minute > ferry.clock.now() - HOUR


def test_records_of_workers_that_are_gone_are_pruned(ferry: Ferry) -> None:
    ferry.register(W2)
    ferry.run(ferry.store.leave(W2))
    ferry.clock.advance(2 * 3_600)
    ferry.heartbeat(W1)

    _prune(ferry, workers=HOUR)

    assert [record.info.id for record in ferry.run(ferry.store.workers())] == [W1]


def test_pruning_spares_values_and_locks_that_still_hold(ferry: Ferry) -> None:
    ferry.run(ferry.store.kv_put("over", b"1", expected=None, ttl=1_000))
    ferry.run(ferry.store.kv_put("stays", b"2", expected=None))
    token = ferry.run(ferry.store.lock("held", "ann", 10 * HOUR))
    ferry.clock.advance(3_600)

    _prune(ferry)

    assert ferry.run(ferry.store.kv_get("over")) is None
    assert ferry.run(ferry.store.kv_get("stays")) is not None
    assert ferry.run(ferry.store.lock("held", "bob", 1_000)) is None
    assert ferry.run(ferry.store.lock("held", "ann", 1_000)) == token


def test_tokens_and_versions_keep_growing_after_a_prune(ferry: Ferry) -> None:
    token = ferry.run(ferry.store.lock("name", "ann", 1_000))
    version = ferry.run(ferry.store.kv_put("key", b"1", expected=None, ttl=1_000))
    ferry.clock.advance(30 * 24 * 3600)

    _prune(ferry)
    later_token = ferry.run(ferry.store.lock("name", "bob", 1_000))
    later_version = ferry.run(ferry.store.kv_put("key", b"2", expected=None))

    assert None not in (token, version, later_token, later_version)
    assert (later_token or 0) > (token or 0)
    assert (later_version or 0) > (version or 0)
