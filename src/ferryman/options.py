"""What can be said of a job beside its arguments: by its task, or by `task.options(…)` for some jobs."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from ferryman.clock import CENTURY, millis
from ferryman.errors import ConfigError, InvalidValue
from ferryman.job import MAX_COUNT, MAX_PRIORITY, MAX_TEXT, MIN_PRIORITY, JobId, NewJob, OnParentFailure
from ferryman.policy.retry import Retry
from ferryman.values import SECONDS, one_of, shown, taken

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "PRIORITIES",
    "HasId",
    "Options",
    "Overrides",
    "Priority",
    "Seconds",
    "Unique",
    "bad_queue",
    "new_job_template",
    "unfit",
]

PRIORITIES = {"low": -5, "normal": 0, "high": 5, "urgent": 9}

Priority = int | Literal["low", "normal", "high", "urgent"]


Seconds = float | datetime.timedelta
"""How people may say a duration."""


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
    period: Seconds | None = None
    until: Literal["started", "finished"] = "finished"

    def __post_init__(self) -> None:
        if self.key == "":
            raise InvalidValue("the key of Unique must not be empty; leave it out to mean the arguments")
        if self.key is not None and not isinstance(self.key, str):
            # As it has always been taken: many a key is the number of an order.
            msgspec.structs.force_setattr(self, "key", str(self.key))
        if self.period is not None:
            taken("the period of Unique", self.period, SECONDS)
        taken("until of Unique", self.until, _UNTIL)

    @property
    def period_seconds(self) -> float | None:
        """The period as a number."""
        return self.period.total_seconds() if isinstance(self.period, datetime.timedelta) else self.period


_UNTIL = one_of(("started", "finished"))


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
    after: Sequence[HasId | str] = ()
    """Jobs that must finish first, or their ids."""
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
    problem = _problem(options) or unfit("its name", label) or (None if label else "a task needs a name")
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
        after=tuple(JobId(each) if isinstance(each, str) else each.id for each in options.after),
        on_parent_failure=options.on_parent_failure,
        tenant=None if options.tenant is None else str(options.tenant),
        tags=tuple(str(tag) for tag in options.tags),
    )


def _problem(options: Options) -> str | None:
    priority = options.priority
    if isinstance(priority, str) and priority not in PRIORITIES:
        return f"priority {priority!r} is none of {', '.join(PRIORITIES)}, nor a number"
    if isinstance(priority, int) and not MIN_PRIORITY <= priority <= MAX_PRIORITY:
        return f"priority {priority} does not lie between {MIN_PRIORITY} and {MAX_PRIORITY}"
    if problem := bad_queue(options.queue):
        return problem
    for name, seconds in (
        ("delay", options.delay),
        ("ttl", options.ttl),
        ("timeout", options.timeout),
        ("result_ttl", options.result_ttl),
        ("unique", _period(options.unique)),
    ):
        if seconds is not None and not 0 <= seconds <= CENTURY:
            return f"{name} must lie between 0 and {CENTURY:,.0f} seconds, a hundred years"
    texts = [("key", options.key), ("unique", _unique_key(options.unique)), ("tenant", options.tenant)]
    if options.tags:
        texts += [("tag", tag) for tag in options.tags]
    for name, text in texts:
        if isinstance(text, str) and (problem := unfit(name, text)):
            return problem
    if options.max_memory is not None and not 0 <= options.max_memory <= MAX_COUNT:
        return f"max_memory must not be negative, and {MAX_COUNT:,} MiB at most"
    if options.ttl is not None and options.at is None and options.ttl < options.delay:
        return f"ttl is over after {options.ttl:g} s, before the delay of {options.delay:g} s: the job could only expire"
    if options.at is not None and options.deadline is not None and options.deadline < options.at:
        return "deadline lies before at: the job could only expire"
    if not 1 <= options.room <= MAX_COUNT:
        return f"room must lie between 1 and {MAX_COUNT:,}"
    if options.room != 1 and options.key is None:
        return "room needs a key: it is how many jobs of the same key run at a time"
    if options.ordered and options.key is None:
        return "ordered needs a key: jobs of the same key run in order"
    if options.ordered and options.room != 1:
        return "an ordered key has room for one"
    return None


def bad_queue(name: str) -> str | None:
    """What is to be said of the name of a queue, if it can be none."""
    if not 0 < len(name) <= 200:
        return "a queue needs a name of 1 to 200 characters"
    return unfit("queue", name)


def unfit(what: str, text: str) -> str | None:
    """What is to be said of a text by which something is to be found, if there is a store that could not find it."""
    if len(text) <= MAX_TEXT // 4 and text.isascii() and "\0" not in text:
        return None
    if "\0" in text:
        return f"{what} {shown(text)} has a NUL character, which stores cannot keep; leave it out"
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        return f"{what} {shown(text)} has half a character (a lone surrogate), which stores cannot keep; leave it out"
    if size <= MAX_TEXT:
        return None
    return f"{what} {text[:20]!r}… has {size:,} bytes, and {MAX_TEXT:,} is the most; shorten it, or give a digest of it"


def _unique_key(unique: bool | float | str | Unique | None) -> str | None:
    if isinstance(unique, Unique):
        return unique.key
    return unique if isinstance(unique, str) else None


def _period(unique: bool | float | str | Unique | None) -> float | None:
    if isinstance(unique, Unique):
        return unique.period_seconds
    return None if unique is None or isinstance(unique, bool | str) else unique


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
