"""What can be said of a job beside its arguments: by its task, or by `task.options(…)` for some jobs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from ferryman.clock import CENTURY, millis
from ferryman.errors import ConfigError
from ferryman.job import MAX_COUNT, MAX_PRIORITY, MAX_TEXT, MIN_PRIORITY, JobId, NewJob, OnParentFailure
from ferryman.policy.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PRIORITIES",
    "HasId",
    "Options",
    "Overrides",
    "Priority",
    "Unique",
    "new_job_template",
    "too_long",
]

PRIORITIES = {"low": -5, "normal": 0, "high": 5, "urgent": 9}

Priority = int | Literal["low", "normal", "high", "urgent"]


class HasId(Protocol):
    """A job handle, or anything else that knows a job's id."""

    @property
    def id(self) -> JobId: ...


class Unique(msgspec.Struct, frozen=True):
    """At most one job of the same `key` at a time; of the same task and arguments if no key is given.

    With `period` (seconds) the key is taken for so long after the enqueue, whatever becomes of the job.
    Without, it is taken until the job is started or finished, as `until` says.
    """

    key: str | None = None
    period: float | None = None
    until: Literal["started", "finished"] = "finished"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Durations are in seconds, moments are aware datetimes."""

    queue: str = "default"
    priority: Priority = "normal"
    """-9 to 9, or a name: low is -5, normal 0, high 5, urgent 9. Larger is sooner."""
    delay: float = 0.0
    at: datetime.datetime | None = None
    """The moment from which the job may run, instead of `delay`."""
    ttl: float | None = None
    """Seconds after which the job is no longer started, but expires."""
    deadline: datetime.datetime | None = None
    """The moment after which it expires, instead of `ttl`."""
    retry: Retry = Retry()
    at_most_once: bool = False
    """Never run the job a second time, whatever happens to its worker. One attempt."""
    timeout: float | None = None
    """Seconds after which an attempt is stopped: softly by an exception, `grace` later by a kill."""
    max_memory: int | None = None
    """MiB that the job's executor may take while the job runs, before it is killed."""
    key: str | Callable[..., str | None] | None = None
    """Jobs of the same key share `room` places. A format string or a function over the arguments:
    ``"customer-{customer_id}"``. At most 1,000 bytes, as all texts here by which jobs are found."""
    room: int = 1
    ordered: bool = False
    """Jobs of the same key run one at a time in order of arrival, through retries."""
    unique: bool | float | str | Unique | None = None
    """At most one such job at a time: until it is finished (True), or for so many seconds, by task and
    arguments; or by the given key until it is finished; or as a `Unique` says."""
    after: Sequence[HasId] = ()
    """Jobs that must finish first."""
    on_parent_failure: OnParentFailure = "cancel"
    tenant: str | None = None
    tags: Sequence[str] = ()
    result_ttl: float | None = None
    """Seconds that the result is kept; as long as the job itself if None."""


