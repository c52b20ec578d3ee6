"""Why a job is not running: a table of situations and answers."""

from __future__ import annotations

from typing import Any

import pytest

from ferryman.job import Attempt, ErrorInfo, History, Job, JobId, OutcomeKind, State, WorkerId
from ferryman.policy.why import Facts, LaneFact, ParentFact, WorkerFact, span, why

NOW = 1_700_000_000_000
W1 = WorkerId("w1")


def job(state: State, **fields: Any) -> Job:
    return Job(
        **{
            "id": JobId("a" * 32),
            "seq": 1,
            "task": "app.add",
            "queue": "email",
            "priority": 0,
            "state": state,
            "attempt": 0,
            "max_attempts": 4,
            "deaths": 0,
            "enqueued_at": NOW - 60_000,
            "run_at": NOW - 60_000,
            **fields,
        }
    )


def worker(**fields: Any) -> WorkerFact:
    return WorkerFact(**{"id": "w1", "queues": None, "tasks": ("app.add",), "concurrency": 16, **fields})


def attempt(kind: OutcomeKind, **fields: Any) -> Attempt:
    return Attempt(
        **{
            "number": 1,
            "kind": kind,
            "worker": W1,
            "started_at": NOW - 2_000,
            "finished_at": NOW - 1_000,
            **fields,
        }
    )


FAILED = attempt(OutcomeKind.RETRY, error=ErrorInfo("ValueError", "boom"))
SNOOZED = attempt(OutcomeKind.SNOOZED, reason="rate limit")
READY = job(State.READY)
PARENTS = [ParentFact(JobId(str(n) * 32), "app.load", State.RUNNING) for n in range(5)]
DEAD_PARENT = ParentFact(JobId("d" * 32), "app.load", State.DEAD)

CASES: dict[str, tuple[Job, dict[str, Any], str, str]] = {
    "succeeded": (job(State.SUCCEEDED, finished_at=NOW - 5_000), {}, "finished", "It succeeded 5s ago"),
    "dead": (
        job(State.DEAD, reason="ValueError: boom", finished_at=NOW),
        {},
        "finished",
        "ValueError: boom; replay",
    ),
    "cancelled": (job(State.CANCELLED, reason="not needed"), {}, "finished", "was cancelled: not needed"),
    "expired": (job(State.EXPIRED), {}, "finished", "no worker started it by its deadline"),
    "running": (
        job(State.RUNNING, worker=W1, started_at=NOW - 90_000, attempt=2),
        {},
        "running",
        "has been running for 1m 30s on worker w1, attempt 2 of 4",
    ),
    "delayed": (job(State.SCHEDULED, run_at=NOW + 600_000), {}, "delayed", "may run in 10m"),
    "failed, another attempt to come": (
        job(State.SCHEDULED, run_at=NOW + 4_000, attempt=1),
        {"attempts": [SNOOZED, FAILED]},
        "retrying",
        "Attempt 1 of 4 failed (ValueError: boom); the next one comes in 4s",
    ),
    "snoozed": (
        job(State.SCHEDULED, run_at=NOW + 4_000),
        {"attempts": [SNOOZED]},
        "snoozed",
        "snoozed (rate limit) and runs again in 4s",
    ),
    "due, but no worker promotes it": (
        job(State.SCHEDULED, run_at=NOW - 1),
        {},
        "no-worker",
        "No worker is alive",
    ),
    "waits for parents": (
        job(State.WAITING),
        {"parents": PARENTS},
        "waiting",
        "waits for 5 jobs to finish: 00000000000000000000000000000000 (app.load, running), ",
    ),
    "names some parents only": (job(State.WAITING), {"parents": PARENTS}, "waiting", "and 2 more"),
    "waits though a parent died": (
        job(State.WAITING),
        {"parents": [PARENTS[0], DEAD_PARENT]},
        "waiting",
        "(app.load, dead) did not succeed",
    ),
    "held by a dead parent": (
        job(State.WAITING),
        {"parents": [DEAD_PARENT]},
        "held",
        "held, because dddddddddddddddddddddddddddddddd (app.load, dead) did not succeed",
    ),
    "the parents have just finished": (job(State.WAITING), {"parents": []}, "waiting", "will go on at once"),
    "parked behind one job": (
        job(State.PARKED, key="customer-7"),
        {"key_holders": [JobId("b" * 32)]},
        "key-full",
        f"its key 'customer-7' is full, held by {'b' * 32}, which is running",
    ),
    "parked behind many jobs": (
        job(State.PARKED, key="k"),
        {"key_holders": [JobId(f"{n:032x}") for n in range(5)]},
        "key-full",
        "and 2 more, which are running",
    ),
    "parked behind a job that is not running": (
        job(State.PARKED, key="k"),
        {},
        "key-full",
        "about to run or waits for its next attempt",
    ),
    "past its deadline": (
        job(State.READY, deadline=NOW - 2_000),
        {},
        "expiring",
        "Its deadline passed 2s ago",
    ),
    "the queue is paused": (
        READY,
        {"paused": True, "workers": [worker()]},
        "paused",
        "ferryman resume email",
    ),
    "no worker": (READY, {}, "no-worker", "No worker is alive; start one"),
    "no worker serves the queue": (
        READY,
        {"workers": [worker(queues=("default",))]},
        "not-served",
        "No living worker serves its queue 'email'; the one that is alive serves other queues",
    ),
    "no worker knows the task": (
        READY,
        {"workers": [worker(tasks=("app.sub",)), worker(queues=("default",))]},
        "unknown-task",
        "knows the task 'app.add'",
    ),
    "the workers are paused": (
        READY,
        {"workers": [worker(state="paused"), worker(state="draining")]},
        "workers-paused",
        "paused (w1); resume one with: ferryman workers resume w1",
    ),
    "the workers are about to end": (
        READY,
        {"workers": [worker(state="draining")]},
        "workers-draining",
        "end when they have done what they run (w1); start another",
    ),
    "others are before it": (
        READY,
        {"workers": [worker(running=16)], "lanes": [LaneFact(5, 20), LaneFact(0, 1_001), LaneFact(-5, 7)]},
        "busy",
        "at most 1,000 ready jobs of its lane are before it, and 20 of higher priority; the 1 worker",
    ),
    "all places are taken": (
        READY,
        {"workers": [worker(running=16)], "lanes": [LaneFact(0, 1)]},
        "busy",
        "16 of 16 places taken",
    ),
    "it is next": (
        READY,
        {"workers": [worker(running=3), worker(running=1)], "lanes": [LaneFact(0, 1)]},
        "next",
        "the 2 workers that can run it have 4 of 32 places taken",
    ),
}


@pytest.mark.parametrize(("job", "given", "code", "words"), CASES.values(), ids=CASES.keys())
def test_the_answer_names_the_first_thing_in_the_way(
    job: Job, given: dict[str, Any], code: str, words: str
) -> None:
    facts = dict(given)
    history = History(job=job, attempts=facts.pop("attempts", ()))

    reason = why(Facts(history=history, now=NOW, **facts))

    assert reason.code == code
    assert words in reason.sentence


@pytest.mark.parametrize(
    ("ms", "words"),
    [
        (0, "0ms"),
        (850, "850ms"),
        (2_449, "2.4s"),
        (9_000, "9s"),
        (59_999, "59s"),
        (200_000, "3m 20s"),
        (3_600_000, "1h"),
        (14_700_000, "4h 5m"),
        (180_000_000, "2d 2h"),
        (-1_500, "-1.5s"),
    ],
)
def test_a_duration_is_written_as_people_say_it(ms: int, words: str) -> None:
    assert span(ms) == words
