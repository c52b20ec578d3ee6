"""What an attempt came to: from a value, an exception or a stop to the outcome that is settled.

Everything here is total: whatever a task returns or raises, and whatever its retry policy does, there is an
outcome, and it can be written down.
"""

from __future__ import annotations

import functools
import os
import traceback
from asyncio import CancelledError
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import msgspec

from ferryman.clock import CENTURY, millis
from ferryman.context import Cancelled, Stopped
from ferryman.errors import PayloadError
from ferryman.job import Cancel, Claim, ErrorInfo, Fail, Outcome, OutcomeKind, RetryIn, Signal, Snooze
from ferryman.options import Overrides
from ferryman.policy.retry import Retry, backoff_delay, is_fatal, retry_after
from ferryman.values import MAX_MESSAGE, plain_text, reason_text
from ferryman.worker.runnable import Runnable

__all__ = [
    "Stop",
    "describe",
    "judge_begun_before",
    "judge_cancelled",
    "judge_completed",
    "judge_error",
    "judge_put_off",
    "judge_undecodable",
    "judge_unknown",
    "judge_value",
]

MAX_TRACEBACK = 16_000
PUT_OFF_MS = 5_000
"""Until a job is tried again that could not be started for a reason that is not its own."""

_SUCCEEDED = OutcomeKind.SUCCEEDED
_FERRYMAN = Path(__file__).parents[1]
_OWN = (f"{_FERRYMAN / 'worker'}{os.sep}", str(_FERRYMAN / "binding.py"), str(_FERRYMAN / "codec.py"))
"""Where the steps that lead to a task lie. Not all of Ferryman: it has tasks of its own, in its demo."""


class Stop(NamedTuple):
    """Why a running job was told to stop."""

    kind: type[Stopped]
    """`SoftTimeout` or `Cancelled`."""
    reason: str | None = None


def judge_value(
    runnable: Runnable, claim: Claim, overrides: Overrides | None, value: Any, ran_us: int
) -> Outcome:
    """The outcome of a task that returned."""
    if value is None:
        return Outcome(claim.id, claim.lease, _SUCCEEDED, ran_us)
    if isinstance(value, Signal):
        return _judge_signal(runnable, claim, value, ran_us)
    try:
        result = runnable.encode(value)
    except Exception as error:
        # The work was done: running it again would do it twice and come to the same.
        problem = PayloadError(f"the task ran to its end, but its result is lost: it {error}")
        return Outcome(claim.id, claim.lease, OutcomeKind.DEAD, ran_us, error=describe(problem))
    ttl = runnable.result_ttl
    if overrides is not None and overrides.result_ttl is not None:
        ttl = overrides.result_ttl
    keep = None if ttl is None else _milliseconds(ttl)
    return Outcome(claim.id, claim.lease, _SUCCEEDED, ran_us, result, keep_result=keep)


def judge_error(
    runnable: Runnable,
    claim: Claim,
    overrides: Overrides | None,
    error: BaseException,
    *,
    stop: Stop | None,
    ran_us: int,
    luck: float,
) -> Outcome:
    """The outcome of a task that raised. `luck` is random in [0, 1)."""
    if stop is not None and stop.kind is Cancelled:
        # Also if the task made another exception of it: it was not to run on, nor again.
        return judge_cancelled(claim, stop.reason, ran_us)
    if isinstance(error, Signal):
        return _judge_signal(runnable, claim, error, ran_us)
    delays = runnable.retry if overrides is None or overrides.backoff is None else overrides.backoff
    if stop is not None and isinstance(error, (Stopped, CancelledError)):
        limit = runnable.timeout_of(overrides) or 0.0
        info = describe(error, "TimeLimit", f"stopped after its timeout of {limit:g} s")
        delay, problem = _delay(delays, None, claim.attempt, luck)
        return _failed(runnable, claim, OutcomeKind.RETRY, ran_us, info, delay, problem)
    fatal, problem = _fatal(runnable.retry, error)
    if fatal:
        return _failed(runnable, claim, OutcomeKind.DEAD, ran_us, describe(error), 0, problem)
    delay, another = _delay(delays, error, claim.attempt, luck)
    return _failed(runnable, claim, OutcomeKind.RETRY, ran_us, describe(error), delay, problem or another)


def judge_completed(
    runnable: Runnable, overrides: Overrides | None, claim: Claim, outcome: Outcome
) -> Outcome:
    """The outcome of a task that has settled itself in its own transaction. It is void if that was committed; if
    not, the attempt has failed, whatever the task says."""
    if outcome.kind is _SUCCEEDED:
        info = ErrorInfo("RolledBack", "the transaction in which it completed was not committed")
        delays = runnable.retry if overrides is None or overrides.backoff is None else overrides.backoff
        delay, problem = _delay(delays, None, claim.attempt, 0.5)
        outcome = _failed(runnable, claim, OutcomeKind.RETRY, outcome.ran_us, info, delay, problem)
    return msgspec.structs.replace(outcome, completed=True)


def judge_cancelled(claim: Claim, reason: str | None, ran_us: int = 0) -> Outcome:
    """The outcome of a job that was cancelled by people."""
    return Outcome(claim.id, claim.lease, OutcomeKind.CANCELLED, ran_us, reason=reason_text(reason))


