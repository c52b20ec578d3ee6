"""Leases: one at a time, fenced by worker and number."""

from __future__ import annotations

import pytest

from ferryman.errors import WorkerGone
from ferryman.job import Job, Outcome, OutcomeKind, State, WorkerId
from ferryman.store.records import JobNote

from .driver import BOOM, LEASE, W1, W2, Ferry

EVERY_KIND = list(OutcomeKind)


def test_a_leased_job_is_not_leased_again(ferry: Ferry) -> None:
    ferry.add()
    ferry.register(W2)

    ferry.take()

    assert ferry.claim(worker=W2) == []
    assert ferry.claim(worker=W1) == []


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_settle_from_an_old_lease_changes_nothing(ferry: Ferry, kind: OutcomeKind) -> None:
    job = ferry.add(max_attempts=5)
    old = ferry.take()
    ferry.settle(old, OutcomeKind.RETRY)
    ferry.take()
    before = ferry.history(job)

    accepted = ferry.settle(old, kind, result=b"late", delay=5, error=BOOM)

    assert not accepted
    assert ferry.history(job) == before


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_settle_from_another_worker_changes_nothing(ferry: Ferry, kind: OutcomeKind) -> None:
    job = ferry.add(max_attempts=5)
    ferry.register(W2)
    claim = ferry.take(W1)
    before = ferry.history(job)

    accepted = ferry.settle(claim, kind, worker=W2, error=BOOM)

    assert not accepted
    assert ferry.history(job) == before


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_settle_after_a_rescue_changes_nothing(ferry: Ferry, kind: OutcomeKind) -> None:
    job = ferry.add(max_attempts=5)
    claim = ferry.take()
    ferry.run(ferry.store.rescue([W1]))
    before = ferry.history(job)

    accepted = ferry.settle(claim, kind, error=BOOM)

    assert not accepted
    assert ferry.history(job) == before


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_a_job_can_be_settled_once(ferry: Ferry, kind: OutcomeKind) -> None:
    job = ferry.add(max_attempts=5)
    claim = ferry.take()
    first = ferry.settle(claim, kind, error=BOOM, delay=0)
    before = ferry.history(job)

    second = ferry.settle(claim, OutcomeKind.SUCCEEDED, result=b"again")

    assert (first, second) == (True, False)
    assert ferry.history(job) == before


def test_a_job_settled_twice_in_a_batch_is_settled_once(ferry: Ferry) -> None:
    job = ferry.add()
    claim = ferry.take()
    outcomes = [
        Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED, result=b"first"),
        Outcome(claim.id, claim.lease, OutcomeKind.DEAD, error=BOOM),
    ]

    answers = ferry.run(ferry.store.settle(W1, outcomes))

    assert answers == [True, False]
    assert (ferry.state(job), ferry.job(job).result) == (State.SUCCEEDED, b"first")


def test_a_lost_outcome_does_not_keep_the_others_from_being_accepted(ferry: Ferry) -> None:
    ferry.add_many(3)
    one, two, three = ferry.claim(3)
    ferry.succeed(two)

    answers = ferry.run(
        ferry.store.settle(W1, [Outcome(c.id, c.lease, OutcomeKind.SUCCEEDED) for c in (three, two, one)])
    )

    assert answers == [True, False, True]


def test_an_empty_settle_does_nothing(ferry: Ferry) -> None:
    assert ferry.run(ferry.store.settle(W1, [])) == []


def test_the_settle_of_a_job_that_is_not_known_is_lost(ferry: Ferry) -> None:
    ferry.add()
    claim = ferry.take()
    ferry.succeed(claim)
    ferry.delete(claim.id)

    assert ferry.settle(claim, OutcomeKind.SUCCEEDED) is False


def test_a_lease_number_is_never_used_again(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=20)
    leases = []
    for kind in (OutcomeKind.RELEASED, OutcomeKind.SNOOZED, OutcomeKind.RETRY, OutcomeKind.CRASHED):
        claim = ferry.take()
        leases.append(claim.lease)
        ferry.settle(claim, kind)
        ferry.clock.advance(1)
    claim = ferry.take()
    leases.append(claim.lease)
    ferry.succeed(claim)
    ferry.replay(job)
    leases.append(ferry.take().lease)

    assert leases == sorted(set(leases))


