"""The judge: from what a task did to what becomes of its job, whatever it did."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import msgspec
import pytest

from ferryman.app import App
from ferryman.clock import CENTURY, millis
from ferryman.codec import Codec
from ferryman.context import Cancelled, SoftTimeout
from ferryman.errors import PayloadError
from ferryman.job import Cancel, Fail, Outcome, OutcomeKind, RetryIn, Signal, Snooze
from ferryman.options import Overrides
from ferryman.policy.retry import Retry
from ferryman.values import plain_text
from ferryman.worker.judge import (
    Stop,
    describe,
    judge_cancelled,
    judge_error,
    judge_undecodable,
    judge_unknown,
    judge_value,
)
from ferryman.worker.runnable import Runnable

from .supervising import claim


def runnable(**options: Any) -> Runnable:
    app = App("memory://")

    def work() -> Any: ...

    return Runnable(app.task(name="work", **options)(work))


def value(returned: Any, overrides: Overrides | None = None, **options: Any) -> Outcome:
    return judge_value(runnable(**options), claim("work"), overrides, returned, 15)


def error(
    raised: BaseException,
    stop: Stop | None = None,
    overrides: Overrides | None = None,
    attempt: int = 1,
    **options: Any,
) -> Outcome:
    try:
        raise raised
    except BaseException as caught:
        return judge_error(
            runnable(**options),
            claim("work", attempt=attempt),
            overrides,
            caught,
            stop=stop,
            ran_us=15,
            luck=0.5,
        )


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Busy(Exception):
    retry_after = 7


# -- values ----------------------------------------------------------------------------------------


def test_nothing_returned_is_success_without_bytes() -> None:
    outcome = value(None)

    assert (outcome.kind, outcome.result, outcome.ran_us) == (OutcomeKind.SUCCEEDED, None, 15)


def test_a_value_is_success_with_its_encoding() -> None:
    outcome = value({"a": [1]})

    assert (outcome.kind, outcome.keep_result) == (OutcomeKind.SUCCEEDED, None)
    assert Codec().decoder(Any)(outcome.result or b"") == {"a": [1]}


def test_a_result_is_kept_as_long_as_the_job_says_or_else_the_task() -> None:
    assert value(1, result_ttl=2.5).keep_result == 2_500
    assert value(1, Overrides(result_ttl=1.0), result_ttl=2.5).keep_result == 1_000


@pytest.mark.parametrize("returned", [object(), "\ud800", bytes(5_000_000)])
def test_a_result_that_cannot_be_kept_is_no_reason_to_run_again(returned: object) -> None:
    outcome = value(returned)

    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.error is not None
    assert outcome.error.message.startswith("the task ran to its end, but its result is lost: it ")


# -- signals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("give", [value, error], ids=["returned", "raised"])
def test_signals_say_what_shall_happen(give: Any) -> None:
    snoozed, cancelled = give(Snooze(1.5, "soon")), give(Cancel("moot"))
    again, dead = give(RetryIn(3, "not yet")), give(Fail("never"))

    assert (snoozed.kind, snoozed.delay, snoozed.reason) == (OutcomeKind.SNOOZED, 1_500, "soon")
    assert (cancelled.kind, cancelled.reason) == (OutcomeKind.CANCELLED, "moot")
    assert (again.kind, again.delay, again.error.cause) == (OutcomeKind.RETRY, 3_000, "RetryIn: not yet")
    assert (dead.kind, dead.error.cause) == (OutcomeKind.DEAD, "Fail: never")


@pytest.mark.parametrize("signal", [Snooze(math.nan), RetryIn(math.nan), Signal()])
def test_a_signal_that_makes_no_sense_is_dead_and_says_so(signal: Signal) -> None:
    outcome = value(signal)

    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.error is not None
    assert "cannot be obeyed" in outcome.error.message


@pytest.mark.parametrize(
    ("seconds", "delay"), [(-5, 0), (math.inf, millis(CENTURY)), (1e300, millis(CENTURY))]
)
def test_a_delay_out_of_bounds_is_brought_within_them(seconds: float, delay: int) -> None:
    assert value(Snooze(seconds)).delay == delay


# -- errors ----------------------------------------------------------------------------------------


def test_an_error_is_tried_again_after_the_policys_delay() -> None:
    outcome = error(ValueError("bad"), attempt=3)

    assert (outcome.kind, outcome.delay) == (OutcomeKind.RETRY, 4_000)
    assert outcome.error is not None
    assert (outcome.error.type, outcome.error.message) == ("ValueError", "bad")


def test_the_jobs_own_numbers_beat_the_tasks() -> None:
    outcome = error(ValueError(), overrides=Overrides(backoff=Retry(backoff="fixed", base=9, jitter=0)))

    assert outcome.delay == 9_000


def test_what_the_policy_calls_fatal_is_dead() -> None:
    assert error(KeyError(), retry=Retry(give_up_on=(LookupError,))).kind is OutcomeKind.DEAD
    assert error(KeyError(), retry=Retry(judge=lambda _: "fatal")).kind is OutcomeKind.DEAD


def test_the_wait_that_an_error_names_beats_the_backoff() -> None:
    assert error(Busy()).delay == 7_000


@pytest.mark.parametrize(
    "raised", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), asyncio.CancelledError()]
)
def test_exceptions_meant_for_programs_are_failures_of_the_job(raised: BaseException) -> None:
    assert error(raised).kind is OutcomeKind.RETRY


def test_a_soft_timeout_is_a_failure_that_names_the_limit_in_force() -> None:
    stop = Stop(SoftTimeout)

    own = error(SoftTimeout(), stop, timeout=2.0)
    job = error(asyncio.CancelledError(), stop, Overrides(timeout=0.5), timeout=2.0)

    assert own.kind is job.kind is OutcomeKind.RETRY
    assert own.error is not None
    assert own.error.cause == "TimeLimit: stopped after its timeout of 2 s"
    assert job.error is not None
    assert job.error.cause == "TimeLimit: stopped after its timeout of 0.5 s"


def test_a_cancel_beats_whatever_was_raised() -> None:
    for raised in (Cancelled(), ValueError(), asyncio.CancelledError(), Snooze(1)):
        outcome = error(raised, Stop(Cancelled, "enough"))

        assert (outcome.kind, outcome.reason) == (OutcomeKind.CANCELLED, "enough")


def test_a_policy_that_fails_itself_does_not_lose_the_job() -> None:
    broken = error(ValueError("bad"), retry=Retry(judge=lambda _: 1 / 0))  # type: ignore[arg-type,return-value]
    nonsense = error(ValueError("bad"), retry=Retry(backoff=lambda _: "soon"))  # type: ignore[arg-type,return-value]

    assert (broken.kind, broken.delay) == (OutcomeKind.RETRY, 1_000)
    assert broken.error is not None
    assert broken.error.message.startswith("bad\n(its retry policy could not judge it: ZeroDivisionError(")
    assert (nonsense.kind, nonsense.delay) == (OutcomeKind.RETRY, 1_000)
    assert nonsense.error is not None
    assert "its backoff could not be computed" in nonsense.error.message
    assert nonsense.error.cause == "ValueError: bad"


def test_jobs_that_never_ran_have_their_outcomes_too() -> None:
    assert judge_undecodable(claim("work"), PayloadError("x")).kind is OutcomeKind.DEAD
    assert judge_unknown(claim("work"), "the app a:app").kind is OutcomeKind.SNOOZED
    assert judge_cancelled(claim("work"), None).reason is None


# -- as text ---------------------------------------------------------------------------------------


def test_a_type_is_named_as_it_would_be_imported_save_builtins() -> None:
    assert describe(ValueError()).type == "ValueError"
    assert describe(msgspec.ValidationError()).type == "msgspec.ValidationError"
    assert describe(PayloadError()).type == "ferryman.errors.PayloadError"


def test_the_traceback_begins_with_the_users_own_code_and_keeps_causes() -> None:
    try:
        try:
            Codec().encode(object())
        except PayloadError as inner:
            raise ValueError("outer") from inner
    except ValueError as caught:
        info = describe(caught)

    assert info.traceback.count("test_judge.py") == 2
    assert info.traceback.rstrip().endswith("ValueError: outer")
    assert "ferryman.errors.PayloadError: cannot be encoded" in info.traceback


def test_long_messages_are_cut_and_long_tracebacks_keep_both_ends() -> None:
    def fall(depth: int) -> None:
        if depth:
            exec(f"{'y' * 900} = 1; fall(depth - 1)", {"fall": fall, "depth": depth})
        raise ValueError("m" * 12_000)

    try:
        fall(60)
    except ValueError as caught:
        info = describe(caught)

    assert len(info.message) == 2_000
    assert 15_000 < len(info.traceback) <= 16_000
    assert info.traceback.startswith("Traceback")
    assert "characters left out" in info.traceback
    assert info.traceback.rstrip().endswith("mmm")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ("plain", "plain"),
        ("a\0b", "a\\0b"),
        ("\udc80", "\\udc80"),
        ("ä" * 12, "ä" * 9 + "…"),
        (7, "7"),
        (Unspeakable(), "<Unspeakable whose text raises RuntimeError>"[:9] + "…"),
    ],
)
def test_any_value_becomes_text_that_every_store_takes(given: object, text: str) -> None:
    assert plain_text(given, 10) == text


def test_an_exception_without_words_still_has_an_outcome() -> None:
    outcome = error(Unspeakable())

    assert outcome.error is not None
    assert outcome.error.message == "<Unspeakable whose text raises RuntimeError>"
    assert msgspec.msgpack.encode(outcome)