def judge_undecodable(claim: Claim, error: BaseException) -> Outcome:
    """The outcome of a job that cannot be read: no further attempt would help."""
    return Outcome(claim.id, claim.lease, OutcomeKind.DEAD, error=describe(error))


def judge_unknown(claim: Claim, app: str) -> Outcome:
    """The outcome of a job whose task this app does not have: it is put back, for one that does."""
    return judge_put_off(claim, f"{app} has no task {claim.task!r}; it waits for a worker that has")


def judge_begun_before(claim: Claim) -> Outcome:
    """The outcome of a job that has been begun before, though its task runs at most once: whoever enqueued it by name did
    not know that, and gave it more attempts."""
    error = ErrorInfo(
        "BegunBefore",
        "its task runs at most once, and an attempt was begun before; nobody knows how far that came\n"
        f"(this is attempt {claim.attempt})",
    )
    return Outcome(claim.id, claim.lease, OutcomeKind.DEAD, error=error)


def judge_put_off(claim: Claim, reason: str) -> Outcome:
    """The outcome of a job that cannot be started now."""
    return Outcome(
        claim.id,
        claim.lease,
        OutcomeKind.SNOOZED,
        delay=PUT_OFF_MS,
        reason=plain_text(reason, MAX_MESSAGE),
    )


def _judge_signal(runnable: Runnable, claim: Claim, signal: Signal, ran_us: int) -> Outcome:
    try:
        return _at_most_once(runnable, _obey(claim, signal, ran_us))
    except (TypeError, ValueError, OverflowError) as problem:
        wrong = ValueError(f"{signal!r} cannot be obeyed: {problem}")
        return Outcome(claim.id, claim.lease, OutcomeKind.DEAD, ran_us, error=describe(wrong))


def _obey(claim: Claim, signal: Signal, ran_us: int) -> Outcome:
    make = functools.partial(Outcome, claim.id, claim.lease, ran_us=ran_us)
    match signal:
        case Snooze():
            delay = _milliseconds(signal.delay)
            return make(OutcomeKind.SNOOZED, delay=delay, reason=reason_text(signal.reason))
        case Cancel():
            return make(OutcomeKind.CANCELLED, reason=reason_text(signal.reason))
        case RetryIn():
            delay = _milliseconds(signal.delay)
            return make(OutcomeKind.RETRY, delay=delay, error=describe(signal, "RetryIn", signal.reason))
        case Fail():
            return make(OutcomeKind.DEAD, error=describe(signal, "Fail", signal.reason))
        case _:
            raise TypeError("it is none of Snooze, Cancel, RetryIn and Fail")


def _fatal(policy: Retry, error: BaseException) -> tuple[bool, str | None]:
    try:
        return is_fatal(policy, error), None
    except Exception as problem:
        return False, f"its retry policy could not judge it: {problem!r}"


def _delay(policy: Retry, error: BaseException | None, attempt: int, luck: float) -> tuple[int, str | None]:
    try:
        wished = None if error is None else retry_after(error)
        return _milliseconds(backoff_delay(policy, attempt, luck) if wished is None else wished), None
    except Exception as problem:
        return _milliseconds(
            backoff_delay(Retry(), attempt, luck)
        ), f"its backoff could not be computed: {problem!r}"


def _failed(
    runnable: Runnable,
    claim: Claim,
    kind: OutcomeKind,
    ran_us: int,
    info: ErrorInfo,
    delay: int,
    problem: str | None,
) -> Outcome:
    if problem is not None:
        message = plain_text(f"{info.message}\n({problem})", MAX_MESSAGE)
        info = ErrorInfo(info.type, message, info.traceback)
    outcome = Outcome(claim.id, claim.lease, kind, ran_us, delay=delay, error=info)
    return _at_most_once(runnable, outcome)


def _at_most_once(runnable: Runnable, outcome: Outcome) -> Outcome:
    """A task says so, and its job may have been given more attempts all the same: by name, it is not known."""
    if outcome.kind is OutcomeKind.RETRY and runnable.at_most_once:
        return msgspec.structs.replace(outcome, kind=OutcomeKind.DEAD, delay=0)
    return outcome


def _milliseconds(seconds: float) -> int:
    return max(0, millis(min(seconds, CENTURY)))


# -- exceptions as text ----------------------------------------------------------------------------


def describe(error: BaseException, name: str | None = None, message: Any = None) -> ErrorInfo:
    """An exception as it is stored and shown; `name` and `message` speak in its place."""
    return ErrorInfo(
        plain_text(name or _type_name(type(error)), 300),
        plain_text(error if message is None else message, MAX_MESSAGE),
        _traceback(error),
    )


def _type_name(kind: type[BaseException]) -> str:
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _traceback(error: BaseException) -> str:
    steps = _beyond_ferryman(error.__traceback__)
    if steps is None and error.__cause__ is None:
        return ""
    try:
        text = "".join(traceback.TracebackException(type(error), error, steps).format())
    except Exception as problem:
        text = f"the traceback cannot be shown: {type(problem).__qualname__}"
    if len(text) > MAX_TRACEBACK:
        half = MAX_TRACEBACK // 2 - 40
        text = f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"
    return plain_text(text, MAX_TRACEBACK)


def _beyond_ferryman(steps: TracebackType | None) -> TracebackType | None:
    """The traceback from the first step of the user's own code on."""
    while steps is not None and steps.tb_frame.f_code.co_filename.startswith(_OWN):
        steps = steps.tb_next
    return steps
