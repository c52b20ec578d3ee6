"""The job: one call of a task, with its whole life. The records that every floor passes around.

All records are immutable. Times are integer milliseconds since the epoch by the store's clock, ids are
32 hexadecimal digits. `TRANSITIONS` is the one table of allowed state changes: every store is tested
against it.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NewType

import msgspec

from ferryman.values import SECONDS, taken

if TYPE_CHECKING:
    import datetime

__all__ = [
    "FINISHED",
    "MAX_COUNT",
    "MAX_DEATHS",
    "MAX_PRIORITY",
    "MAX_TEXT",
    "MIN_PRIORITY",
    "PENDING",
    "RERUNS",
    "TRANSITIONS",
    "Attempt",
    "Cancel",
    "Claim",
    "ErrorInfo",
    "Fail",
    "History",
    "Job",
    "JobId",
    "NewJob",
    "Note",
    "OnParentFailure",
    "Outcome",
    "OutcomeKind",
    "RetryIn",
    "Signal",
    "Snooze",
    "State",
    "UniqueKey",
    "WorkerId",
    "as_job_id",
    "new_id",
    "new_ids",
]

JobId = NewType("JobId", str)
"""A UUIDv7 as 32 hexadecimal digits, made by the producer."""

WorkerId = NewType("WorkerId", str)
"""The name of one start of one worker; never used again."""

MIN_PRIORITY, MAX_PRIORITY = -9, 9
"""Bounds of a priority; a larger one is served sooner, the default is 0."""

MAX_COUNT = 2**31 - 1
"""Of attempts and of places: what every store can keep."""

MAX_TEXT = 1_000
"""Bytes of a text that is looked up as a whole, such as a key. Two of them fit into one entry of an index, the longest of
which PostgreSQL takes has 2,704."""

MAX_DEATHS = 3
"""How many times a job may take its executor down with it before it is put with the dead letters."""


class State(enum.IntEnum):
    """Where a job is in its life."""

    WAITING = 0
    """For other jobs to finish."""
    SCHEDULED = 1
    """For a moment to come: a delay, or the next attempt after a failure."""
    READY = 2
    """In its lane, to be claimed."""
    PARKED = 3
    """Its key is full; the settle that makes room lets it into its lane."""
    RUNNING = 4
    """Leased to a worker."""
    SUCCEEDED = 5
    DEAD = 6
    """Failed for good: a dead letter, until it is replayed or purged."""
    CANCELLED = 7
    EXPIRED = 8
    """Not started by its deadline."""

    @property
    def label(self) -> str:
        """The state as people read and write it."""
        return self.name.lower()


FINISHED = frozenset({State.SUCCEEDED, State.DEAD, State.CANCELLED, State.EXPIRED})
"""States that a job leaves only by being replayed."""

PENDING = frozenset({State.WAITING, State.SCHEDULED, State.READY, State.PARKED})
"""States of a job that is yet to run: these count against a queue's bound."""

_ENTRIES = frozenset({State.WAITING, State.SCHEDULED, State.READY, State.PARKED, State.CANCELLED})

TRANSITIONS: dict[State | None, frozenset[State]] = {
    # None: the job is being enqueued. It can be born cancelled: a parent may have failed already.
    None: _ENTRIES,
    State.WAITING: frozenset({State.SCHEDULED, State.READY, State.PARKED, State.CANCELLED, State.EXPIRED}),
    State.SCHEDULED: frozenset({State.READY, State.PARKED, State.CANCELLED, State.EXPIRED}),
    State.READY: frozenset({State.RUNNING, State.CANCELLED, State.EXPIRED}),
    State.PARKED: frozenset({State.READY, State.CANCELLED, State.EXPIRED}),
    State.RUNNING: frozenset({State.SUCCEEDED, State.DEAD, State.CANCELLED, State.SCHEDULED, State.READY}),
    # Replays.
    State.SUCCEEDED: frozenset({State.READY, State.PARKED}),
    State.DEAD: frozenset({State.READY, State.PARKED}),
    State.CANCELLED: frozenset({State.READY, State.PARKED}),
    State.EXPIRED: frozenset({State.READY, State.PARKED}),
}
"""Allowed changes of state. A job may also stay where it is, or be deleted in any state but RUNNING."""

