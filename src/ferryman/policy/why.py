"""Why a job is not running, in one sentence. A pure function over what somebody gathered from the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ferryman.job import FINISHED, History, Job, JobId, OutcomeKind, State
from ferryman.values import counted

__all__ = ["Code", "Facts", "LaneFact", "ParentFact", "Reason", "WorkerFact", "span", "why"]

Code = Literal[
    "finished",
    "running",
    "delayed",
    "retrying",
    "snoozed",
    "waiting",
    "held",
    "key-full",
    "expiring",
    "paused",
    "no-worker",
    "not-served",
    "unknown-task",
    "workers-paused",
    "workers-draining",
    "busy",
    "next",
]
"""What kind of reason it is, for programs."""

_NAMED = 3
"""How many parents or jobs a sentence names before it only counts them."""


class LaneFact(msgspec.Struct, frozen=True):
    """How many ready jobs a lane of the job's queue has."""

    priority: int
    ready: int


class WorkerFact(msgspec.Struct, frozen=True, kw_only=True):
    """A living worker: one whose lease has not ended."""

    id: str
    queues: tuple[str, ...] | None
    """None: all."""
    tasks: tuple[str, ...]
    state: Literal["active", "paused", "draining"] = "active"
    running: int = 0
    concurrency: int = 1


class ParentFact(msgspec.Struct, frozen=True):
    """A job that this one waits for; its state is None if the store has forgotten it."""

    id: JobId
    task: str
    state: State | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that the answer may depend on."""

    history: History
    now: int
    """The store's time."""
    paused: bool = False
    """The job's queue is."""
    lanes: Sequence[LaneFact] = ()
    """Those of the job's queue."""
    workers: Sequence[WorkerFact] = ()
    parents: Sequence[ParentFact] = ()
    key_holders: Sequence[JobId] = ()
    """Running jobs of the same key."""


class Reason(msgspec.Struct, frozen=True):
    """The answer: a kind for programs, a sentence for people."""

    code: Code
    sentence: str


def why(facts: Facts) -> Reason:
    """The first thing that keeps the job from running; once it is mended, ask again."""
    job = facts.history.job
    if job.state in FINISHED:
        return Reason("finished", _end(job, facts.now))
    if job.state is State.RUNNING:
        time = f" for {span(facts.now - job.started_at)}" if job.started_at is not None else ""
        return Reason(
            "running", f"It has been running{time} on worker {job.worker}, attempt {_attempt(job)}."
        )
    if job.deadline is not None and job.deadline <= facts.now:
        late = span(facts.now - job.deadline)
        return Reason(
            "expiring", f"Its deadline passed {late} ago; it will expire with the next claim of a worker."
        )
    match job.state:
        case State.WAITING:
            return _for_parents(facts.parents)
        case State.SCHEDULED if job.run_at > facts.now:
            return _for_its_moment(facts)
        case State.PARKED:
            return _for_its_key(job, facts.key_holders)
        case _:
            return _for_a_worker(job, facts)


