"""What people do to jobs and queues. Each operation takes its jobs oldest first, up to a limit."""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.job import FINISHED, PENDING, JobId, State
from ferryman.store.memory.book import Book, Card, Fading
from ferryman.store.memory.filters import matching
from ferryman.store.memory.finish import erase, finish, give_back_unique
from ferryman.store.memory.places import enter, next_tag, park, rejoin_key
from ferryman.store.memory.workers import leave_order
from ferryman.store.records import Filter, Order, QueueSettings

__all__ = ["cancel", "declare", "delete", "edit", "pause", "replay", "reprioritise"]

_RUNNING = State.RUNNING
_UNFINISHED = PENDING | {State.RUNNING}


def declare(book: Book, now: int, queues: Sequence[QueueSettings]) -> None:  # noqa: ARG001
    for settings in queues:
        queue = book.queue(settings.name)
        book.touch(queue)
        queue.settings = settings


def pause(book: Book, now: int, queues: Sequence[str], paused: bool) -> None:  # noqa: ARG001
    for name in queues:
        queue = book.queue(name)
        book.touch(queue)
        queue.paused = paused
        book.woke = book.woke or not paused


def cancel(book: Book, now: int, which: Filter, limit: int, reason: str | None) -> int:
    def not_warned(card: Card) -> bool:
        return card.state is not _RUNNING or card.warned != card.lease

    chosen = matching(book, which, _UNFINISHED, limit=limit, test=not_warned)
    for card in chosen:
        if card.state is _RUNNING and card.worker is not None:
            book.touch(card)
            card.warned = card.lease
            leave_order(book, book.workers[card.worker], Order("cancel", card.new.id, reason), card.lease)
        elif card.state < _RUNNING:
            # Else an earlier one was its parent and has taken it along.
            finish(book, card, State.CANCELLED, now, reason)
    return len(chosen)


def replay(book: Book, now: int, which: Filter, limit: int) -> int:
    taken: set[str] = set()

    def may_be_replayed(card: Card) -> bool:
        """Whether its unique key is free; of several that have it, the oldest gets it."""
        unique = card.new.unique
        if unique is None:
            return True
        entry = book.uniques.get(unique.key)
        held = entry is not None and (entry.until is None or entry.until > now)
        if unique.key in taken or (held and entry is not None and entry.holder != card.new.id):
            return False
        if unique.period is None:
            taken.add(unique.key)
        return True

    chosen = matching(book, which, FINISHED, limit=limit, test=may_be_replayed)
    for card in chosen:
        _revive(book, card, now)
    return len(chosen)


def _revive(book: Book, card: Card, now: int) -> None:
    book.touch(card)
    new = card.new
    card.attempt = card.deaths = card.missing = 0
    card.started_at = card.finished_at = card.deadline = card.result_until = None
    card.worker = card.reason = card.result = card.progress = None
    if new.unique is not None and new.unique.period is None:
        book.put_fading(book.uniques, new.unique.key, Fading(new.id, 0, None))
    if new.key is not None:
        rejoin_key(book, new.key, 1 if new.ordered else new.room)
    enter(book, card, now)


def edit(book: Book, now: int, job: JobId, args: bytes) -> bool:  # noqa: ARG001
    card = book.cards.get(job)
    if card is None or card.state is _RUNNING:
        return False
    book.touch(card)
    card.args = args
    return True


def reprioritise(book: Book, now: int, which: Filter, priority: int, limit: int) -> int:  # noqa: ARG001
    chosen = matching(book, which, PENDING, limit=limit, test=lambda card: card.lane.priority != priority)
    for card in chosen:
        book.touch(card)
        book.touch(card.lane)
        card.lane.counts[card.state] -= 1
        card.lane = lane = book.lane(card.new.queue, priority)
        book.touch(lane)
        lane.counts[card.state] += 1
        if card.state is State.READY:
            card.tag = next_tag(book, lane, card.new.tenant) if lane.queue.settings.fair else lane.top
            book.move(card, State.READY, card.tag)
            book.woke = True
        elif card.state is State.PARKED:
            park(book, card)
    return len(chosen)


def delete(book: Book, now: int, which: Filter, limit: int) -> int:
    chosen = matching(book, which, set(State) - {_RUNNING}, limit=limit)
    for card in chosen:
        if card.state < _RUNNING:
            finish(book, card, State.CANCELLED, now)
    for card in chosen:
        give_back_unique(book, card, with_period=True)
        erase(book, card)
    return len(chosen)