class Overrides(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a job carries to its executor that differs from its task's own options."""

    timeout: float | None = None
    max_memory: int | None = None
    result_ttl: float | None = None
    backoff: Retry | None = None
    """Only the fields that can be written down; errors are told apart by the task's own policy."""


def new_job_template(label: str, options: Options, changed: Mapping[str, Any]) -> NewJob:
    """A job of these options that lacks only its id and arguments. Raises ConfigError, which names the option."""
    problem = _problem(options) or too_long("its name", label)
    if problem:
        raise ConfigError(f"the options of {label}: {problem}")
    retry = options.retry
    return NewJob(
        id=JobId(""),
        task=label,
        args=b"",
        queue=options.queue,
        priority=PRIORITIES.get(options.priority, options.priority)  # type: ignore[arg-type]
        if isinstance(options.priority, str)
        else options.priority,
        options=_overrides(label, changed),
        max_attempts=1 if options.at_most_once else retry.max_attempts,
        delay=millis(options.delay),
        at=_moment(options.at),
        ttl=None if options.ttl is None else millis(options.ttl),
        deadline=_moment(options.deadline),
        key=options.key if isinstance(options.key, str) else None,
        room=options.room,
        ordered=options.ordered,
        after=tuple(parent.id for parent in options.after),
        on_parent_failure=options.on_parent_failure,
        tenant=None if options.tenant is None else str(options.tenant),
        tags=tuple(str(tag) for tag in options.tags),
    )


def _problem(options: Options) -> str | None:
    priority = options.priority
    if isinstance(priority, str) and priority not in PRIORITIES:
        return f"priority {priority!r} is none of {', '.join(PRIORITIES)}, nor a number"
    if not isinstance(priority, (int, str)):
        return f"priority {priority!r} is no whole number"
    if isinstance(priority, int) and not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        return f"priority {priority} does not lie between {MIN_PRIORITY} and {MAX_PRIORITY}"
    if not options.queue or len(options.queue) > 200:
        return "a queue needs a name of 1 to 200 characters"
    for name in ("at", "deadline"):
        moment = getattr(options, name)
        if moment is not None and moment.tzinfo is None:
            return f"{name} must be an aware datetime, such as datetime.now(timezone.utc)"
    durations = {name: getattr(options, name) for name in ("delay", "ttl", "timeout", "result_ttl")}
    durations["unique"] = _period(options.unique)
    for name, seconds in durations.items():
        if seconds is not None and not 0 <= seconds <= CENTURY:
            return f"{name} must lie between 0 and {CENTURY:,.0f} seconds, a hundred years"
    if not (options.key is None or isinstance(options.key, str) or callable(options.key)):
        return f"key must be a text or a function, not {options.key!r}"
    texts = (("key", options.key), ("unique", _unique_key(options.unique)), ("tenant", options.tenant))
    for name, text in (*texts, *(("tag", tag) for tag in options.tags)):
        if isinstance(text, str) and (problem := too_long(name, text)):
            return problem
    if options.max_memory is not None and options.max_memory < 0:
        return "max_memory must not be negative"
    if not 1 <= options.room <= MAX_COUNT:
        return f"room must lie between 1 and {MAX_COUNT:,}"
    if options.ordered and options.key is None:
        return "ordered needs a key: jobs of the same key run in order"
    if options.ordered and options.room != 1:
        return "an ordered key has room for one"
    return None


def too_long(what: str, text: str) -> str | None:
    """What is to be said of a text by which something is to be found, if it is too long for that."""
    if len(text) <= MAX_TEXT // 4:  # No character has more than four bytes.
        return None
    size = len(text.encode("utf-8", "surrogatepass"))
    if size <= MAX_TEXT:
        return None
    return f"{what} {text[:20]!r}… has {size:,} bytes, and {MAX_TEXT:,} is the most; shorten it, or give a digest of it"


def _unique_key(unique: bool | float | str | Unique | None) -> str | None:
    if isinstance(unique, Unique):
        return unique.key
    return unique if isinstance(unique, str) else None


def _period(unique: bool | float | str | Unique | None) -> float | None:
    if isinstance(unique, Unique):
        return unique.period
    return None if isinstance(unique, bool) or not isinstance(unique, int | float) else unique


def _overrides(label: str, changed: Mapping[str, Any]) -> bytes | None:
    wanted = {name: changed[name] for name in ("timeout", "max_memory", "result_ttl") if name in changed}
    retry = changed.get("retry")
    if retry is not None:
        if callable(retry.backoff) or retry.judge or retry.only_on or retry.give_up_on:
            raise ConfigError(
                f"the options of {label}: functions and exception types of a retry policy belong to the task, "
                "@app.task(retry=…); a single job can change max_attempts, backoff, base, factor, cap and jitter"
            )
        wanted["backoff"] = retry
    return msgspec.msgpack.encode(Overrides(**wanted)) if wanted else None


def _moment(moment: datetime.datetime | None) -> int | None:
    return None if moment is None else millis(moment.timestamp())
