"""The timeline of a job's life."""

from __future__ import annotations

import msgspec

from ferryman.cli.life import timeline
from ferryman.job import Attempt, ErrorInfo, History, Job, JobId, Note, OutcomeKind, State, WorkerId

T = 1_700_000_000_000
W1, W2 = WorkerId("w1"), WorkerId("w2")
FAILED = Attempt(
    number=1,
    kind=OutcomeKind.RETRY,
    worker=W1,
    started_at=T,
    finished_at=T,
    error=ErrorInfo("ValueError", "boom"),
)
JOB = Job(
    id=JobId("a" * 32),
    seq=1,
    task="app.add",
    queue="email",
    priority=5,
    state=State.SUCCEEDED,
    attempt=2,
    max_attempts=4,
    deaths=0,
    enqueued_at=T,
    run_at=T,
    started_at=T,
    finished_at=T,
    worker=W2,
)


def told(history: History) -> list[str]:
    return [event.text for event in timeline(history)]


def test_what_happened_in_one_millisecond_is_told_in_order() -> None:
    history = History(job=JOB, attempts=(FAILED,), notes=(Note(T, 2, "second"), Note(T, 1, "first")))

    assert told(history) == [
        "enqueued in queue email, priority 5",
        "attempt 1 started on w1",
        "note: first",
        "attempt 1 failed after 0ms: ValueError: boom",
        "attempt 2 started on w2",
        "note: second",
        "succeeded after 0ms",
    ]


def test_the_attempts_of_an_earlier_life_come_before_those_after_a_replay() -> None:
    first = msgspec.structs.replace(FAILED, kind=OutcomeKind.DEAD, started_at=T + 10, finished_at=T + 20)
    second = msgspec.structs.replace(
        FAILED, kind=OutcomeKind.CRASHED, started_at=T + 30, finished_at=T + 2_030
    )
    running = msgspec.structs.replace(JOB, state=State.RUNNING, started_at=T + 3_000, finished_at=None)

    assert told(History(job=running, attempts=(second, first)))[1:] == [
        "attempt 1 started on w1",
        "attempt 1 failed for good after 10ms: ValueError: boom",
        "attempt 1 started on w1",
        "attempt 1 crashed after 2s: ValueError: boom",
        "attempt 2 started on w2",
    ]


def test_an_end_without_an_attempt_is_told_with_its_reason() -> None:
    cancelled = msgspec.structs.replace(
        JOB, state=State.CANCELLED, attempt=0, started_at=None, worker=None, reason="not needed"
    )

    assert told(History(job=cancelled))[1:] == ["cancelled: not needed"]


def test_a_job_that_is_to_run_says_when() -> None:
    scheduled = msgspec.structs.replace(
        JOB, state=State.SCHEDULED, attempt=1, run_at=T + 5_000, started_at=None, finished_at=None
    )

    assert told(History(job=scheduled, attempts=(FAILED,)))[-1] == "may run"
