"""Parents: jobs that wait for jobs, and what they do when one of those fails."""

from __future__ import annotations

import pytest

from ferryman.errors import UnknownParent
from ferryman.job import ErrorInfo, JobId, OnParentFailure, OutcomeKind, State, UniqueKey, new_id
from ferryman.store.records import Enqueued

from .driver import BOOM, LEASE, Ferry, new_job

WAITING, READY, CANCELLED = State.WAITING, State.READY, State.CANCELLED


def test_a_child_waits_for_its_parent(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,))
    before = ferry.state(child)
    ferry.clock.advance(3)

    ferry.finish_next()

    assert (before, ferry.state(child)) == (WAITING, READY)
    assert ferry.job(child).run_at == ferry.clock.now()
    assert ferry.take().id == child


def test_a_child_of_a_parent_that_has_succeeded_already_does_not_wait(ferry: Ferry) -> None:
    parent = ferry.add()
    ferry.finish_next()

    assert ferry.state(ferry.add(after=(parent,))) is READY


def test_a_chain_in_one_batch_runs_link_by_link(ferry: Ferry) -> None:
    ids = [new_id() for _ in range(6)]
    chain = [new_job(id=job, after=ids[n - 1 : n] if n else ()) for n, job in enumerate(ids)]

    ferry.enqueue(*chain)

    assert ferry.states(ids) == [READY] + [WAITING] * 5
    assert [ferry.drain(batch=1), ferry.claim()] == [ids, []]


def test_a_diamond_waits_for_both_of_its_sides(ferry: Ferry) -> None:
    top = new_job()
    left, right = new_job(after=(top.id,)), new_job(after=(top.id,))
    bottom = new_job(after=(left.id, right.id))
    ferry.enqueue(top, left, right, bottom)

    ferry.finish_next()
    both = ferry.claim(5)
    ferry.succeed(both[0])
    halfway = ferry.state(bottom.id)
    ferry.succeed(both[1])

    assert [claim.id for claim in both] == [left.id, right.id]
    assert (halfway, ferry.state(bottom.id)) == (WAITING, READY)


def test_a_fan_in_of_a_thousand_goes_on_after_the_last(ferry: Ferry) -> None:
    parents = ferry.add_many(1_000)
    child = ferry.add(after=tuple(parents), priority=9)

    while parents_left := ferry.claim(250):
        assert child not in {claim.id for claim in parents_left}
        ferry.succeed(*parents_left[:-1])
        assert ferry.state(child) is WAITING
        ferry.succeed(parents_left[-1])
        if ferry.state(child) is READY:
            break

    assert set(ferry.states(parents)) == {State.SUCCEEDED}
    assert ferry.drain() == [child]


def test_a_fan_out_of_a_thousand_goes_on_at_once(ferry: Ferry) -> None:
    parent = ferry.add()
    children = ferry.add_many(1_000, after=(parent,))

    ferry.finish_next()

    assert ferry.drain() == children


def test_a_parent_named_twice_counts_once(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent, parent))

    ferry.finish_next()

    assert ferry.state(child) is READY


def test_parents_that_finish_in_one_batch_let_their_child_go_once(ferry: Ferry) -> None:
    parents = ferry.add_many(3)
    child = ferry.add(after=tuple(parents), key="k")
    ferry.succeed(*ferry.claim(3))

    assert ferry.drain() == [child]


def test_a_child_with_a_delay_is_scheduled_when_its_parents_are_done_early(ferry: Ferry) -> None:
    parent = ferry.add()
    due = ferry.clock.now() + 10_000
    child = ferry.add(after=(parent,), delay=10_000)
    before = ferry.state(child)

    ferry.finish_next()

    assert (before, ferry.state(child), ferry.job(child).run_at) == (WAITING, State.SCHEDULED, due)
    ferry.clock.advance(10)
    assert ferry.take().id == child


def test_a_child_with_a_delay_is_ready_when_its_parents_are_done_late(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,), delay=10_000)
    ferry.clock.advance(20)

    ferry.finish_next()

    assert ferry.state(child) is READY


@pytest.mark.parametrize("in_the_batch", [False, True])
def test_a_parent_that_the_store_does_not_have_is_refused(ferry: Ferry, in_the_batch: bool) -> None:
    later = new_job()
    child = new_job(after=(later.id,))
    batch = [child, later] if in_the_batch else [child]

    with pytest.raises(UnknownParent, match=later.id):
        ferry.enqueue(*batch)

    assert ferry.jobs() == []


