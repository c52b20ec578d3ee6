"""Payloads that lie outside the store, on their way into a task and out of it."""

from __future__ import annotations

import msgspec

from ferryman.errors import PayloadError, StoreError
from ferryman.io.operation import Procedure
from ferryman.job import Claim, Outcome, OutcomeKind
from ferryman.payload import is_reference
from ferryman.worker.judge import describe, judge_put_off, judge_undecodable
from ferryman.worker.runnable import Runnable

__all__ = ["fetch", "has_large_result", "is_outside", "stow"]


def is_outside(claim: Claim) -> bool:
    """Whether the job's arguments must be fetched first."""
    return is_reference(claim.args)


def fetch(runnable: Runnable, claim: Claim) -> Procedure[Claim | Outcome]:
    """The claim with the arguments themselves, or the outcome if they cannot be had: the job waits while their
    place does not answer, and is dead if they are gone."""
    try:
        args = yield from runnable.app.payloads.fetch(claim.args)
    except StoreError as error:
        return judge_put_off(claim, f"its arguments cannot be fetched now: {error}")
    except PayloadError as error:
        return judge_undecodable(claim, error)
    return msgspec.structs.replace(claim, args=args)


def has_large_result(runnable: Runnable, outcome: Outcome) -> bool:
    """Whether the result is to be kept outside the store."""
    return runnable.app.payloads.is_large(outcome.result)


def stow(runnable: Runnable, outcome: Outcome) -> Procedure[Outcome]:
    """The outcome with a reference to its result. While the place for it fails, the result goes into the store,
    unless it is too large for that: then it is lost and the job dead, since the work was done."""
    result = outcome.result
    assert result is not None
    try:
        result = yield from runnable.app.payloads.stow(outcome.id, f"result-{outcome.lease}", result)
    except StoreError as error:
        if len(result) <= runnable.app.settings.max_payload:
            return outcome
        problem = PayloadError(f"the task ran to its end, but its result is lost: {error}")
        return Outcome(outcome.id, outcome.lease, OutcomeKind.DEAD, outcome.ran_us, error=describe(problem))
    return msgspec.structs.replace(outcome, result=result)
