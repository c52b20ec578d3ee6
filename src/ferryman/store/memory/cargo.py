"""Cargo: jobs packed for another store, and jobs that another store has packed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.job import FINISHED, JobId, State
from ferryman.store.cargo import MOST_BYTES, Parcel, landed
from ferryman.store.memory.book import Book, Card, Fading, unborn
from ferryman.store.memory.filters import matching
from ferryman.store.memory.finish import erase, finish, give_back_unique
from ferryman.store.memory.places import enter, join_key, schedule
from ferryman.store.records import Filter

__all__ = ["forget", "pack", "unpack"]

_WAITING, _SUCCEEDED, _RUNNING, _CANCELLED = State.WAITING, State.SUCCEEDED, State.RUNNING, State.CANCELLED


def pack(
    book: Book, now: int, states: Sequence[State], after: int, limit: int, ids: Sequence[JobId]
) -> list[Parcel]:
    which = Filter(ids=tuple(ids), states=tuple(states))
    cards = matching(book, which, list(State), limit=limit, test=lambda card: card.seq > after)
    parcels: list[Parcel] = []
    size = 0
    for card in cards:
        parcels.append(_pack(book, now, card))
        size += parcels[-1].size
        if size >= MOST_BYTES:
            break
    return parcels


def _pack(book: Book, now: int, card: Card) -> Parcel:
    new = card.new
    held = None if new.unique is None else book.uniques.get(new.unique.key)
    if held is not None and (held.holder != new.id or (held.until is not None and held.until <= now)):
        held = None
    return Parcel(
        seq=card.seq,
        job=msgspec.structs.replace(
            new, args=card.args, priority=card.lane.priority, delay=0, at=None, ttl=None, deadline=card.deadline,
            after=card.parents,
        ),
        state=card.state, attempt=card.attempt, deaths=card.deaths, enqueued_at=card.enqueued_at, run_at=card.run_at,
        started_at=card.started_at, finished_at=card.finished_at, worker=card.worker, reason=card.reason,
        progress=card.progress,
        result=None if card.result_until is not None and card.result_until <= now else card.result,
        result_until=card.result_until, holds=card.holds, holds_unique=held is not None,
        unique_until=None if held is None else held.until, waits_for=_waits_for(book, card), attempts=card.attempts,
        notes=card.notes,
    )  # fmt: skip


def _waits_for(book: Book, card: Card) -> tuple[JobId, ...]:
    """Of parents that are gone, the book knows only how many are still waited for."""
    if card.state is not _WAITING:
        return ()
    named = [(id_, book.cards.get(id_)) for id_ in card.parents]
    here = [id_ for id_, parent in named if parent is not None and (parent.children or {}).get(card.new.id)]
    gone = [id_ for id_, parent in named if parent is None]
    waited_for = {*here, *gone[: card.missing - len(here)]}
    return tuple(id_ for id_ in card.parents if id_ in waited_for)


def unpack(book: Book, now: int, parcels: Sequence[Parcel]) -> list[bool]:
    answers: list[bool] = []
    born: list[Card] = []
    for parcel in parcels:
        is_new = parcel.job.id not in book.cards
        answers.append(is_new)
        if is_new:
            if not born:
                book.undo.append((unborn, born, book.cards))
            _unpack(book, now, landed(parcel), born)
    return answers


def _unpack(book: Book, now: int, parcel: Parcel, born: list[Card]) -> None:
    new = parcel.job
    lane = book.lane(new.queue, new.priority)
    book.touch(lane)
    card = Card(
        new, book.next_number(), lane, new.args, parcel.enqueued_at, parcel.run_at, new.deadline, book.number,
        attempt=parcel.attempt, deaths=parcel.deaths, worker=parcel.worker, started_at=parcel.started_at,
        finished_at=parcel.finished_at, reason=parcel.reason, progress=parcel.progress, result=parcel.result,
        result_until=parcel.result_until, attempts=parcel.attempts, notes=parcel.notes,
    )  # fmt: skip
    failed = _tie_to_parents(book, card, parcel)
    born.append(card)
    book.cards[new.id] = card
    lane.counts[_WAITING] += 1
    _take_unique(book, now, parcel)
    if card.result_until is not None and card.result is not None:
        book.results.push((card.result_until, card.seq, card))
    if parcel.state in FINISHED:
        book.move(card, parcel.state, parcel.finished_at or 0)
        return
    if new.deadline is not None or lane.queue.arrivals is not None:
        book.expect(card)
    if new.key is not None:
        join_key(book, new.key, 1 if new.ordered else new.room, now)
    if failed is not None:
        finish(book, card, _CANCELLED, now, f"parent {failed} did not succeed")
    elif not card.missing:
        _go_on(book, card, now, parcel)


def _tie_to_parents(book: Book, card: Card, parcel: Parcel) -> JobId | None:
    """Answers a parent that failed and takes the job with it."""
    new = parcel.job
    failed: JobId | None = None
    card.parents = tuple(dict.fromkeys(new.after))
    for id_ in card.parents:
        parent = book.cards.get(id_)
        waits = id_ in parcel.waits_for and (parent is None or parent.state is not _SUCCEEDED)
        if waits and (parent is None or parent.state > _RUNNING):
            if new.on_parent_failure == "continue":
                waits = False
            elif new.on_parent_failure == "cancel":
                failed = failed or id_
        card.missing += waits
        if parent is not None:
            if parent.children is None:
                book.touch(parent)
                parent.children = {}
            book.put(parent.children, new.id, waits)
    return failed


def _take_unique(book: Book, now: int, parcel: Parcel) -> None:
    unique = parcel.job.unique
    if unique is None or not parcel.holds_unique:
        return
    taken = book.uniques.get(unique.key)
    if taken is None or (taken.until is not None and taken.until <= now):
        book.put_fading(book.uniques, unique.key, Fading(parcel.job.id, 0, parcel.unique_until))


def _go_on(book: Book, card: Card, now: int, parcel: Parcel) -> None:
    if card.run_at <= now:
        enter(book, card, card.run_at)
        return
    schedule(book, card, card.run_at)
    key = book.keys.get(card.new.key or "")
    if key is not None and parcel.holds and card.new.ordered and key.used < key.room:
        book.touch(key)
        key.used += 1
        card.holds = True


def forget(book: Book, now: int, ids: Sequence[JobId], states: Sequence[State]) -> int:
    cards = [book.cards[id_] for id_ in dict.fromkeys(ids) if id_ in book.cards]
    gone = [card for card in cards if card.state is not _RUNNING and (not states or card.state in states)]
    for card in gone:
        book.touch(card)
        card.children = None
        if card.state < _RUNNING:
            finish(book, card, _CANCELLED, now)
    for card in gone:
        give_back_unique(book, card, with_period=True)
        erase(book, card)
    return len(gone)
