"""The book: every record of the memory store, and the undo steps of the transaction under way.

Whoever changes a record touches it first; whoever adds or drops an entry of a dictionary uses `put` and
`drop`. That alone makes a transaction all or nothing. Lines hold hints (see `line.py`) and need no undoing:
rolling back a card puts it into its line again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from ferryman.job import Attempt, JobId, NewJob, Note, State, WorkerId
from ferryman.store.memory.line import Item, Line
from ferryman.store.records import Order, QueueSettings, WorkerInfo, WorkerStatus

__all__ = ["Book", "Card", "Fading", "Key", "Lane", "Minute", "Queue", "Worker", "unborn"]

_MINUTE = 60_000

# Looked up once: a member of an enum costs more than a name. States are numbered along a life: those below
# RUNNING are pending, those above are finished.
_RUNNING, _READY, _PARKED = State.RUNNING, State.READY, State.PARKED

_MISSING: Any = object()


class Queue(msgspec.Struct, eq=False):
    """A queue and its lanes by priority."""

    settings: QueueSettings
    paused: bool = False
    lanes: dict[int, Lane] = {}
    arrivals: Line | None = None
    """Its pending jobs by arrival; made when a job of it must be dropped for the first time."""
    touched: int = 0

    def pending(self) -> int:
        return sum(sum(lane.counts[:_RUNNING]) for lane in self.lanes.values())


class Lane(msgspec.Struct, eq=False):
    """The jobs of a queue and a priority."""

    queue: Queue
    priority: int
    counts: list[int]
    """How many jobs are in each state."""
    ready: Line
    clock: float = 0.0
    """Virtual time of a fair lane: the largest tag claimed."""
    top: float = 0.0
    """The largest tag given."""
    tenants: dict[str | None, float] = {}
    """The last tag of each tenant, if it is ahead of the clock."""
    sweep_at: int = 64
    touched: int = 0


class Card(msgspec.Struct, eq=False):
    """A job. All it refers to is immutable but its lane and `children`."""

    new: NewJob
    """As it was enqueued."""
    seq: int
    lane: Lane
    args: bytes
    enqueued_at: int
    run_at: int
    deadline: int | None
    touched: int
    state: State = State.WAITING
    attempt: int = 0
    deaths: int = 0
    lease: int = 0
    worker: WorkerId | None = None
    started_at: int | None = None
    finished_at: int | None = None
    reason: str | None = None
    progress: float | None = None
    result: bytes | None = None
    result_until: int | None = None
    tag: float = 0.0
    holds: bool = False
    """It has a place of its key."""
    warned: int = 0
    """The last lease that was ordered to be cancelled."""
    missing: int = 0
    """How many parents it waits for."""
    parents: tuple[JobId, ...] = ()
    children: dict[JobId, bool] | None = None
    """Whether each child still waits for it."""
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[Note, ...] = ()
    spot: Item | None = None
    """Its place in the line of its state: an item that is not this one is out of date."""


class Key(msgspec.Struct, eq=False):
    """A key that unfinished jobs share."""

    room: int
    parked: Line
    used: int = 0
    jobs: int = 0
    """Unfinished jobs of the key; it is forgotten with the last one."""
    touched: int = 0


class Worker(msgspec.Struct, eq=False):
    """A worker on the register."""

    info: WorkerInfo
    status: WorkerStatus
    registered_at: int
    seen_at: int
    lease_until: int
    gone: Literal["stopped", "dead"] | None = None
    running: dict[JobId, Card] = {}
    """Hints: see `holding`."""
    orders: tuple[tuple[int, Order, int], ...] = ()
    """Orders that were not heard yet, with their numbers; those to cancel, with the lease that is meant."""
    touched: int = 0

    def holding(self) -> list[Card]:
        """The jobs that it runs, the oldest first."""
        mine = self.info.id
        held = [card for card in self.running.values() if card.state is _RUNNING and card.worker == mine]
        return sorted(held, key=lambda card: card.seq)

    def standing_orders(self, cards: dict[JobId, Card]) -> list[Order]:
        """Orders that were not heard yet, but for those to cancel a lease that is over: the job may run under another."""
        return [order for _, order, lease in self.orders if not lease or self._holds(cards, order.job, lease)]

    def _holds(self, cards: dict[JobId, Card], job: JobId | None, lease: int) -> bool:
        card = None if job is None else cards.get(job)
        return (
            card is not None
            and card.state is _RUNNING
            and card.lease == lease
            and card.worker == self.info.id
        )


class Minute(msgspec.Struct, eq=False):
    """What one task did in one queue in one minute."""

    enqueued: int = 0
    succeeded: int = 0
    failed: int = 0
    dead: int = 0
    waited: dict[int, int] = {}
    ran: dict[int, int] = {}
    touched: int = 0


class Fading(msgspec.Struct, frozen=True):
    """A lock, a value or a unique key that is taken: something that may end with time."""

    holder: Any
    """The owner of a lock, the bytes of a value, the job of a unique key."""
    number: int
    """The token of a lock, the version of a value."""
    until: int | None


def _still_pending(item: Item) -> bool:
    return bool(item[2].state < _RUNNING)


def _same_deadline(item: Item) -> bool:
    card = item[2]
    return bool(card.deadline == item[0] and card.state < _RUNNING)


def _same_result(item: Item) -> bool:
    card = item[2]
    return bool(card.result_until == item[0] and card.result is not None)


def _same_end(item: Item) -> bool:
    mapping, key = item[2]
    entry = mapping.get(key)
    return entry is not None and entry.until == item[0]


@dataclass(slots=True)
class Book:
    """All that the store knows. Not thread-safe: the runner's lock guards it."""

    cards: dict[JobId, Card] = field(default_factory=dict)
    queues: dict[str, Queue] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    uniques: dict[str, Fading] = field(default_factory=dict)
    workers: dict[WorkerId, Worker] = field(default_factory=dict)
    minutes: dict[int, dict[tuple[str, str], Minute]] = field(default_factory=dict)
    locks: dict[str, Fading] = field(default_factory=dict)
    values: dict[str, Fading] = field(default_factory=dict)

    due: Line = field(default_factory=Line)
    """Scheduled jobs by the moment they are due."""
    deadlines: Line = field(default_factory=lambda: Line(_same_deadline))
    """Pending jobs that have a deadline."""
    succeeded: Line = field(default_factory=Line)
    dead: Line = field(default_factory=Line)
    other: Line = field(default_factory=Line)
    """Finished jobs by the moment they finished: cancelled and expired ones together."""
    results: Line = field(default_factory=lambda: Line(_same_result))
    """Jobs whose result is kept for a time of its own."""
    ends: Line = field(default_factory=lambda: Line(_same_end))
    """Locks, values and unique keys that end with time."""

    woke: bool = False
    """The transaction made work for a sleeping worker."""
    number: int = 1
    """Of the transaction; a record that bears it has been touched."""
    undo: list[tuple[Any, ...]] = field(default_factory=list)
    """Functions and their arguments, to be called backwards."""
    _counter: int = 0
    _lines: list[Line | None] = field(default_factory=list)
    """The line of each state that has one for all lanes and keys."""

    def __post_init__(self) -> None:
        self._lines = [
            None, self.due, None, None, None, self.succeeded, self.dead, self.other, self.other,
        ]  # fmt: skip

    # -- changing it -----------------------------------------------------------------------------

    def touch(self, record: Any) -> None:
        """Remember a record as it is, once a transaction, before its first change."""
        if record.touched == self.number:
            return
        self.undo.append((_restore, record, record.__copy__()))
        # The old containers belong to the copy from now on.
        if type(record) is Lane:
            record.counts = record.counts.copy()
        elif type(record) is Minute:
            record.waited, record.ran = record.waited.copy(), record.ran.copy()
        record.touched = self.number

    def put(self, mapping: dict[Any, Any], key: Any, value: Any) -> None:
        self.undo.append((_put_back, mapping, key, mapping.get(key, _MISSING)))
        mapping[key] = value

    def drop(self, mapping: dict[Any, Any], key: Any) -> None:
        self.undo.append((_put_back, mapping, key, mapping[key]))
        del mapping[key]

    def put_fading(self, mapping: dict[str, Fading], key: str, entry: Fading) -> None:
        self.put(mapping, key, entry)
        if entry.until is not None:
            self.ends.push((entry.until, self.next_number(), (mapping, key)))

    def next_number(self) -> int:
        """Never the same twice, and always larger: arrivals, tokens and versions."""
        self._counter += 1
        return self._counter

    # -- records, made when first asked for ---------------------------------------------------------

    def queue(self, name: str) -> Queue:
        queue = self.queues.get(name)
        if queue is None:
            queue = Queue(QueueSettings(name=name))
            self.put(self.queues, name, queue)
        return queue

    def lane(self, queue: str, priority: int) -> Lane:
        owner = self.queue(queue)
        lane = owner.lanes.get(priority)
        if lane is None:
            lane = Lane(owner, priority, [0] * len(State), Line())
            self.put(owner.lanes, priority, lane)
        return lane

    def minute(self, now: int, queue: str, task: str) -> Minute:
        """The statistics to write to, touched already."""
        start = now - now % _MINUTE
        of_minute = self.minutes.get(start)
        if of_minute is None:
            of_minute = {}
            self.put(self.minutes, start, of_minute)
        minute = of_minute.get((queue, task))
        if minute is None:
            minute = Minute(touched=self.number)
            self.put(of_minute, (queue, task), minute)
        elif minute.touched != self.number:
            self.touch(minute)
        return minute

    # -- where a card stands -------------------------------------------------------------------------

    def move(self, card: Card, state: State, rank: float = 0) -> None:
        """Change the state of a card that was touched, with its counts and its line."""
        lane = card.lane
        if lane.touched != self.number:
            self.touch(lane)
        before = card.state
        counts = lane.counts
        counts[before] -= 1
        counts[state] += 1
        card.state = state
        card.spot = (rank, card.seq, card)
        self._line_up(card)
        if before >= _RUNNING > state:
            self.expect(card)

    def expect(self, card: Card) -> None:
        """A card has become pending: it may be late one day, or be dropped."""
        if card.deadline is not None:
            self.deadlines.push((card.deadline, card.seq, card))
        arrivals = card.lane.queue.arrivals
        if arrivals is not None:
            arrivals.push((0, card.seq, card))

    def find_arrivals(self, queue: Queue) -> Line:
        """The pending jobs of a queue by arrival, which nobody kept until somebody asked."""
        if queue.arrivals is None:
            line = Line(_still_pending)
            for card in self.cards.values():
                if card.state < _RUNNING and card.lane.queue is queue:
                    line.push((0, card.seq, card))
            queue.arrivals = line
        return queue.arrivals

    def _line_up(self, card: Card) -> None:
        """Push the spot of a card to the line of its state."""
        state = card.state
        line = card.lane.ready if state is _READY else self._lines[state]
        if state is _PARKED:
            line = self.keys[card.new.key or ""].parked
        if line is not None and card.spot is not None:
            line.push(card.spot)

    # -- the end of a transaction ------------------------------------------------------------------

    def commit(self) -> bool:
        """Whether anything was changed."""
        self.number += 1
        self.woke = False
        changed = bool(self.undo)
        self.undo.clear()
        return changed

    def roll_back(self, *, interrupted: bool) -> None:
        """Make all as it was before the transaction.

        What is not an error of our own, such as an interrupt or the end of the memory, can strike between any two
        steps, and so lose items of lines: then all cards stand up again.
        """
        touched: list[Card] = []
        deleted = False
        for undo, record, *others in reversed(self.undo):
            undo(record, *others)
            if type(record) is Card:
                touched.append(record)
            deleted = deleted or record is self.cards
        self.commit()
        if deleted:
            # Those that came back must be where they were: cards are kept by arrival.
            self.cards = dict(sorted(self.cards.items(), key=lambda entry: entry[1].seq))
        for card in self.cards.values() if interrupted else touched:
            self._stand_again(card)

    def _stand_again(self, card: Card) -> None:
        if card.state is _RUNNING and card.worker is not None:
            self.workers[card.worker].running[card.new.id] = card
        elif self.cards.get(card.new.id) is card:
            self._line_up(card)
            if card.state < _RUNNING:
                self.expect(card)
            if card.result_until is not None and card.result is not None:
                self.results.push((card.result_until, card.seq, card))


def unborn(born: list[Card], cards: dict[JobId, Card]) -> None:
    """The undo step of an enqueue. Items that lines still have of these cards must mean nothing."""
    for card in born:
        cards.pop(card.new.id, None)
        card.state, card.spot, card.result_until = State.CANCELLED, None, None


def _restore(record: Any, before: Any) -> None:
    for name in record.__struct_fields__:
        setattr(record, name, getattr(before, name))


def _put_back(mapping: dict[Any, Any], key: Any, before: Any) -> None:
    if before is _MISSING:
        mapping.pop(key, None)
    else:
        mapping[key] = before