def test_a_heartbeat_renews_every_lease_of_the_worker(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=3)
    claim = ferry.take()

    for _ in range(5):
        ferry.clock.advance(LEASE / 1000 * 0.8)
        ferry.heartbeat()
        rescued = ferry.run(ferry.store.rescue())
        assert rescued == []

    assert ferry.settle(claim, OutcomeKind.SUCCEEDED)
    assert ferry.state(job) is State.SUCCEEDED


def test_a_lease_that_has_ended_is_taken_back_by_a_rescue(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=3)
    ferry.take()
    ferry.register(W2)

    ferry.clock.advance(LEASE / 1000 + 1)
    ferry.heartbeat(W2)
    ferry.run(ferry.store.rescue())

    claim = ferry.take(W2)
    assert (claim.id, claim.attempt, claim.deaths) == (job, 2, 1)


def test_a_lease_that_has_ended_may_still_be_settled_before_a_rescue(ferry: Ferry) -> None:
    job = ferry.add()
    claim = ferry.take()

    ferry.clock.advance(LEASE / 1000 + 1)

    assert ferry.settle(claim, OutcomeKind.SUCCEEDED)
    assert ferry.state(job) is State.SUCCEEDED


def _rescued(ferry: Ferry) -> None:
    ferry.run(ferry.store.rescue([W1]))


def _left(ferry: Ferry) -> None:
    ferry.run(ferry.store.leave(W1))


@pytest.mark.parametrize("gone", [_rescued, _left])
def test_a_worker_that_is_gone_is_told_so(ferry: Ferry, gone: object) -> None:
    assert callable(gone)
    job = ferry.add()

    gone(ferry)

    with pytest.raises(WorkerGone):
        ferry.claim()
    with pytest.raises(WorkerGone):
        ferry.heartbeat()
    assert ferry.state(job) is State.READY


def test_a_worker_that_never_registered_gets_nothing(ferry: Ferry) -> None:
    ferry.add()

    with pytest.raises(WorkerGone):
        ferry.claim(worker=WorkerId("stranger"))
    with pytest.raises(WorkerGone):
        ferry.heartbeat(WorkerId("stranger"))


def test_a_claim_refused_to_a_worker_that_is_gone_promotes_nothing(ferry: Ferry) -> None:
    job = ferry.add(delay=1_000)
    ferry.run(ferry.store.leave(W1))
    ferry.clock.advance(2)

    with pytest.raises(WorkerGone):
        ferry.claim()

    assert ferry.state(job) is State.SCHEDULED


def test_notes_of_a_lost_lease_are_dropped(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=2)
    old = ferry.take()
    ferry.settle(old, OutcomeKind.RETRY)
    new = ferry.take()

    ferry.run(
        ferry.store.annotate(
            W1, [JobNote(job, old.lease, 0.9, "late"), JobNote(job, new.lease, 0.2, "in time")]
        )
    )

    kept: Job = ferry.job(job)
    assert kept.progress == 0.2
    assert [(note.attempt, note.text) for note in ferry.history(job).notes] == [(2, "in time")]


def test_progress_and_notes_are_kept_with_the_job(ferry: Ferry) -> None:
    job = ferry.add()
    claim = ferry.take()

    ferry.run(ferry.store.annotate(W1, [JobNote(job, claim.lease, 0.25, "a quarter")]))
    ferry.clock.advance(1)
    ferry.run(ferry.store.annotate(W1, [JobNote(job, claim.lease, text="x" * 5_000)]))
    ferry.run(ferry.store.annotate(W1, [JobNote(job, claim.lease, progress=0.5)]))

    notes = ferry.history(job).notes
    assert ferry.job(job).progress == 0.5
    assert [note.text for note in notes] == ["a quarter", "x" * 4_000]
    assert [note.at for note in notes] == [ferry.clock.now() - 1_000, ferry.clock.now()]


def test_only_the_newest_thousand_notes_of_a_job_are_kept(ferry: Ferry) -> None:
    job = ferry.add()
    claim = ferry.take()

    for start in range(0, 1_200, 300):
        notes = [JobNote(job, claim.lease, text=str(n)) for n in range(start, start + 300)]
        ferry.run(ferry.store.annotate(W1, notes))

    assert [note.text for note in ferry.history(job).notes] == [str(n) for n in range(200, 1_200)]
