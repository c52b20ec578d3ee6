"""What a worker has to say gets through to its store, whatever a single job makes of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from ferryman.clock import ManualClock
from ferryman.errors import StoreError, StoreUnavailable
from ferryman.io.operation import Operation, Runner
from ferryman.job import Claim, ErrorInfo, Outcome, OutcomeKind, State
from ferryman.store.open import open_store
from ferryman.store.records import JobNote
from ferryman.worker.desk import Desk
from tests.conformance.driver import W1, Ferry
from tests.services import places


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def ferry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ferry]:
    urls: dict[str, Callable[[], str]] = {
        "memory": lambda: "memory://",
        "sqlite": lambda: f"sqlite:///{tmp_path}/jobs.db",
        "postgres": lambda: places.postgres(tmp_path),
    }
    url = urls[request.param]()
    clock = ManualClock()
    ferry = Ferry(open_store(url, clock), clock, lambda: open_store(url, clock))
    yield ferry
    ferry.store.close()
    places.leave_postgres(tmp_path)


@pytest.fixture
def desk(ferry: Ferry) -> Iterator[Desk]:
    desk = Desk(ferry.store, W1)
    yield desk
    desk.close()


def _success(claim: Claim) -> Outcome:
    return Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED)


def _notes(claim: Claim, count: int) -> list[JobNote]:
    return [JobNote(claim.id, claim.lease, number / count, f"note {number}") for number in range(count)]


def test_a_job_that_says_much_does_not_keep_others_from_being_settled(ferry: Ferry, desk: Desk) -> None:
    ferry.add_many(2)
    chatty, other = ferry.claim(2)
    desk.unsaid.add_notes(_notes(chatty, 5_000))
    desk.unsaid.outcomes.append(_success(other))

    desk.turn(0)

    assert ferry.state(other.id) is State.SUCCEEDED


def test_all_that_a_job_said_is_kept_before_its_end_up_to_a_thousand_notes(ferry: Ferry, desk: Desk) -> None:
    ferry.add_many(2)
    chatty, other = ferry.claim(2)
    desk.unsaid.add_notes(_notes(chatty, 1_500))
    desk.unsaid.add_notes(_notes(other, 3))
    desk.unsaid.outcomes += [_success(other), _success(chatty)]

    assert desk.say_the_rest(time.monotonic() + 30)

    history = ferry.history(chatty.id)
    assert [note.text for note in history.notes] == [f"note {number}" for number in range(500, 1_500)]
    assert [len(ferry.history(other.id).notes), ferry.job(chatty.id).progress] == [3, 1_499 / 1_500]
    assert ferry.state(chatty.id) is ferry.state(other.id) is State.SUCCEEDED


def test_of_many_jobs_that_say_much_each_is_heard_in_its_turn(ferry: Ferry, desk: Desk) -> None:
    ferry.add_many(30)
    claims = ferry.claim(30)
    for claim in claims:
        desk.unsaid.add_notes(_notes(claim, 200))

    for _ in range(5):
        desk.turn(0)

    assert all(ferry.history(claim.id).notes for claim in claims)


@pytest.mark.parametrize("ferry", ["postgres"], indirect=True)
def test_an_outcome_that_the_store_refuses_is_put_plainly_and_holds_up_no_other(
    ferry: Ferry, desk: Desk
) -> None:
    ferry.add_many(5, max_attempts=3)
    before, noisy, failing, after, last = ferry.claim(5)
    unsayable = "a NUL, \0, which no text column takes"
    desk.unsaid.add_notes([JobNote(noisy.id, noisy.lease, None, unsayable)])
    desk.unsaid.outcomes += [
        _success(before),
        _success(noisy),
        Outcome(failing.id, failing.lease, OutcomeKind.RETRY, error=ErrorInfo("ValueError", unsayable)),
        _success(after),
        Outcome(last.id, last.lease, OutcomeKind.SNOOZED, reason=unsayable, delay=1_000),
    ]

    assert desk.say_the_rest(time.monotonic() + 30)

    claims = (before, noisy, failing, after, last)
    assert [ferry.state(claim.id) for claim in claims] == [
        State.SUCCEEDED, State.SUCCEEDED, State.READY, State.SUCCEEDED, State.SCHEDULED,
    ]  # fmt: skip
    (attempt,) = ferry.history(failing.id).attempts
    assert attempt.error is not None
    assert attempt.error.type == "OutcomeRefused"


def test_what_could_not_be_said_while_the_store_was_away_is_said_before_the_end(
    ferry: Ferry, desk: Desk
) -> None:
    ferry.add_many(1_000)
    claims = ferry.claim(1_000)
    calls = itertools.count()
    away = StoreUnavailable("away at every second call")
    desk.runner = _Failing(desk.runner, lambda _: None if next(calls) % 2 else away)
    desk.unsaid.outcomes += [_success(claim) for claim in claims]

    assert desk.say_the_rest(time.monotonic() + 30)

    assert {ferry.state(claim.id) for claim in claims} == {State.SUCCEEDED}


class _Failing:
    """A runner whose store fails when `fails` has an error for these operations."""

    def __init__(
        self, runner: Runner, fails: Callable[[Sequence[Operation[Any]]], StoreError | None]
    ) -> None:
        self._runner = runner
        self._fails = fails

    def run(self, operation: Operation[Any]) -> Any:
        (answer,) = self.run_all([operation])
        return answer

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        if (error := self._fails(operations)) is not None:
            raise error
        return list(self._runner.run_all(operations))

    def wait(self, seconds: float) -> None:
        self._runner.wait(seconds)

    def close(self) -> None:
        self._runner.close()


@pytest.mark.parametrize("ferry", ["memory"], indirect=True)
def test_of_a_store_that_refuses_how_any_job_ends_few_more_are_run_and_nothing_is_lost(
    ferry: Ferry, desk: Desk
) -> None:
    ferry.add_many(100)
    claims = ferry.claim(3)
    denied: StoreError | None = StoreError("permission denied")
    desk.runner = _Failing(
        desk.runner, lambda asked: denied if "settle" in [operation.name for operation in asked] else None
    )
    desk.unsaid.outcomes += [_success(claim) for claim in claims]
    desk.turn(0)

    for _ in range(200):
        desk.retry_at = 0.0
        taken = desk.turn(50)
        claims = [*claims, *taken]
        desk.unsaid.outcomes += [_success(claim) for claim in taken]

    # One at a time, to find out whose fault it is.
    assert len(claims) == 10
    denied = None
    assert desk.say_the_rest(time.monotonic() + 30)
    assert {ferry.state(claim.id) for claim in claims} == {State.SUCCEEDED}


def test_a_note_that_says_nothing_is_nothing_to_say(ferry: Ferry, desk: Desk) -> None:
    ferry.add()

    desk.unsaid.add_notes([JobNote((claim := ferry.take()).id, claim.lease)])

    assert not desk.unsaid


def test_notes_that_could_not_be_said_keep_their_order(ferry: Ferry, desk: Desk) -> None:
    ferry.add()
    claim = ferry.take()
    desk.unsaid.add_notes(_notes(claim, 60))
    said = desk.unsaid.next()
    desk.unsaid.heard(said)

    desk.unsaid.put_back(said)
    desk.unsaid.outcomes.append(_success(claim))

    assert desk.say_the_rest(time.monotonic() + 30)
    assert [note.text for note in ferry.history(claim.id).notes] == [f"note {number}" for number in range(60)]
