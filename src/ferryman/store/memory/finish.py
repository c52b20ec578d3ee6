"""What becomes of others when a job finishes: its key's next job, its unique key, its children."""

from __future__ import annotations

from collections import deque

from ferryman.job import JobId, State
from ferryman.store.memory.book import Book, Card, Fading
from ferryman.store.memory.places import free_place, go_on, leave_key

__all__ = ["erase", "finish", "give_back_unique", "take_back_unique"]

_SUCCEEDED, _WAITING, _CANCELLED = State.SUCCEEDED, State.WAITING, State.CANCELLED


def finish(book: Book, card: Card, state: State, now: int, reason: str | None = None) -> None:
    """End an unfinished job, and let go what waits for its end, down through its children."""
    _end(book, card, state, now, reason)
    if card.children is None:
        return
    ended = deque([card])
    while ended:
        parent = ended.popleft()
        for child in _tell_children(book, parent, now):
            _end(book, child, _CANCELLED, now, why_cancelled(parent))
            ended.append(child)


def why_cancelled(parent: Card) -> str:
    """The reason of a child that goes down with its parent."""
    return f"parent {parent.new.id} did not succeed"


def _end(book: Book, card: Card, state: State, now: int, reason: str | None) -> None:
    book.touch(card)
    new = card.new
    card.finished_at = now
    card.reason = reason
    book.move(card, state, now)
    if new.key is not None:
        free_place(book, card, now)
        leave_key(book, new.key)
    if new.unique is not None:
        give_back_unique(book, card)


def give_back_unique(book: Book, card: Card, *, with_period: bool = False) -> None:
    """Free the unique key that a job has; one taken for a period only if told so."""
    unique = card.new.unique
    if unique is None:
        return
    entry = book.uniques.get(unique.key)
    if entry is not None and entry.holder == card.new.id and (with_period or entry.until is None):
        book.drop(book.uniques, unique.key)


def take_back_unique(book: Book, card: Card, now: int) -> None:
    """A job that was claimed but never started has again the unique key that it gave back at the claim, if that is free."""
    unique = card.new.unique
    if unique is None or unique.until != "started" or unique.period is not None or card.attempt:
        return
    entry = book.uniques.get(unique.key)
    if entry is None or (entry.until is not None and entry.until <= now):
        book.put_fading(book.uniques, unique.key, Fading(card.new.id, 0, None))


def _tell_children(book: Book, parent: Card, now: int) -> list[Card]:
    """Answers the children that go down with their parent."""
    doomed: list[Card] = []
    children: dict[JobId, bool] = parent.children or {}
    for id_, waits in children.items():
        child = book.cards.get(id_) if waits else None
        if child is None or child.state is not _WAITING:
            continue
        told = child.new.on_parent_failure
        if parent.state is _SUCCEEDED or told == "continue":
            book.put(children, id_, False)
            book.touch(child)
            child.missing -= 1
            if not child.missing:
                go_on(book, child, now)
        elif told == "cancel":
            doomed.append(child)
    return doomed


def erase(book: Book, card: Card) -> None:
    """Forget a finished job."""
    book.touch(card)
    book.touch(card.lane)
    card.lane.counts[card.state] -= 1
    card.spot = None
    card.result_until = None
    for id_ in card.parents:
        parent = book.cards.get(id_)
        if parent is not None and parent.children is not None and card.new.id in parent.children:
            book.drop(parent.children, card.new.id)
    book.drop(book.cards, card.new.id)
