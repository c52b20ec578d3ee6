"""Payloads that lie outside the store, on their way into a task and out of it.

Their place may fail in any way, and it may hang, as a share does whose server is away. So whatever it does becomes an
answer, and it is asked in a thread of its own: whoever waits for the answer can be called away.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import msgspec

from ferryman.errors import FerrymanError, PayloadError
from ferryman.job import Claim, Outcome, OutcomeKind
from ferryman.payload import fits, is_reference, read_reference
from ferryman.worker.judge import describe, judge_put_off, judge_undecodable
from ferryman.worker.runnable import Runnable

__all__ = [
    "Fetcher",
    "aside",
    "fetches_within",
    "has_large_result",
    "is_outside",
    "judge_late",
    "patience",
    "stow",
]

_ANSWERS_WITHIN = 30.0
"""Seconds until a job whose arguments do not come is put off, and its place free for others..."""

_SLOWEST = 1 << 20
"""... and one more for so many bytes of them, so that large ones come through thin lines."""

_PATIENCE = 10.0
"""Seconds until a result that the store can take is not kept from it any longer."""

T = TypeVar("T")


def aside(call: Callable[[], T], answer: Callable[[T], object]) -> None:
    """Make a call that never raises in a thread of its own, and hand over there what it returned. The end of the
    process does not wait for it."""

    def serve() -> None:
        answer(call())

    try:
        threading.Thread(target=serve, name="ferryman-outside", daemon=True).start()
    except RuntimeError:
        # There can be no more threads. This one can be called away less easily, that is all.
        serve()


def is_outside(claim: Claim) -> bool:
    """Whether the job's arguments must be fetched first."""
    return is_reference(claim.args)


class Fetcher:
    """Fetches arguments for the places of one track. Thread-safe.

    What hangs may never let go of the thread that asks it, and when it does, each such thread holds a payload. So there
    are no more of them than places: while as many have no answer, the next job is put off at once.
    """

    __slots__ = ("_free",)

    def __init__(self, places: int) -> None:
        self._free = threading.Semaphore(places)
        """One less for each question that has no answer yet, whether somebody still waits for it or not."""

    def ask(self, runnable: Runnable, claim: Claim, answer: Callable[[Claim | Outcome], object]) -> None:
        """Hand over the claim with the arguments themselves, or the outcome if they cannot be had: the job is dead if
        they are gone, and waits whatever else keeps them away."""
        if not self._free.acquire(blocking=False):
            answer(_put_off(claim, "earlier questions have no answer yet"))
            return

        def fetch() -> Claim | Outcome:
            try:
                return _fetch(runnable, claim)
            finally:
                # Ahead of the answer: whoever has that may ask again.
                self._free.release()

        aside(fetch, answer)


def fetches_within(runnable: Runnable, claim: Claim) -> float:
    """Seconds to wait for a `Fetcher`."""
    try:
        reference = read_reference(claim.args)
    except PayloadError:
        return _ANSWERS_WITHIN
    size = 0 if reference is None else min(max(reference.size, 0), runnable.app.settings.most_bytes)
    return _ANSWERS_WITHIN + size / _SLOWEST


def judge_late(claim: Claim, seconds: float) -> Outcome:
    """The outcome of a job whose arguments have not come in that time."""
    return _put_off(claim, f"there was no answer within {seconds:.1f} s")


def _fetch(runnable: Runnable, claim: Claim) -> Claim | Outcome:
    app = runnable.app
    try:
        args = app.perform(app.payloads.fetch(claim.args))
    except PayloadError as error:
        return judge_undecodable(claim, error)
    except BaseException as error:
        return _put_off(claim, _text(error))
    return msgspec.structs.replace(claim, args=args)


def _put_off(claim: Claim, problem: str) -> Outcome:
    return judge_put_off(claim, f"its arguments cannot be fetched now: {problem}")


def has_large_result(runnable: Runnable, outcome: Outcome) -> bool:
    """Whether the result is to be kept outside the store."""
    return runnable.app.payloads.is_large(outcome.result)


def stow(runnable: Runnable, outcome: Outcome) -> Outcome:
    """The outcome with a reference to its result. If the place for it fails, the result goes into the store, unless it
    is too large for that: then it is lost and the job dead, since the work was done."""
    app, result = runnable.app, outcome.result
    assert result is not None
    try:
        reference = app.perform(app.payloads.stow(outcome.id, f"result-{outcome.lease}", result))
    except BaseException as error:
        if _fits_into_the_store(runnable, outcome):
            return outcome
        problem = PayloadError(f"the task ran to its end, but its result is lost: {_text(error)}")
        return Outcome(outcome.id, outcome.lease, OutcomeKind.DEAD, outcome.ran_us, error=describe(problem))
    return msgspec.structs.replace(outcome, result=reference)


def patience(runnable: Runnable, outcome: Outcome) -> float | None:
    """Seconds to wait for `stow` before the outcome is settled as it is; None for as long as it takes."""
    return _PATIENCE if _fits_into_the_store(runnable, outcome) else None


def _fits_into_the_store(runnable: Runnable, outcome: Outcome) -> bool:
    return outcome.result is not None and fits(len(outcome.result), runnable.app.settings.max_payload)


def _text(error: BaseException) -> str:
    """What says enough for any error: the text of a MemoryError is empty."""
    return str(error) if isinstance(error, FerrymanError) else f"{type(error).__name__}: {error}"
