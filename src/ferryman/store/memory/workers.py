"""The register of workers: leases, orders, and rescuing the jobs of those that died."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ferryman.job import ErrorInfo, Outcome, OutcomeKind, State, WorkerId
from ferryman.store.memory.book import Book, Worker
from ferryman.store.memory.claim import find_worker
from ferryman.store.memory.settle import settle_leased
from ferryman.store.records import Held, Order, Orders, Rescued, WorkerInfo, WorkerStatus

__all__ = ["heartbeat", "holding", "leave", "leave_order", "order", "register", "rescue"]


def register(book: Book, now: int, info: WorkerInfo, lease: int) -> None:
    known = book.workers.get(info.id)
    if known is None:
        book.put(book.workers, info.id, Worker(info, WorkerStatus(), now, now, now + lease))
    else:
        # The second try of a worker that got no answer to the first.
        book.touch(known)
        known.info, known.seen_at, known.lease_until = info, now, now + lease


def heartbeat(book: Book, now: int, worker: WorkerId, status: WorkerStatus, lease: int, heard: int) -> Orders:
    record = find_worker(book, worker)
    book.touch(record)
    record.status, record.seen_at, record.lease_until = status, now, now + lease
    record.orders = tuple(each for each in record.orders if each[0] > heard)
    last = record.orders[-1][0] if record.orders else heard
    return Orders(record.standing_orders(book.cards), last)


def holding(book: Book, now: int, worker: WorkerId) -> list[Held]:  # noqa: ARG001
    record = book.workers.get(worker)
    return [] if record is None else [Held(card.new.id, card.lease) for card in record.holding()]


def leave(book: Book, now: int, worker: WorkerId) -> None:
    record = book.workers.get(worker)
    if record is not None and record.gone is None:
        error = ErrorInfo("WorkerLeft", f"worker {worker} left before the job was done")
        _take_back(book, now, record, error, death=False)
        _strike_off(book, record, "stopped")


def rescue(book: Book, now: int, dead: Sequence[WorkerId], late: bool) -> list[Rescued]:
    rescued: list[Rescued] = []
    for id_, record in book.workers.items():
        if record.gone is None and ((late and record.lease_until <= now) or id_ in dead):
            again, died = _take_back(book, now, record, ErrorInfo("WorkerLost", f"worker {id_} died"))
            _strike_off(book, record, "dead")
            rescued.append(Rescued(id_, again, died))
    return rescued


def order(book: Book, now: int, workers: Sequence[WorkerId], order: Order) -> int:  # noqa: ARG001
    records = [book.workers[id_] for id_ in dict.fromkeys(workers) if id_ in book.workers]
    alive = [record for record in records if record.gone is None]
    for record in alive:
        leave_order(book, record, order)
    return len(alive)


def leave_order(book: Book, worker: Worker, order: Order, lease: int = 0) -> None:
    """Leave an order for a worker to find with its next heartbeat."""
    book.touch(worker)
    worker.orders = (*worker.orders, (book.next_number(), order, lease))
    book.woke = True


def _take_back(
    book: Book, now: int, worker: Worker, error: ErrorInfo, *, death: bool = True
) -> tuple[int, int]:
    """Settle all that a worker runs as crashed. Answers how many jobs will run again, and how many died."""
    again = died = 0
    for card in worker.holding():
        ran_us = max(0, now - (card.started_at or now)) * 1000
        outcome = Outcome(card.new.id, card.lease, OutcomeKind.CRASHED, ran_us=ran_us, error=error)
        state = settle_leased(book, now, card, outcome, death=death)
        died += state is State.DEAD
        again += state is State.READY
    return again, died


def _strike_off(book: Book, worker: Worker, gone: Literal["stopped", "dead"]) -> None:
    book.touch(worker)
    worker.gone = gone
    worker.orders = ()