def test_a_child_in_a_batch_waits_for_the_job_that_its_parent_is_a_duplicate_of(ferry: Ferry) -> None:
    holder = ferry.add(unique=UniqueKey("u"))
    parent = new_job(unique=UniqueKey("u"))
    child = new_job(after=(parent.id,))

    answers = ferry.enqueue(parent, child)

    assert answers == [Enqueued(holder, duplicate=True), Enqueued(child.id)]
    assert list(ferry.history(child.id).parents) == [holder]
    assert ferry.drain(batch=1) == [holder, child.id]


def test_a_job_cannot_be_its_own_parent(ferry: Ferry) -> None:
    job = new_id()

    with pytest.raises(UnknownParent):
        ferry.enqueue(new_job(id=job, after=(job,)))


# -- a parent that fails


def _die(ferry: Ferry, parent: JobId) -> None:
    assert ferry.finish_next(OutcomeKind.DEAD) == parent


def _crash(ferry: Ferry, parent: JobId) -> None:
    assert ferry.finish_next(OutcomeKind.CRASHED) == parent


def _cancel_itself(ferry: Ferry, parent: JobId) -> None:
    assert ferry.finish_next(OutcomeKind.CANCELLED) == parent


def _be_cancelled(ferry: Ferry, parent: JobId) -> None:
    assert ferry.cancel(parent) == 1


def _be_deleted(ferry: Ferry, parent: JobId) -> None:
    assert ferry.delete(parent) == 1


def _expire(ferry: Ferry, parent: JobId) -> None:
    ferry.clock.advance(601)
    ferry.claim(plan=[])
    assert ferry.state(parent) is State.EXPIRED


def _be_lost(ferry: Ferry, parent: JobId) -> None:
    assert ferry.take().id == parent
    ferry.clock.advance(LEASE / 1000 + 1)
    ferry.run(ferry.store.rescue())
    assert ferry.state(parent) is State.DEAD


FATES = [_die, _crash, _cancel_itself, _be_cancelled, _be_deleted, _expire, _be_lost]


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize(("told", "becomes"), [("cancel", CANCELLED), ("continue", READY), ("hold", WAITING)])
def test_a_child_does_as_it_was_told_when_its_parent_fails(
    ferry: Ferry, fate: object, told: OnParentFailure, becomes: State
) -> None:
    assert callable(fate)
    parent = ferry.add(ttl=600_000)
    child = ferry.add(after=(parent,), on_parent_failure=told)

    fate(ferry, parent)

    assert ferry.state(child) is becomes
    if becomes is CANCELLED:
        assert ferry.job(child).finished_at == ferry.clock.now()
        assert ferry.job(child).reason == f"parent {parent} did not succeed"


@pytest.mark.parametrize("fate", [_die, _be_cancelled, _expire])
@pytest.mark.parametrize(("told", "becomes"), [("cancel", CANCELLED), ("continue", READY), ("hold", WAITING)])
def test_a_child_that_comes_late_does_as_it_was_told(
    ferry: Ferry, fate: object, told: OnParentFailure, becomes: State
) -> None:
    assert callable(fate)
    parent = ferry.add(ttl=600_000)
    fate(ferry, parent)

    child = ferry.add(after=(parent,), on_parent_failure=told)

    assert ferry.state(child) is becomes


def test_a_parent_that_will_be_retried_has_not_failed(ferry: Ferry) -> None:
    parent = ferry.add(max_attempts=2)
    child = ferry.add(after=(parent,))

    ferry.finish_next(OutcomeKind.RETRY)
    between = ferry.state(child)
    ferry.finish_next()

    assert (between, ferry.state(child)) == (WAITING, READY)


def test_a_failure_goes_down_through_the_generations(ferry: Ferry) -> None:
    ids = [ferry.add()]
    for _ in range(30):
        ids.append(ferry.add(after=(ids[-1],)))
    survivor = ferry.add(after=(ids[-1],), on_parent_failure="continue")

    _die(ferry, ids[0])

    assert ferry.states(ids) == [State.DEAD] + [CANCELLED] * 30
    assert ferry.state(survivor) is READY


