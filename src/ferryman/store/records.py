"""What a store is told and what it answers: the records of the port."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from ferryman.job import Claim, ErrorInfo, JobId, State, WorkerId, as_job_id
from ferryman.values import WHOLE, Kind, listed, taken

__all__ = [
    "ARRIVING",
    "Capabilities",
    "CauseCount",
    "Claimed",
    "Enqueued",
    "Entry",
    "Filter",
    "Held",
    "JobNote",
    "LaneCounts",
    "LaneState",
    "MinuteStats",
    "Order",
    "OrderKind",
    "Orders",
    "Overflow",
    "ParentResult",
    "Pruned",
    "QueueRecord",
    "QueueSettings",
    "Rescued",
    "Retention",
    "Signs",
    "Take",
    "WorkerInfo",
    "WorkerRecord",
    "WorkerStatus",
]

ARRIVING = "ferryman.arriving"
"""The name of a value that stands in a store while jobs are moved to it. Those that end there meanwhile are proof that they
have arrived, and parents that their children will ask for."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a store guarantees; the table in the documentation is made from these. The first sentence below each is its
    row there."""

    name: str
    durable: bool
    """Acknowledged jobs survive the death of every process."""
    power: str = ""
    """What keeps them through a loss of power."""
    shared: bool
    """Other processes can use it at the same time."""
    remote: bool = False
    """Other machines can use it."""
    own_time: bool = False
    """Leases and due times go by the server's clock, so that machines need not agree on the time."""
    joins: bool = False
    """An enqueue, and the end of a job, can be part of a transaction of yours. See `Store.using`."""
    wakes: str = ""
    """What wakes a sleeping worker, and how often it looks by itself."""
    idle: str = ""
    """What an idle worker asks in a second."""
    undoes_late: bool = True
    """An operation that fails after its last request is still undone. False where an operation is one request, which
    the server has carried out when it answers."""


# -- enqueue ---------------------------------------------------------------------------------------


class Enqueued(msgspec.Struct, frozen=True):
    """The store's answer for one job of a batch."""

    id: JobId
    """The job that now stands for the request: the new one, or the one it is a duplicate of."""
    duplicate: bool = False


Overflow = Literal["block", "reject", "drop_oldest"]


class QueueSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a program says of a queue; the last word counts."""

    name: str
    fair: bool = False
    """Share the queue among tenants by start-time fair queueing, instead of by arrival alone."""
    weights: Mapping[str, float] = {}
    """The share of each tenant of a fair queue; 1 for those not named."""
    max_size: int | None = None
    """How many pending jobs (see `ferryman.job.PENDING`) it may hold."""
    overflow: Overflow = "reject"
    """What an enqueue to a full queue does. A store treats ``block`` as ``reject``: waiting is the producer's."""


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long finished jobs are kept (ms) and how many at most, so that no disk fills up."""

    succeeded: int = 24 * 3_600_000
    succeeded_count: int = 500_000
    dead: int = 90 * 24 * 3_600_000
    dead_count: int = 500_000
    other: int = 7 * 24 * 3_600_000
    """For cancelled and expired jobs."""
    other_count: int = 500_000
    stats: int = 30 * 24 * 3_600_000
    """For the statistics of a minute."""
    workers: int = 3_600_000
    """For the record of a worker that is gone."""


# -- claim -----------------------------------------------------------------------------------------


class Take(msgspec.Struct, frozen=True):
    """One line of a claim's plan: up to `count` jobs of this lane."""

    queue: str
    priority: int
    count: int


class LaneState(msgspec.Struct, frozen=True):
    """A lane that has ready jobs after a claim: what the policy plans the next claim by."""

    queue: str
    priority: int
    depth: int
    oldest: int | None
    """Since when the first job of the lane is ready."""


class Claimed(msgspec.Struct, frozen=True):
    """What a claim got."""

    jobs: Sequence[Claim]
    lanes: Sequence[LaneState]
    """All lanes of the worker's queues, paused ones left out, that still have ready jobs."""
    next_due: int | None
    """When the next scheduled job of any queue is due."""
    now: int
    """The store's time."""


class Signs(msgspec.Struct, frozen=True):
    """What an idle worker looks for."""

    work: bool
    """There may be something to claim: a ready job in a queue of the worker's, or a due one."""
    next_due: int | None
    orders: bool
    """A heartbeat would bring orders."""
    now: int


# -- workers ---------------------------------------------------------------------------------------


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Who a worker is; written when it registers, and again when its tasks have changed."""

    id: WorkerId
    host: str
    place: str
    """Names a set of processes that can see one another: boot of the machine and namespace of process ids."""
    pid: int
    pid_birth: int
    """When the process was started, in the kernel's ticks, to tell it from a later one of the same pid."""
    queues: tuple[str, ...] | None
    """The queues it serves; None for all, those to come included."""
    tasks: tuple[str, ...]
    """The tasks it knows."""
    concurrency: int
    bell: str | None = None
    """Where to ring when there is work; see `Waker`."""
    version: str = ""


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker says of itself with each heartbeat."""

    state: Literal["active", "paused", "draining"] = "active"
    running: int = 0
    done: int = 0
    """Attempts ended since its start."""
    failed: int = 0


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as the store knows it."""

    info: WorkerInfo
    status: WorkerStatus
    registered_at: int
    seen_at: int
    lease_until: int
    gone: Literal["stopped", "dead"] | None = None
    """``stopped``: it left by itself. ``dead``: it was rescued from."""


