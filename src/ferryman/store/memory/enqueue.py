"""Enqueue: a batch of jobs, all or none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ferryman.errors import QueueFull, UnknownParent
from ferryman.job import JobId, NewJob, State
from ferryman.store.memory.book import Book, Card, Fading, Lane, Minute, unborn
from ferryman.store.memory.finish import finish, why_cancelled
from ferryman.store.memory.places import go_on, join_key
from ferryman.store.records import Enqueued

__all__ = ["enqueue"]

_WAITING, _SUCCEEDED, _RUNNING, _CANCELLED = State.WAITING, State.SUCCEEDED, State.RUNNING, State.CANCELLED


def enqueue(book: Book, now: int, jobs: Sequence[NewJob]) -> list[Enqueued]:
    answers: list[Enqueued] = []
    born: list[Card] = []
    stands_for: dict[JobId, JobId] = {}
    lane: Lane | None = None
    minute: Minute | None = None
    task = ""
    bounded = False
    for new in jobs:
        known = _known(book, new, now)
        if known is not None:
            answers.append(Enqueued(known, True))
            stands_for[new.id] = known
            continue
        if not born:
            book.undo.append((unborn, born, book.cards))
        if lane is None or lane.priority != new.priority or lane.queue.settings.name != new.queue:
            lane = book.lane(new.queue, new.priority)
            book.touch(lane)
            bounded = bounded or lane.queue.settings.max_size is not None
            minute = None
        if minute is None or task != new.task:
            task = new.task
            minute = book.minute(now, new.queue, task)
        minute.enqueued += 1
        _bear(book, new, lane, now, born, stands_for)
        answers.append(Enqueued(new.id))
    if bounded:
        _keep_bounds(book, born, now)
    return answers


def _known(book: Book, new: NewJob, now: int) -> JobId | None:
    """The job that stands for this one already, by id or by unique key."""
    if new.id in book.cards:
        return new.id
    if new.unique is not None:
        taken = book.uniques.get(new.unique.key)
        if taken is not None and (taken.until is None or taken.until > now):
            holder: JobId = taken.holder
            return holder
    return None


def _bear(
    book: Book, new: NewJob, lane: Lane, now: int, born: list[Card], stands_for: dict[JobId, JobId]
) -> None:
    """Store a job, and let it go as far as it can."""
    run_at = now + new.delay if new.at is None else max(now, new.at)
    deadline = new.deadline if new.ttl is None else now + new.ttl
    card = Card(new, book.next_number(), lane, new.args, now, run_at, deadline, book.number)
    failed = _find_parents(book, card, stands_for) if new.after else None
    born.append(card)
    book.cards[new.id] = card
    lane.counts[_WAITING] += 1
    if deadline is not None or lane.queue.arrivals is not None:
        book.expect(card)
    if new.unique is not None:
        period = new.unique.period
        end = None if period is None else now + period
        book.put_fading(book.uniques, new.unique.key, Fading(new.id, 0, end))
    if new.key is not None:
        join_key(book, new.key, 1 if new.ordered else new.room, now)
    if failed is not None:
        finish(book, card, _CANCELLED, now, why_cancelled(failed))
    elif not card.missing:
        go_on(book, card, now)


def _find_parents(book: Book, card: Card, stands_for: dict[JobId, JobId]) -> Card | None:
    """Tie a new job to its parents. Answers one that failed and takes the job with it."""
    new = card.new
    failed: Card | None = None
    card.parents = tuple(dict.fromkeys(stands_for.get(id_, id_) for id_ in new.after))
    for id_ in card.parents:
        parent = book.cards.get(id_)
        if parent is None:
            raise UnknownParent(
                f"job {new.id} ({new.task}) is to wait for job {id_}, which the store does not have; "
                "it was never enqueued, or its retention has passed"
            )
        waits = parent.state is not _SUCCEEDED
        if parent.state > _RUNNING and waits:
            if new.on_parent_failure == "continue":
                waits = False
            elif new.on_parent_failure == "cancel":
                failed = failed or parent
        card.missing += waits
        if parent.children is None:
            book.touch(parent)
            parent.children = {}
        book.put(parent.children, new.id, waits)
    return failed


def _keep_bounds(book: Book, born: list[Card], now: int) -> None:
    """Refuse the batch if it overfills a bounded queue, or make room, as the queue's rule says."""
    arrived = Counter(card.new.queue for card in born if card.state < _RUNNING)
    for name, count in arrived.items():
        queue = book.queues[name]
        settings = queue.settings
        if settings.max_size is None or queue.pending() <= settings.max_size:
            continue
        if settings.overflow != "drop_oldest" or count > settings.max_size:
            raise QueueFull(name, settings.max_size)
        arrivals = book.find_arrivals(queue)
        while queue.pending() > settings.max_size:
            oldest = arrivals.take()
            if oldest is None:
                break
            finish(book, oldest[2], _CANCELLED, now, f"dropped: queue {name} was full")
