"""What people say of tasks, jobs and queues, checked against tables before anything is made of it."""

from __future__ import annotations

import datetime
import string
from collections.abc import Mapping
from typing import Any, get_args

from ferryman.errors import ConfigError, InvalidValue
from ferryman.job import MAX_PRIORITY, MIN_PRIORITY, JobId, OnParentFailure, as_job_id
from ferryman.options import PRIORITIES, Options, Unique, bad_queue, unfit
from ferryman.policy.retry import Retry
from ferryman.store.records import Overflow, QueueSettings
from ferryman.values import (
    FLAG,
    NUMBER,
    SECONDS,
    TEXT,
    WHOLE,
    Kind,
    did_you_mean,
    listed,
    one_of,
    shown,
    taken,
)

__all__ = ["fields_of", "queue_of"]


def fields_of(label: str, changes: Mapping[str, Any], valid: Mapping[str, object]) -> dict[str, Any]:
    """Options as people say them, as the fields of `Options` that they change. `valid` has the names that may be said.

    Raises ConfigError, which names the option, its value, and what is wanted.
    """
    fields: dict[str, Any] = {}
    for name, value in changes.items():
        if name not in valid:
            raise ConfigError(
                f"the options of {label}: there is no option {name!r} here; {_remedy(name, valid)}"
            )
        if value is None and name in _OPTIONAL:
            fields[name] = None
            continue
        try:
            fields[name] = taken(name, value, _KINDS[name])
        except InvalidValue as error:
            raise ConfigError(f"the options of {label}: {error}") from None
    for wish, instead, nothing in _INSTEAD:
        one, other = fields.get(wish), fields.get(instead)
        if one is not None and other is not None and one != nothing:
            raise ConfigError(f"the options of {label}: give {wish} or {instead}, not both")
        # What is said last takes the place of what the task says, be it in the other way.
        if other is not None:
            fields[wish] = nothing
        elif one is not None:
            fields[instead] = None
    if "key" in fields and fields["key"] is None:
        fields.setdefault("room", 1)
    return fields


def queue_of(
    name: str, fair: bool, weights: Mapping[str, float], max_size: int | None, overflow: str
) -> QueueSettings:
    """What a program says of a queue. Raises ConfigError, which names what makes no sense."""
    taken("the name of a queue", name, TEXT)
    if problem := bad_queue(name):
        raise ConfigError(f"queue {shown(name)}: {problem}")
    try:
        settings = QueueSettings(
            name=name,
            fair=taken("fair", fair, FLAG),
            weights=taken("weights", weights, _WEIGHTS),
            max_size=None if max_size is None else taken("max_size", max_size, WHOLE),
            overflow=taken("overflow", overflow, _OVERFLOW),
        )
    except InvalidValue as error:
        raise ConfigError(f"queue {name!r}: {error}") from None
    if settings.max_size is not None and not 1 <= settings.max_size <= _MOST_JOBS:
        raise ConfigError(f"queue {name!r}: max_size must be at least 1, and {_MOST_JOBS:,} at most")
    if weights and not fair:
        raise ConfigError(f"queue {name!r}: weights are the shares of a fair queue; say fair=True, too")
    for tenant, weight in settings.weights.items():
        # Put so that what is no number is refused, too.
        if not 1e-6 <= weight <= 1e6:
            raise ConfigError(
                f"queue {name!r}: the weight of {tenant!r} must lie between 0.000001 and 1,000,000"
            )
        if problem := unfit("the tenant", tenant):
            raise ConfigError(f"queue {name!r}: {problem}")
    return settings


_MOST_JOBS = 10**15
"""What every store can count with."""


def _weights(value: Any) -> dict[str, float]:
    return {TEXT.take(tenant): NUMBER.take(weight) for tenant, weight in dict(value).items()}


_WEIGHTS = Kind("numbers by tenant, such as {'acme': 2}", _weights)
_OVERFLOW = one_of(get_args(Overflow))


# -- of which kind each is -------------------------------------------------------------------------


