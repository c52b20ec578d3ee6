"""Prune: finished jobs whose time is over or that are too many, and the small things that age."""

from __future__ import annotations

from ferryman.job import State
from ferryman.store.memory.book import Book, Card
from ferryman.store.memory.finish import erase
from ferryman.store.memory.line import Item, Line
from ferryman.store.records import ARRIVING, Pruned, Retention

__all__ = ["prune"]


def prune(book: Book, now: int, retention: Retention, limit: int) -> Pruned:
    _prune_small(book, now, retention)
    deleted = 0
    if ARRIVING in book.values:
        return Pruned(deleted, more=False)
    for line, states, age, most in (
        (book.succeeded, (State.SUCCEEDED,), retention.succeeded, retention.succeeded_count),
        (book.dead, (State.DEAD,), retention.dead, retention.dead_count),
        (book.other, (State.CANCELLED, State.EXPIRED), retention.other, retention.other_count),
    ):
        excess = _count(book, states) - most
        deleted += _prune_line(book, line, now, before=now - age, excess=excess, limit=limit - deleted)
    return Pruned(deleted, more=deleted >= limit)


def _count(book: Book, states: tuple[State, ...]) -> int:
    return sum(
        lane.counts[state]
        for queue in book.queues.values()
        for lane in queue.lanes.values()
        for state in states
    )


def _prune_line(book: Book, line: Line, now: int, *, before: int, excess: int, limit: int) -> int:
    """Delete the oldest finished jobs: those finished before a moment, and so many more as are too many."""
    deleted = 0
    staying: list[Item] = []
    while deleted < limit:
        item = line.head()
        if item is None or (item[0] >= before and deleted >= excess):
            break
        card: Card = item[2]
        line.take()
        kept_longer = card.result_until is not None and card.result_until > now and deleted >= excess
        if kept_longer or _is_wanted(book, card):
            staying.append(item)
        else:
            erase(book, card)
            deleted += 1
    for item in staying:
        line.push(item)
    return deleted


def _is_wanted(book: Book, card: Card) -> bool:
    """Whether an unfinished child waits for it, or will want its result."""
    return any(book.cards[id_].state <= State.RUNNING for id_ in card.children or ())


def _prune_small(book: Book, now: int, retention: Retention) -> None:
    for item in book.ends.take_until(now, len(book.locks) + len(book.values) + len(book.uniques)):
        mapping, key = item[2]
        book.undo.append((book.ends.push, item))
        book.drop(mapping, key)
    for item in book.results.take_until(now, len(book.cards)):
        card = item[2]
        book.touch(card)
        card.result = None
    for start in [start for start in book.minutes if start < now - retention.stats]:
        book.drop(book.minutes, start)
    gone = [worker for worker in book.workers.values() if worker.gone is not None]
    for worker in gone:
        if worker.seen_at < now - retention.workers:
            book.drop(book.workers, worker.info.id)