OrderKind = Literal["cancel", "pause", "resume", "drain", "stop"]


class Order(msgspec.Struct, frozen=True):
    """Something a worker is told to do."""

    kind: OrderKind
    job: JobId | None = None
    """For ``cancel``."""
    reason: str | None = None


class Orders(msgspec.Struct, frozen=True):
    """What a worker is told with the answer to a heartbeat."""

    orders: Sequence[Order]
    last: int
    """The number of the last of them: said with the next heartbeat, it means that they were heard."""


class Held(msgspec.Struct, frozen=True):
    """A job that is leased to a worker."""

    id: JobId
    lease: int


class Rescued(msgspec.Struct, frozen=True):
    """What became of the running jobs of a worker that was found dead."""

    worker: WorkerId
    again: int
    """Jobs that will run again."""
    dead: int
    """Jobs for which it was the last attempt, or the last death."""


class Pruned(msgspec.Struct, frozen=True):
    """What a pruning has done."""

    jobs: int
    """How many jobs were deleted."""
    more: bool
    """It ended at its limit: there may be more to delete."""


class JobNote(msgspec.Struct, frozen=True, array_like=True):
    """What a running job reports of itself."""

    id: JobId
    lease: int
    progress: float | None = None
    text: str | None = None


class ParentResult(msgspec.Struct, frozen=True):
    """What a parent hands to its child."""

    id: JobId
    task: str
    state: State
    result: bytes | None
    error: ErrorInfo | None = None
    """The last one, of a parent that is dead."""


# -- for people ------------------------------------------------------------------------------------


class Filter(msgspec.Struct, frozen=True, kw_only=True):
    """Which jobs are meant: all conditions must hold, an empty one always does."""

    ids: tuple[JobId, ...] = ()
    queues: tuple[str, ...] = ()
    states: tuple[State, ...] = ()
    tasks: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    """Jobs that have at least one of these tags."""
    causes: tuple[str, ...] = ()
    """Dead jobs with one of these causes (`ErrorInfo.cause`, as `Reading.causes` lists them)."""
    since: int | None = None
    """Enqueued at or after."""
    until: int | None = None
    """Enqueued before."""

    def __post_init__(self) -> None:
        for name, kind in _CONDITIONS.items():
            said = getattr(self, name)
            # Not whatever is false: State.WAITING is, and must not mean every job.
            if said is None and kind is _MILLISECONDS:
                continue
            if said != () and (kept := taken(name, said, kind)) is not said:
                msgspec.structs.force_setattr(self, name, kept)


def _all(member: Callable[[Any], Any]) -> Callable[[Any], tuple[Any, ...]]:
    def take(value: Any) -> tuple[Any, ...]:
        kept = tuple(map(member, listed(value)))
        return value if kept == value else kept

    return take


def _id(value: Any) -> JobId:
    id = as_job_id(value)
    if id is None:
        raise ValueError
    return id


def _findable(value: Any) -> str:
    """A text that every store can look for."""
    if not isinstance(value, str) or "\0" in value:
        raise TypeError
    if not value.isascii():
        value.encode()
    return value


def _state(value: Any) -> State:
    if not isinstance(value, State):
        raise TypeError
    return value


_NAMES = _all(_findable)


def _moment(value: Any) -> int:
    moment: int = WHOLE.take(value)
    if abs(moment) > 2**53:  # More, and not every store could compare it.
        raise ValueError
    return moment


_MILLISECONDS = Kind("milliseconds since the epoch: for a datetime int(1000 * it.timestamp())", _moment)

_CONDITIONS = {
    "ids": Kind("a tuple of the ids of jobs, of 32 hexadecimal digits each", _all(_id)),
    "queues": Kind("a tuple of texts, such as ('reports',)", _NAMES),
    "states": Kind("a tuple of states, such as (State.DEAD,)", _all(_state)),
    "tasks": Kind("a tuple of texts, such as ('shop.send_receipt',)", _NAMES),
    "tags": Kind("a tuple of texts, such as ('urgent',)", _NAMES),
    "causes": Kind("a tuple of texts, such as ('ValueError: boom',)", _NAMES),
    "since": _MILLISECONDS,
    "until": _MILLISECONDS,
}


class QueueRecord(msgspec.Struct, frozen=True):
    """A queue as the store knows it."""

    settings: QueueSettings
    paused: bool


class LaneCounts(msgspec.Struct, frozen=True):
    """How many jobs of a lane are in each state: kept, not counted."""

    queue: str
    priority: int
    counts: Mapping[State, int]
    oldest: int | None
    """Since when its first ready job is ready."""


class CauseCount(msgspec.Struct, frozen=True):
    """Dead letters grouped by why they died."""

    task: str
    cause: str
    count: int
    first: int
    last: int
    """When the first and the last of them died."""


class Entry(msgspec.Struct, frozen=True):
    """A value of the shared key-value table."""

    value: bytes
    version: int


class MinuteStats(msgspec.Struct, frozen=True, kw_only=True):
    """What one task did in one queue in one minute."""

    minute: int
    """The start of the minute."""
    queue: str
    task: str
    enqueued: int = 0
    succeeded: int = 0
    failed: int = 0
    """Attempts that failed or crashed, those followed by a retry included."""
    dead: int = 0
    """Jobs that died."""
    waited: Mapping[int, int] = {}
    """Histogram of the time from ready to started, over attempts ended: bucket → count, the buckets being
    those of `ferryman.policy.latency`."""
    ran: Mapping[int, int] = {}
    """Histogram of the run times of attempts ended."""
