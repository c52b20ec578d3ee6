"""Settle: what became of leased jobs. The fence is the worker and the number of the lease."""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.job import MAX_DEATHS, RERUNS, Attempt, ErrorInfo, Note, Outcome, OutcomeKind, State, WorkerId
from ferryman.policy.latency import bucket_of
from ferryman.store.memory.book import Book, Card, Minute
from ferryman.store.memory.finish import finish, take_back_unique
from ferryman.store.memory.places import enter, free_place, schedule
from ferryman.store.records import JobNote

__all__ = ["annotate", "settle", "settle_leased"]

_RUNNING, _READY, _SUCCEEDED = State.RUNNING, State.READY, State.SUCCEEDED
_DONE = OutcomeKind.SUCCEEDED

_MOST_NOTES = 1_000
"""Notes of a job that are kept, and recorded attempts: the newest."""
_LONGEST_NOTE = 4_000


def settle(book: Book, now: int, worker: WorkerId, outcomes: Sequence[Outcome]) -> list[bool]:
    answers: list[bool] = []
    for outcome in outcomes:
        card = _leased(book, worker, outcome)
        answers.append(card is not None)
        if card is None:
            continue
        if outcome.kind is _DONE:
            _succeed(book, now, card, outcome)
        else:
            settle_leased(book, now, card, outcome)
    return answers


def _leased(book: Book, worker: WorkerId, claimed: Outcome | JobNote) -> Card | None:
    """The job, if it runs under this worker and lease."""
    card = book.cards.get(claimed.id)
    if card is None or card.state is not _RUNNING or card.lease != claimed.lease or card.worker != worker:
        return None
    return card


def _succeed(book: Book, now: int, card: Card, outcome: Outcome) -> None:
    book.touch(card)
    _let_go(book, card)
    card.started_at = now - outcome.ran_us // 1000
    card.result = outcome.result
    if outcome.keep_result is not None and outcome.result is not None:
        card.result_until = now + outcome.keep_result
        book.results.push((card.result_until, card.seq, card))
    _measure(book, now, card, outcome).succeeded += 1
    finish(book, card, _SUCCEEDED, now)


def settle_leased(book: Book, now: int, card: Card, outcome: Outcome, *, death: bool = True) -> State:
    """Carry out an outcome other than success. Answers where the job went. A crash of an executor that is
    nobody's fault is no death."""
    book.touch(card)
    _let_go(book, card)
    if card.warned == card.lease and outcome.kind in RERUNS:
        outcome = outcome.as_cancelled()
    kind = outcome.kind
    if kind is OutcomeKind.RELEASED:
        card.attempt -= 1
        card.worker = card.started_at = None
        take_back_unique(book, card, now)
        _back_to_its_place(book, card)
        return _READY
    started = now - outcome.ran_us // 1000
    error = outcome.error
    if error is None and kind is OutcomeKind.CRASHED:
        error = ErrorInfo("Crashed", "its executor died")
    _record_attempt(card, kind, started, now, error, outcome.reason)
    if kind is OutcomeKind.SNOOZED:
        card.attempt -= 1
        card.reason = outcome.reason
        _put_off(book, card, outcome.delay, now)
        return card.state
    card.started_at = started
    if kind is OutcomeKind.CANCELLED:
        finish(book, card, State.CANCELLED, now, outcome.reason)
        return card.state
    minute = _measure(book, now, card, outcome)
    minute.failed += 1
    if kind is OutcomeKind.CRASHED:
        card.deaths += death
    if _may_run_again(card, kind):
        if kind is OutcomeKind.CRASHED:
            _back_to_its_place(book, card)
        elif outcome.delay > 0:
            _put_off(book, card, outcome.delay, now)
        else:
            enter(book, card, now)
    else:
        minute.dead += 1
        finish(book, card, State.DEAD, now, outcome.reason if error is None else error.cause)
    return card.state


def _may_run_again(card: Card, kind: OutcomeKind) -> bool:
    return kind is not OutcomeKind.DEAD and card.attempt < card.new.max_attempts and card.deaths < MAX_DEATHS


def _let_go(book: Book, card: Card) -> None:
    worker = None if card.worker is None else book.workers.get(card.worker)
    if worker is not None:
        worker.running.pop(card.new.id, None)


def _back_to_its_place(book: Book, card: Card) -> None:
    """As if it had not been claimed: same tag, same moment, and it still has the place of its key."""
    book.move(card, _READY, card.tag)
    book.woke = True


def _put_off(book: Book, card: Card, delay: int, now: int) -> None:
    """While it waits, only an ordered job keeps its key's place."""
    schedule(book, card, now + delay)
    if not card.new.ordered:
        free_place(book, card, now)


def _record_attempt(
    card: Card, kind: OutcomeKind, started: int, now: int, error: ErrorInfo | None, reason: str | None
) -> None:
    attempt = Attempt(
        number=card.attempt,
        kind=kind,
        worker=card.worker or WorkerId(""),
        started_at=started,
        finished_at=now,
        error=error,
        reason=reason,
    )
    card.attempts = (*card.attempts, attempt)[-_MOST_NOTES:]


def _measure(book: Book, now: int, card: Card, outcome: Outcome) -> Minute:
    """Count an attempt that ended into the histograms of this minute."""
    minute = book.minute(now, card.lane.queue.settings.name, card.new.task)
    bucket = bucket_of((now - card.run_at) * 1000 - outcome.ran_us)
    minute.waited[bucket] = minute.waited.get(bucket, 0) + 1
    bucket = bucket_of(outcome.ran_us)
    minute.ran[bucket] = minute.ran.get(bucket, 0) + 1
    return minute


def annotate(book: Book, now: int, worker: WorkerId, notes: Sequence[JobNote]) -> None:
    for note in notes:
        card = _leased(book, worker, note)
        if card is None:
            continue
        book.touch(card)
        if note.progress is not None:
            card.progress = note.progress
        if note.text is not None:
            line = Note(now, card.attempt, note.text[:_LONGEST_NOTE])
            card.notes = (*card.notes, line)[-_MOST_NOTES:]