def span(ms: int) -> str:
    """A duration as people say it: ``850ms``, ``2.4s``, ``3m 20s``, ``4h 5m``, ``3d 2h``."""
    if ms < 0:
        return "-" + span(-ms)
    if ms < 1_000:
        return f"{ms}ms"
    if ms < 10_000:
        return f"{ms // 100 / 10:g}s"
    seconds = ms // 1_000
    for unit, size, smaller, smaller_size in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "m", 60),
        ("m", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // smaller_size
            return f"{seconds // size}{unit} {rest}{smaller}" if rest else f"{seconds // size}{unit}"
    return f"{seconds}s"


def _end(job: Job, now: int) -> str:
    when = f" {span(now - job.finished_at)} ago" if job.finished_at is not None else ""
    match job.state:
        case State.SUCCEEDED:
            return f"It succeeded{when}; there is nothing left to run."
        case State.DEAD:
            return f"It died{when}: {job.reason or 'no cause was kept'}; replay it with: ferryman dead replay {job.id}"
        case State.CANCELLED:
            return f"It was cancelled{when}: {job.reason or 'no reason was given'}."
        case _:
            return f"It expired{when}: no worker started it by its deadline."


def _attempt(job: Job) -> str:
    return f"{job.attempt} of {job.max_attempts}"


def _for_parents(parents: Sequence[ParentFact]) -> Reason:
    failed = [p for p in parents if p.state in FINISHED and p.state is not State.SUCCEEDED]
    open_ones = [p for p in parents if p.state is not None and p.state not in FINISHED]
    if failed and not open_ones:
        return Reason(
            "held",
            f"It is held, because {_named(failed)} did not succeed; replay that, or cancel this job.",
        )
    if not open_ones:
        return Reason("waiting", "It waits for jobs that have just finished, and will go on at once.")
    held = f", and {_named(failed)} did not succeed" if failed else ""
    return Reason(
        "waiting", f"It waits for {counted(len(open_ones), 'job')} to finish: {_named(open_ones)}{held}."
    )


def _named(parents: Sequence[ParentFact]) -> str:
    names = [f"{p.id} ({p.task}, {p.state.label if p.state else 'gone'})" for p in parents[:_NAMED]]
    more = len(parents) - _NAMED
    return ", ".join(names) + (f" and {more:,} more" if more > 0 else "")


def _for_its_moment(facts: Facts) -> Reason:
    job = facts.history.job
    wait = span(job.run_at - facts.now)
    attempts = sorted(facts.history.attempts, key=lambda attempt: attempt.finished_at)
    if not attempts:
        return Reason("delayed", f"It is delayed and may run in {wait}.")
    # A replay keeps the earlier attempts, but starts afresh from READY, so the last one set this moment.
    last = attempts[-1]
    if last.kind is OutcomeKind.SNOOZED:
        reason = last.reason or job.reason
        return Reason(
            "snoozed", f"It was snoozed{f' ({reason})' if reason else ''} and runs again in {wait}."
        )
    cause = last.error.cause if last.error else (last.reason or "no cause was kept")
    return Reason(
        "retrying",
        f"Attempt {last.number} of {job.max_attempts} failed ({cause}); the next one comes in {wait}.",
    )


def _for_its_key(job: Job, holders: Sequence[JobId]) -> Reason:
    if not holders:
        by = "held by a job that is about to run or waits for its next attempt"
    else:
        more = len(holders) - _NAMED
        by = f"held by {', '.join(holders[:_NAMED])}" + (f" and {more:,} more" if more > 0 else "")
        by += ", which is running" if len(holders) == 1 else ", which are running"
    return Reason("key-full", f"It is parked: its key {job.key!r} is full, {by}.")


def _for_a_worker(job: Job, facts: Facts) -> Reason:
    if facts.paused:
        return Reason(
            "paused", f"Its queue {job.queue!r} is paused; resume it with: ferryman resume {job.queue}"
        )
    if not facts.workers:
        return Reason("no-worker", "No worker is alive; start one with: ferryman worker app:app")
    serving = [w for w in facts.workers if w.queues is None or job.queue in w.queues]
    if not serving:
        return Reason(
            "not-served",
            f"No living worker serves its queue {job.queue!r}; {_workers(len(facts.workers))} other queues. "
            f"Start one with: ferryman worker app:app --queues {job.queue}",
        )
    able = [w for w in serving if job.task in w.tasks]
    if not able:
        return Reason(
            "unknown-task",
            f"No living worker of its queue knows the task {job.task!r}; "
            "start one with an app that has it, or mend the task's name.",
        )
    takers = [w for w in able if w.state == "active"]
    if not takers:
        return _for_a_taker(able)
    return _for_its_turn(job, facts.lanes, takers)


def _for_a_taker(able: Sequence[WorkerFact]) -> Reason:
    paused = [w for w in able if w.state == "paused"]
    if paused:
        return Reason(
            "workers-paused",
            f"The workers that could run it are paused ({_listed(paused)}); "
            f"resume one with: ferryman workers resume {paused[0].id}",
        )
    return Reason(
        "workers-draining",
        f"The workers that could run it end when they have done what they run ({_listed(able)}); "
        "start another with: ferryman worker app:app",
    )


def _for_its_turn(job: Job, lanes: Sequence[LaneFact], takers: Sequence[WorkerFact]) -> Reason:
    above = sum(lane.ready for lane in lanes if lane.priority > job.priority)
    beside = sum(lane.ready for lane in lanes if lane.priority == job.priority) - (job.state is State.READY)
    running = sum(w.running for w in takers)
    places = sum(w.concurrency for w in takers)
    load = f"{counted(len(takers), 'worker')} that can run it {'has' if len(takers) == 1 else 'have'} {running:,} of {places:,} places taken"
    if above + beside <= 0 and running < places:
        return Reason("next", f"Nothing keeps it: it is next in its lane, and the {load}.")
    line = f"at most {max(beside, 0):,} ready jobs of its lane are before it"
    if above:
        line += f", and {above:,} of higher priority"
    return Reason("busy", f"It waits for its turn: {line}; the {load}.")


def _workers(count: int) -> str:
    return "the one that is alive serves" if count == 1 else f"the {count:,} that are alive serve"


def _listed(workers: Sequence[WorkerFact]) -> str:
    more = len(workers) - _NAMED
    return ", ".join(w.id for w in workers[:_NAMED]) + (f" and {more:,} more" if more > 0 else "")