OnParentFailure = Literal["cancel", "continue", "hold"]
"""What becomes of a waiting job when one of its parents dies, expires or is cancelled.

``cancel`` (the default) cancels it and, in turn, its own children; ``continue`` counts the parent as
finished; ``hold`` keeps the job waiting, so that a replay of the parent can still bring it to run.
"""


class UniqueKey(msgspec.Struct, frozen=True):
    """At most one job of the same `key` at a time.

    With `period` (ms) the key is taken for so long after the enqueue, whatever becomes of the job.
    Without, it is taken until the job is started or finished, as `until` says. (Claimed is as good as started; a job that is
    given back without having been started takes its key again, unless another has it by then.)
    """

    key: str
    period: int | None = None
    until: Literal["started", "finished"] = "finished"


class NewJob(msgspec.Struct, frozen=True, kw_only=True):
    """What a producer asks a store to keep."""

    id: JobId
    task: str
    args: bytes
    """The encoded arguments; no store looks inside."""
    queue: str = "default"
    priority: int = 0
    options: bytes | None = None
    """Encoded `TaskOptions` that this job overrides; no store looks inside."""
    max_attempts: int = 1
    delay: int = 0
    """ms from the store's now until it may run."""
    at: int | None = None
    """The moment from which it may run, instead of `delay`."""
    ttl: int | None = None
    """ms from the store's now after which it is no longer started."""
    deadline: int | None = None
    """The moment after which it is no longer started, instead of `ttl`."""
    key: str | None = None
    """Jobs of the same key share `room` places among running jobs."""
    room: int = 1
    ordered: bool = False
    """Jobs of the same key run one at a time in the order of their arrival, through retries."""
    unique: UniqueKey | None = None
    after: tuple[JobId, ...] = ()
    """Parents: jobs that must finish first."""
    on_parent_failure: OnParentFailure = "cancel"
    tenant: str | None = None
    """For whom the job is: a fair queue shares itself among tenants."""
    tags: tuple[str, ...] = ()


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """Why an attempt failed, fit to be stored and shown."""

    type: str
    """The exception's class, such as ``ValueError`` or ``requests.exceptions.ReadTimeout``."""
    message: str
    traceback: str = ""

    @property
    def cause(self) -> str:
        """One line for people, and the key by which dead letters are grouped."""
        first_line = self.message.partition("\n")[0][:200]
        return f"{self.type}: {first_line}" if first_line else self.type


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A leased job on its way to an executor."""

    id: JobId
    task: str
    queue: str
    lease: int
    """The number of this claim of the job, never used again: the fence. A snoozed or released job gets its
    attempt back, but never its lease."""
    attempt: int
    """1 for the first attempt."""
    max_attempts: int
    deaths: int
    """How often the job was running when its executor died."""
    enqueued_at: int
    ready_at: int
    """Since when the job could have run; what it waited is counted from here."""
    args: bytes
    options: bytes | None = None
    key: str | None = None


class OutcomeKind(enum.IntEnum):
    """What an attempt came to."""

    SUCCEEDED = 0
    RETRY = 1
    """Failed; runs again after `delay`, if an attempt is left, else it is dead."""
    DEAD = 2
    """Failed for good."""
    SNOOZED = 3
    """Put off for `delay`; no attempt is spent."""
    CANCELLED = 4
    RELEASED = 5
    """Given back without having been started, at the place it had; no attempt is spent."""
    CRASHED = 6
    """Its executor died while it ran: runs again at once, unless that was its last attempt or its
    `MAX_DEATHS`-th death."""


RERUNS = frozenset({OutcomeKind.RETRY, OutcomeKind.SNOOZED, OutcomeKind.RELEASED, OutcomeKind.CRASHED})
"""Outcomes after which a job may run again, unless it was to be cancelled."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """What an executor says of an attempt; `settle` carries it out."""

    id: JobId
    lease: int
    kind: OutcomeKind
    ran_us: int = 0
    """How long it ran, in µs."""
    result: bytes | None = None
    delay: int = 0
    """ms until the next attempt, for RETRY and SNOOZED."""
    error: ErrorInfo | None = None
    """For RETRY, DEAD and CRASHED, and what a CANCELLED one ended with."""
    reason: str | None = None
    """A line for people, for SNOOZED and CANCELLED."""
    keep_result: int | None = None
    """ms that the result is kept; the queue's retention if None."""
    completed: bool = False
    """The task has settled itself inside a transaction of its own. If that was committed, this outcome is void, as
    it should be."""

    def as_cancelled(self) -> Outcome:
        """What it comes to for a job that was to be cancelled: it must not run again."""
        reason = "cancelled while it ran"
        return msgspec.structs.replace(self, kind=OutcomeKind.CANCELLED, reason=reason)


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the store knows it."""

    id: JobId
    seq: int
    """The number of its arrival: order within a lane."""
    task: str
    queue: str
    priority: int
    state: State
    attempt: int
    """Attempts begun."""
    max_attempts: int
    deaths: int
    enqueued_at: int
    run_at: int
    """When it is, or was, due: READY jobs could have run since then."""
    started_at: int | None = None
    """When its last attempt began."""
    finished_at: int | None = None
    deadline: int | None = None
    worker: WorkerId | None = None
    """Who runs it, or ran it last."""
    key: str | None = None
    tenant: str | None = None
    tags: tuple[str, ...] = ()
    reason: str | None = None
    """Why it is dead, cancelled or snoozed, in one line."""
    progress: float | None = None
    """0 to 1, as last reported by the task."""
    args: bytes = b""
    options: bytes | None = None
    result: bytes | None = None
    result_until: int | None = None
    """When the result is forgotten, if before the job itself: then `result` is None."""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt that did not succeed, kept with the job. (The one that did is the job's own record.)"""

    number: int
    kind: OutcomeKind
    worker: WorkerId
    started_at: int
    finished_at: int
    error: ErrorInfo | None = None
    reason: str | None = None


