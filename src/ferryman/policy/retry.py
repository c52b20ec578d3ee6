"""When a failed attempt is tried again: backoff, and errors told apart. Pure functions over plain values."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from ferryman.errors import InvalidValue
from ferryman.job import MAX_COUNT
from ferryman.values import NUMBER, WHOLE, Kind, listed, taken

__all__ = [
    "Backoff",
    "Retry",
    "Verdict",
    "backoff_delay",
    "http_status",
    "is_fatal",
    "retry_after",
    "written_down",
]

Verdict = Literal["retry", "fatal"]

Backoff = Literal["exponential", "linear", "fixed", "none"]

if TYPE_CHECKING:
    _Spacing = Backoff | Callable[[int], float]
else:
    # msgspec refuses to decode a union with functions. Only names are ever written down; `Retry` checks them.
    _Spacing = Any

_RETRYABLE_STATUS = frozenset({408, 409, 423, 425, 429})


class Retry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How often and when a failed job is tried again.

    The n-th retry comes after `base` seconds times ``factor ** (n - 1)`` (exponential), n (linear), 1 (fixed)
    or 0 (none), at most `cap` seconds, spread by `jitter` (0.1: up to a tenth sooner or later), or after what a
    function of the attempt's number says. ``Retry()`` makes four attempts: retries after 1, 2 and 4 s.

    An exception of a type in `give_up_on` is fatal: the job goes to the dead letters at once. If `only_on`
    is given, all others are. HTTP errors are fatal for status 4xx, save 408, 409, 423, 425 and 429. `judge`,
    a function of the exception, has the first word: it answers ``"retry"``, ``"fatal"``, or None to leave it
    to the rest.
    """

    max_attempts: int = 4
    backoff: _Spacing = "exponential"
    base: float = 1.0
    factor: float = 2.0
    cap: float = 3_600.0
    jitter: float = 0.1
    only_on: tuple[type[BaseException], ...] = ()
    give_up_on: tuple[type[BaseException], ...] = ()
    judge: Callable[[BaseException], Verdict | None] | None = None

    def __post_init__(self) -> None:
        for name, kind in _KINDS.items():
            said = getattr(self, name)
            kept = taken(name, said, kind)
            if kept is not said:
                msgspec.structs.force_setattr(self, name, kept)
        if not 1 <= self.max_attempts <= MAX_COUNT:
            raise InvalidValue(f"max_attempts must lie between 1 and {MAX_COUNT:,}, not {self.max_attempts}")
        # Put so that what is no number is refused, too.
        if not (self.base >= 0 and self.cap >= 0 and self.factor > 0 and 0 <= self.jitter <= 1):
            raise InvalidValue(
                "base and cap must not be negative, factor must be positive, jitter from 0 to 1"
            )


def _spacing(value: Any) -> Any:
    if not callable(value) and not (isinstance(value, str) and value in get_args(Backoff)):
        raise TypeError
    return value


def _error_types(value: Any) -> tuple[type[BaseException], ...]:
    """Also of a single one, and of a list."""
    if isinstance(value, type):
        value = (value,)
    if type(value) is not tuple:
        value = listed(value)
    if not all(isinstance(kind, type) and issubclass(kind, BaseException) for kind in value):
        raise TypeError
    return value  # type: ignore[no-any-return]


def _judge(value: Any) -> Any:
    if value is not None and not callable(value):
        raise TypeError
    return value


_ERROR_TYPES = Kind("types of exceptions, such as (ConnectionError, TimeoutError)", _error_types)
_IN_SECONDS = Kind("seconds, as a number: for a timedelta its total_seconds()", NUMBER.take)

_KINDS = {
    "max_attempts": WHOLE,
    "backoff": Kind(
        f"one of {', '.join(get_args(Backoff))}, or a function of the attempt's number", _spacing
    ),
    "base": _IN_SECONDS,
    "factor": NUMBER,
    "cap": _IN_SECONDS,
    "jitter": NUMBER,
    "only_on": _ERROR_TYPES,
    "give_up_on": _ERROR_TYPES,
    "judge": Kind("a function of the exception", _judge),
}


def backoff_delay(policy: Retry, attempt: int, luck: float) -> float:
    """Seconds from the failure of attempt number `attempt` to the next one; `luck` is random in [0, 1)."""
    if callable(policy.backoff):
        return max(0.0, float(policy.backoff(attempt)))
    match policy.backoff:
        case "exponential":
            # Python's floats overflow at 2 ** 1024; far before that the cap is reached.
            delay = policy.base * policy.factor ** min(attempt - 1, 200)
        case "linear":
            delay = policy.base * attempt
        case "fixed":
            delay = policy.base
        case "none":
            return 0.0
    return min(delay, policy.cap) * (1 + policy.jitter * (2 * luck - 1))


def written_down(policy: Retry) -> Retry:
    """What of a policy can be sent to another process: its numbers. A function of the attempt's number becomes
    exponential backoff."""
    return Retry(
        max_attempts=policy.max_attempts,
        backoff="exponential" if callable(policy.backoff) else policy.backoff,
        base=policy.base,
        factor=policy.factor,
        cap=policy.cap,
        jitter=policy.jitter,
    )


def is_fatal(policy: Retry, error: BaseException) -> bool:
    """Whether no further attempt can help."""
    if policy.judge is not None:
        verdict = policy.judge(error)
        if verdict is not None:
            return verdict == "fatal"
    if policy.give_up_on and isinstance(error, policy.give_up_on):
        return True
    if policy.only_on:
        return not isinstance(error, policy.only_on)
    status = http_status(error)
    return status is not None and 400 <= status < 500 and status not in _RETRYABLE_STATUS


def http_status(error: BaseException) -> int | None:
    """The HTTP status that an exception carries, where the common clients and servers put it."""
    for holder in (getattr(error, "response", None), error):
        for name in ("status_code", "status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int) and 100 <= status <= 599:
                return status
    return None


def retry_after(error: BaseException) -> float | None:
    """Seconds to wait that an exception names: its own ``retry_after``, or its response's Retry-After."""
    value = getattr(error, "retry_after", None)
    if value is None:
        headers = getattr(getattr(error, "response", None), "headers", None) or getattr(
            error, "headers", None
        )
        get = getattr(headers, "get", None)
        value = get("Retry-After") if callable(get) else None
    try:
        seconds = float(value) if value is not None else None
    except (TypeError, ValueError):
        return None
    return seconds if seconds is not None and 0 <= seconds < 7 * 86_400 else None