def _priority(value: Any) -> int:
    if isinstance(value, str) and value not in PRIORITIES:
        raise ValueError
    number: int = PRIORITIES[value] if isinstance(value, str) else WHOLE.take(value)
    return number


def _moment_with_zone(value: Any) -> datetime.datetime:
    if not isinstance(value, datetime.datetime) or value.utcoffset() is None:
        raise TypeError
    return value


def _retry(value: Any) -> Retry:
    if not isinstance(value, Retry):
        raise TypeError
    return value


def _key(value: Any) -> Any:
    if not isinstance(value, str):
        if not callable(value):
            raise TypeError
    elif "{" in value:
        # Raises ValueError for a brace without its other half.
        for _ in string.Formatter().parse(value):
            pass
    return value


def _unique(value: Any) -> Any:
    if value == "":
        raise ValueError
    return value if isinstance(value, bool | str | Unique) else SECONDS.take(value)


def _parents(value: Any) -> tuple[JobId, ...]:
    return tuple(_parent(each) for each in listed(value))


def _parent(value: Any) -> JobId:
    id = as_job_id(value) or as_job_id(getattr(value, "id", None))
    if id is None:
        raise ValueError
    return id


def _as_text(value: Any) -> str:
    # Of an Enum that is a str, too, its value; str() would name the member.
    return str.__str__(value) if isinstance(value, str) else str(value)


def _tags(value: Any) -> tuple[str, ...]:
    return tuple(_as_text(tag) for tag in listed(value))


_MOMENT = Kind(
    "an aware datetime, such as datetime.now(timezone.utc) + timedelta(hours=1)", _moment_with_zone
)

_KINDS = {
    "queue": TEXT,
    "priority": Kind(
        f"a whole number from {MIN_PRIORITY} to {MAX_PRIORITY}, or one of {', '.join(PRIORITIES)}", _priority
    ),
    "delay": SECONDS,
    "at": _MOMENT,
    "ttl": SECONDS,
    "deadline": _MOMENT,
    "retry": Kind("a Retry, such as Retry(max_attempts=3)", _retry),
    "at_most_once": FLAG,
    "timeout": SECONDS,
    "max_memory": Kind("a whole number of MiB, such as 512", WHOLE.take),
    "key": Kind(
        "a text or a function, such as 'customer-{customer_id}' with its braces in pairs ({{ for one of its own)",
        _key,
    ),
    "room": WHOLE,
    "ordered": FLAG,
    "unique": Kind("True, seconds, a timedelta, a key (not an empty one) or a Unique", _unique),
    "after": Kind("a list of job handles or their ids, such as after=[first]", _parents),
    "on_parent_failure": one_of(get_args(OnParentFailure)),
    "tenant": Kind("a text", _as_text),
    "tags": Kind("a list of texts, such as tags=('urgent',)", _tags),
    "result_ttl": SECONDS,
}

_DEFAULTS = zip(Options.__struct_fields__, Options.__struct_defaults__, strict=True)
_OPTIONAL = {name for name, default in _DEFAULTS if default is None}

_INSTEAD: tuple[tuple[str, str, Any], ...] = (("delay", "at", 0.0), ("ttl", "deadline", None))
"""Options that say the same in two ways, and what the first says if it says nothing."""

_ELSEWHERE = {
    "max_attempts": "retry=Retry(max_attempts=…)",
    "max_retries": "retry=Retry(max_attempts=…)",
    "retries": "retry=Retry(max_attempts=…)",
    "attempts": "retry=Retry(max_attempts=…)",
    "countdown": "delay",
    "eta": "at",
    "expires": "ttl or deadline",
    "time_limit": "timeout",
    "at_most_once": "@app.task(at_most_once=True): it holds for all jobs of a task",
    "name": "@app.task(name=…): it is the task's, not a job's",
    "using": "task.options(using=…): a transaction is the job's, not the task's",
}
"""What people mean who know other queues, or say an option in the wrong place."""


def _remedy(name: str, valid: Mapping[str, object]) -> str:
    if name in _ELSEWHERE:
        return f"what is meant is {_ELSEWHERE[name]}"
    return did_you_mean(name, valid)