class Note(msgspec.Struct, frozen=True):
    """A line that a task wrote about its own job."""

    at: int
    attempt: int
    text: str


class History(msgspec.Struct, frozen=True, kw_only=True):
    """The whole life of a job."""

    job: Job
    attempts: Sequence[Attempt] = ()
    notes: Sequence[Note] = ()
    parents: Sequence[JobId] = ()
    children: Sequence[JobId] = ()


# -- what a task can return or raise to steer its own job ------------------------------------------


class Signal(Exception):
    """A task returns or raises one of these to say what shall happen to its job."""


class Snooze(Signal):
    """Run again in `delay` seconds; no attempt is spent."""

    def __init__(self, delay: float | datetime.timedelta, reason: str | None = None) -> None:
        delay = _delay(self, delay)
        super().__init__(delay, reason)
        self.delay = delay
        self.reason = reason


class Cancel(Signal):
    """End here: the job is cancelled, and children that wait for it do as they were told."""

    def __init__(self, reason: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason


class RetryIn(Signal):
    """This attempt failed; the next comes in `delay` seconds, whatever the policy says."""

    def __init__(self, delay: float | datetime.timedelta, reason: str = "asked to be retried") -> None:
        delay = _delay(self, delay)
        super().__init__(delay, reason)
        self.delay = delay
        self.reason = reason


class Fail(Signal):
    """This job cannot succeed: put it with the dead letters now."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _delay(signal: Signal, delay: Any) -> float:
    seconds: float = taken(f"the delay of {type(signal).__name__}", delay, SECONDS)
    return seconds


# -- ids -------------------------------------------------------------------------------------------

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def new_ids(count: int) -> list[JobId]:
    """`count` fresh UUIDv7 (RFC 9562, section 5.7) as hexadecimal digits; the randomness survives forks."""
    head = f"{time.time_ns() // 1_000_000:012x}7"
    noise = os.urandom(10 * count).hex()
    return [
        JobId(head + noise[i : i + 3] + _VARIANT[noise[i + 3]] + noise[i + 4 : i + 19])
        for i in range(0, 20 * count, 20)
    ]


def new_id() -> JobId:
    """One fresh id."""
    return new_ids(1)[0]


_ID = re.compile("[0-9a-f]{32}")


def as_job_id(said: object) -> JobId | None:
    """The id that is meant by a text or a UUID, in whatever case, with or without dashes; None if there is no such id."""
    text = said if isinstance(said, str) else getattr(said, "hex", None)
    if not isinstance(text, str):
        return None
    if _ID.fullmatch(text) is None:
        text = text.replace("-", "").lower()
        if _ID.fullmatch(text) is None:
            return None
    return JobId(text)
