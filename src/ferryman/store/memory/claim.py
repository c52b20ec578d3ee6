"""Claim: promote what is due, expire what is late, lease what the plan asks for. And peek: is it worth it?"""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.errors import WorkerGone
from ferryman.job import Claim, State, WorkerId
from ferryman.store.memory.book import Book, Lane, Worker
from ferryman.store.memory.finish import finish, give_back_unique
from ferryman.store.memory.places import enter
from ferryman.store.records import Claimed, LaneState, Signs, Take

__all__ = ["claim", "find_worker", "peek"]

_AT_ONCE = 2_000
"""Jobs promoted, and jobs expired, in one claim at most, so that no transaction takes long."""

_READY, _RUNNING, _EXPIRED = State.READY, State.RUNNING, State.EXPIRED


def claim(book: Book, now: int, worker: WorkerId, plan: Sequence[Take], limit: int) -> Claimed:
    record = find_worker(book, worker)
    for item in book.due.take_until(now, _AT_ONCE):
        card = item[2]
        book.touch(card)
        enter(book, card, card.run_at)
    for item in book.deadlines.take_until(now, _AT_ONCE):
        finish(book, item[2], _EXPIRED, now)
    jobs: list[Claim] = []
    for take in plan:
        count = min(take.count, limit - len(jobs))
        queue = book.queues.get(take.queue)
        if count > 0 and queue is not None and not queue.paused:
            lane = queue.lanes.get(take.priority)
            if lane is not None:
                _take(book, now, record, lane, count, jobs)
    states = [
        LaneState(lane.queue.settings.name, lane.priority, lane.counts[_READY], _oldest(lane))
        for lane in _lanes_of(book, record)
    ]
    return Claimed(jobs, states, _next_due(book), now)


def peek(book: Book, now: int, worker: WorkerId) -> Signs:
    record = find_worker(book, worker)
    due = _next_due(book)
    late = book.deadlines.head()
    work = bool(_lanes_of(book, record)) or (due is not None and due <= now)
    orders = bool(record.standing_orders(book.cards))
    return Signs(work or (late is not None and late[0] <= now), due, orders, now)


def find_worker(book: Book, worker: WorkerId) -> Worker:
    """A worker that is on the register."""
    record = book.workers.get(worker)
    if record is None or record.gone is not None:
        raise WorkerGone(
            f"worker {worker} is not on the register: it never registered, has left, or was taken for dead "
            "after its lease had ended; its jobs are run by others"
        )
    return record


def _take(book: Book, now: int, worker: Worker, lane: Lane, count: int, jobs: list[Claim]) -> None:
    """Lease the head of a lane, adding to `jobs`."""
    book.touch(lane)
    id_, queue, running = worker.info.id, lane.queue.settings.name, worker.running
    most = len(jobs) + count
    while len(jobs) < most:
        item = lane.ready.take()
        if item is None:
            return
        card = item[2]
        if card.deadline is not None and card.deadline <= now:
            finish(book, card, _EXPIRED, now)
            continue
        book.touch(card)
        new = card.new
        lane.counts[_READY] -= 1
        lane.counts[_RUNNING] += 1
        card.state = _RUNNING
        card.spot = None
        card.worker = id_
        card.started_at = now
        card.reason = None
        card.attempt += 1
        card.lease += 1
        running[new.id] = card
        if card.tag > lane.clock:
            lane.clock = card.tag
        if new.unique is not None and new.unique.until == "started":
            give_back_unique(book, card)
        jobs.append(
            Claim(
                new.id, new.task, queue, card.lease, card.attempt, new.max_attempts, card.deaths,
                card.enqueued_at, card.run_at, card.args, new.options, new.key,
            )
        )  # fmt: skip


def _lanes_of(book: Book, worker: Worker) -> list[Lane]:
    """The lanes of a worker's queues that have something to claim."""
    names = worker.info.queues
    if names is None:
        queues = list(book.queues.values())
    else:
        queues = [book.queues[name] for name in names if name in book.queues]
    return [
        lane for queue in queues if not queue.paused for lane in queue.lanes.values() if lane.counts[_READY]
    ]


def _oldest(lane: Lane) -> int | None:
    head = lane.ready.head()
    return None if head is None else head[2].run_at


def _next_due(book: Book) -> int | None:
    head = book.due.head()
    return None if head is None else head[2].run_at
