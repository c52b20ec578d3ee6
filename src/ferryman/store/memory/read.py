"""What people look at. Nothing here writes."""

from __future__ import annotations

from collections.abc import Sequence

from ferryman.job import FINISHED, History, Job, JobId, State
from ferryman.store.memory.book import Book, Card
from ferryman.store.memory.filters import matching
from ferryman.store.records import (
    CauseCount,
    Filter,
    LaneCounts,
    MinuteStats,
    ParentResult,
    QueueRecord,
    WorkerRecord,
)

__all__ = [
    "causes",
    "find",
    "get",
    "history",
    "lanes",
    "parent_results",
    "queues",
    "stats",
    "time",
    "workers",
]


def get(book: Book, now: int, ids: Sequence[JobId]) -> list[Job | None]:
    cards = [book.cards.get(id_) for id_ in ids]
    return [None if card is None else _job(card, now) for card in cards]


def find(book: Book, now: int, which: Filter, limit: int, before: int | None) -> list[Job]:
    def is_older(card: Card) -> bool:
        return before is None or card.seq < before

    found = matching(book, which, list(State), limit=limit, newest_first=True, test=is_older)
    return [_job(card, now, body=False) for card in found]


def history(book: Book, now: int, job: JobId) -> History | None:
    card = book.cards.get(job)
    if card is None:
        return None
    children = [book.cards[id_] for id_ in card.children or ()]
    children.sort(key=lambda child: child.seq)
    return History(
        job=_job(card, now),
        attempts=card.attempts,
        notes=card.notes,
        parents=card.parents,
        children=tuple(child.new.id for child in children),
    )


def parent_results(book: Book, now: int, job: JobId, offset: int, limit: int) -> list[ParentResult]:
    child = book.cards.get(job)
    parents = [book.cards[id_] for id_ in (child.parents if child else ()) if id_ in book.cards]
    return [_parent_result(parent, now) for parent in parents[offset : offset + limit]]


def _parent_result(card: Card, now: int) -> ParentResult:
    error = None
    if card.state in FINISHED and card.state is not State.SUCCEEDED:
        error = next((attempt.error for attempt in reversed(card.attempts) if attempt.error), None)
    return ParentResult(card.new.id, card.new.task, card.state, _result(card, now), error)


def lanes(book: Book, now: int) -> list[LaneCounts]:  # noqa: ARG001
    found: list[LaneCounts] = []
    for name, queue in sorted(book.queues.items()):
        for priority, lane in sorted(queue.lanes.items(), reverse=True):
            head = lane.ready.head()
            counts = dict(zip(State, lane.counts, strict=True))
            found.append(LaneCounts(name, priority, counts, None if head is None else head[2].run_at))
    return found


def time(book: Book, now: int) -> int:  # noqa: ARG001
    return now


def queues(book: Book, now: int) -> list[QueueRecord]:  # noqa: ARG001
    return [QueueRecord(queue.settings, queue.paused) for _, queue in sorted(book.queues.items())]


def stats(book: Book, now: int, since: int, until: int) -> list[MinuteStats]:  # noqa: ARG001
    return [
        MinuteStats(
            minute=start, queue=queue, task=task, enqueued=minute.enqueued, succeeded=minute.succeeded,
            failed=minute.failed, dead=minute.dead, waited=minute.waited.copy(), ran=minute.ran.copy(),
        )
        for start in sorted(start for start in book.minutes if since <= start < until)
        for (queue, task), minute in sorted(book.minutes[start].items())
    ]  # fmt: skip


def causes(book: Book, now: int, which: Filter) -> list[CauseCount]:  # noqa: ARG001
    groups: dict[tuple[str, str], list[int]] = {}
    for card in matching(book, which, (State.DEAD,), limit=len(book.cards)):
        died_at = card.finished_at or 0
        groups.setdefault((card.new.task, card.reason or ""), []).append(died_at)
    counts = [
        CauseCount(task, cause, len(times), min(times), max(times)) for (task, cause), times in groups.items()
    ]
    return sorted(counts, key=lambda group: (-group.count, group.task, group.cause))


def workers(book: Book, now: int, alive: bool) -> list[WorkerRecord]:  # noqa: ARG001
    records = sorted(book.workers.values(), key=lambda worker: worker.registered_at)
    return [
        WorkerRecord(
            info=worker.info, status=worker.status, registered_at=worker.registered_at, seen_at=worker.seen_at,
            lease_until=worker.lease_until, gone=worker.gone,
        )
        for worker in records
        if not (alive and worker.gone)
    ]  # fmt: skip


def _result(card: Card, now: int) -> bytes | None:
    return None if card.result_until is not None and card.result_until <= now else card.result


def _job(card: Card, now: int, *, body: bool = True) -> Job:
    new = card.new
    return Job(
        id=new.id,
        seq=card.seq,
        task=new.task,
        queue=new.queue,
        priority=card.lane.priority,
        state=card.state,
        attempt=card.attempt,
        max_attempts=new.max_attempts,
        deaths=card.deaths,
        enqueued_at=card.enqueued_at,
        run_at=card.run_at,
        started_at=card.started_at,
        finished_at=card.finished_at,
        deadline=card.deadline,
        worker=card.worker,
        key=new.key,
        tenant=new.tenant,
        tags=new.tags,
        reason=card.reason,
        progress=card.progress,
        args=card.args if body else b"",
        options=new.options if body else None,
        result=_result(card, now) if body else None,
        result_until=card.result_until if body else None,
    )