def test_a_batch_born_under_a_dead_parent_goes_down_with_it(ferry: Ferry) -> None:
    parent = ferry.add()
    _die(ferry, parent)
    child = new_job(after=(parent,))
    grandchild = new_job(after=(child.id,))
    heir = new_job(after=(child.id,), on_parent_failure="continue")

    answers = ferry.enqueue(child, grandchild, heir)

    assert answers == [Enqueued(child.id), Enqueued(grandchild.id), Enqueued(heir.id)]
    assert ferry.states([child.id, grandchild.id, heir.id]) == [CANCELLED, CANCELLED, READY]


def test_a_cancelled_child_frees_its_unique_key(ferry: Ferry) -> None:
    parent = ferry.add()
    ferry.add(after=(parent,), unique=UniqueKey("u"))

    _die(ferry, parent)

    assert not ferry.enqueue(new_job(unique=UniqueKey("u")))[0].duplicate


def test_a_child_that_continues_still_waits_for_its_other_parents(ferry: Ferry) -> None:
    first, second = ferry.add_many(2)
    child = ferry.add(after=(first, second), on_parent_failure="continue")

    _die(ferry, first)
    between = ferry.state(child)
    ferry.finish_next()

    assert (between, ferry.state(child)) == (WAITING, READY)


def test_a_held_child_goes_on_when_its_parent_is_replayed_and_succeeds(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,), on_parent_failure="hold")
    _die(ferry, parent)

    ferry.replay(parent)
    replayed = ferry.state(child)
    ferry.finish_next()

    assert (replayed, ferry.state(child)) == (WAITING, READY)


def test_a_held_child_that_comes_late_goes_on_when_its_parent_is_replayed(ferry: Ferry) -> None:
    parent = ferry.add()
    _die(ferry, parent)
    child = ferry.add(after=(parent,), on_parent_failure="hold")

    ferry.replay(parent)
    ferry.finish_next()

    assert ferry.state(child) is READY


def test_a_parent_that_is_replayed_does_not_count_twice(ferry: Ferry) -> None:
    first, second = ferry.add_many(2)
    child = ferry.add(after=(first, second), on_parent_failure="continue")
    _die(ferry, first)
    ferry.replay(first)

    assert ferry.finish_next() == first

    assert ferry.state(child) is WAITING
    assert ferry.finish_next() == second
    assert ferry.state(child) is READY


def test_a_replay_of_a_parent_does_not_start_its_children_again(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,))
    ferry.drain()

    ferry.replay(parent)

    assert ferry.drain() == [parent]
    assert ferry.state(child) is State.SUCCEEDED


# -- what parents hand on


def test_parents_results_come_in_the_order_in_which_they_were_named(ferry: Ferry) -> None:
    parents = [ferry.add(task=f"part-{n}") for n in range(5)]
    named = (parents[3], parents[0], parents[4], parents[1], parents[2])
    child = ferry.add(after=named)
    for claim in ferry.claim(5):
        ferry.succeed(claim, result=claim.task.encode())

    results = ferry.parents_of(child)

    assert tuple(result.id for result in results) == named
    assert [result.result for result in results] == [b"part-3", b"part-0", b"part-4", b"part-1", b"part-2"]
    assert {result.state for result in results} == {State.SUCCEEDED}
    assert [result.task for result in results[:2]] == ["part-3", "part-0"]


def test_parents_results_come_in_pages(ferry: Ferry) -> None:
    parents = ferry.add_many(25)
    child = ferry.add(after=tuple(parents))

    pages = [ferry.parents_of(child, offset, 10) for offset in (0, 10, 20, 30)]

    assert [len(page) for page in pages] == [10, 10, 5, 0]
    assert [result.id for page in pages for result in page] == parents


def test_a_dead_parent_hands_on_its_error(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,), on_parent_failure="continue")
    ferry.finish_next(OutcomeKind.DEAD, error=ErrorInfo("ValueError", "boom", "Traceback…"))

    (result,) = ferry.parents_of(child)

    assert (result.id, result.state, result.result) == (parent, State.DEAD, None)
    assert result.error is not None
    assert result.error.cause == BOOM.cause


def test_a_job_without_parents_has_no_results_to_read(ferry: Ferry) -> None:
    assert ferry.parents_of(ferry.add()) == []


def test_the_history_names_parents_and_children(ferry: Ferry) -> None:
    parents = ferry.add_many(2)
    child = ferry.add(after=(parents[1], parents[0]))
    other = ferry.add(after=(parents[0],))

    assert list(ferry.history(child).parents) == [parents[1], parents[0]]
    assert list(ferry.history(parents[0]).children) == [child, other]
    assert list(ferry.history(parents[1]).children) == [child]
