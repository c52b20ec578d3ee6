"""Letting jobs into their lanes: places of keys, and tags of fair queues. The cards are touched already."""

from __future__ import annotations

from ferryman.job import State
from ferryman.store.memory.book import Book, Card, Key, Lane
from ferryman.store.memory.line import Line

__all__ = [
    "enter",
    "free_place",
    "go_on",
    "join_key",
    "leave_key",
    "next_tag",
    "park",
    "rejoin_key",
    "schedule",
]

_READY, _SCHEDULED, _PARKED = State.READY, State.SCHEDULED, State.PARKED


def go_on(book: Book, card: Card, now: int) -> None:
    """Nothing holds the job any more but its moment and its key."""
    if card.run_at > now:
        schedule(book, card, card.run_at)
    else:
        enter(book, card, now)


def schedule(book: Book, card: Card, run_at: int) -> None:
    head = book.due.head()
    if head is None or run_at < head[0]:
        book.woke = True
    card.run_at = run_at
    book.move(card, _SCHEDULED, run_at)


def enter(book: Book, card: Card, since: int) -> None:
    """Let a job that wants to run into its lane, or park it. `since` is the moment it became ready."""
    if card.new.key is not None and not card.holds:
        key = book.keys[card.new.key]
        if key.used >= key.room:
            park(book, card)
            return
        book.touch(key)
        key.used += 1
        card.holds = True
    lane = card.lane
    card.run_at = since
    card.tag = next_tag(book, lane, card.new.tenant) if lane.queue.settings.fair else lane.top
    book.move(card, _READY, card.tag)
    book.woke = True


def park(book: Book, card: Card) -> None:
    """Ordered jobs are let in by arrival alone, others by priority first."""
    book.move(card, _PARKED, 0 if card.new.ordered else -card.lane.priority)


def join_key(book: Book, name: str, room: int, now: int) -> None:
    """Count an unfinished job to its key, which has as many places from now on as this job says."""
    key = rejoin_key(book, name, room)
    key.room = room
    _admit(book, key, now)


def rejoin_key(book: Book, name: str, room: int) -> Key:
    """Count a replayed job to its key; what later jobs said of its places goes on to hold."""
    key = book.keys.get(name)
    if key is None:
        key = Key(room, Line())
        book.put(book.keys, name, key)
    book.touch(key)
    key.jobs += 1
    return key


def free_place(book: Book, card: Card, now: int) -> None:
    """Give a job's place back, and let in the parked jobs for which there is room now."""
    if card.holds:
        key = book.keys[card.new.key or ""]
        book.touch(key)
        key.used -= 1
        card.holds = False
        _admit(book, key, now)


def leave_key(book: Book, name: str) -> None:
    """Count a finished job off its key, which is forgotten with its last one."""
    key = book.keys[name]
    book.touch(key)
    key.jobs -= 1
    if not key.jobs:
        book.drop(book.keys, name)


def _admit(book: Book, key: Key, now: int) -> None:
    while key.used < key.room:
        item = key.parked.take()
        if item is None:
            return
        card: Card = item[2]
        book.touch(card)
        key.used += 1
        card.holds = True
        enter(book, card, now)


def next_tag(book: Book, lane: Lane, tenant: str | None) -> float:
    """The place of a tenant's next job in a fair lane.

    Start-time fair queueing (Goyal, Vin and Cheng, 1996): the later of the lane's virtual time and the tenant's
    last tag, plus the cost of one job.
    """
    book.touch(lane)
    weight = 1.0 if tenant is None else lane.queue.settings.weights.get(tenant, 1.0)
    tag = max(lane.clock, lane.tenants.get(tenant, 0.0)) + 1.0 / weight
    if len(lane.tenants) >= lane.sweep_at:
        # A tenant that is not ahead of the clock is as one that was never here.
        lane.tenants = {name: last for name, last in lane.tenants.items() if last > lane.clock}
        lane.sweep_at = 2 * len(lane.tenants) + 64
    book.put(lane.tenants, tenant, tag)
    lane.top = max(lane.top, tag)
    return tag
