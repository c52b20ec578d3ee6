"""Reading: what people look at, and what is kept count of."""

from __future__ import annotations

from ferryman.job import ErrorInfo, OutcomeKind, State
from ferryman.policy.latency import bucket_of
from ferryman.store.records import CauseCount, Filter, LaneCounts, MinuteStats, QueueRecord, QueueSettings

from .driver import ALL, W1, W2, Ferry, check_counts, new_job

# -- finding


def test_jobs_are_found_newest_first_in_pages(ferry: Ferry) -> None:
    ids = ferry.add_many(10)
    pages = []
    before = None

    while page := ferry.run(ferry.store.find(Filter(), 4, before)):
        pages.append([job.id for job in page])
        before = page[-1].seq

    assert [len(page) for page in pages] == [4, 4, 2]
    assert [job for page in pages for job in page] == ids[::-1]


def test_pages_hold_still_while_jobs_arrive(ferry: Ferry) -> None:
    ids = ferry.add_many(4)
    first = ferry.run(ferry.store.find(Filter(), 2))
    ferry.add_many(5)

    second = ferry.run(ferry.store.find(Filter(), 2, first[-1].seq))

    assert [job.id for job in [*first, *second]] == ids[::-1]


def test_pages_of_a_filter_hold_only_what_matches(ferry: Ferry) -> None:
    red = []
    for n in range(12):
        job = ferry.add(tags=("red",) if n % 3 == 0 else (), queue="ab"[n % 2])
        if n % 3 == 0:
            red.append(job)

    first = ferry.run(ferry.store.find(Filter(tags=("red",)), 3))
    second = ferry.run(ferry.store.find(Filter(tags=("red",)), 3, first[-1].seq))

    assert [job.id for job in [*first, *second]] == red[::-1]


def test_what_is_found_comes_without_arguments_and_results(ferry: Ferry) -> None:
    job = ferry.add(args=b"large", max_attempts=2)
    claim = ferry.take()
    ferry.settle(claim, OutcomeKind.SUCCEEDED, result=b"larger")

    (found,) = ferry.run(ferry.store.find(Filter(), ALL))

    kept = ferry.job(job)
    assert (found.args, found.result) == (b"", None)
    assert (kept.args, kept.result) == (b"large", b"larger")
    assert (found.id, found.state, found.finished_at) == (kept.id, kept.state, kept.finished_at)


def test_a_history_tells_the_whole_life(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=5, args=b"args")
    ferry.register(W2)
    ferry.settle(ferry.take(W1), OutcomeKind.RETRY)
    ferry.clock.advance(1)
    ferry.settle(ferry.take(W2), OutcomeKind.CRASHED, worker=W2)
    ferry.settle(ferry.take(W1), OutcomeKind.SNOOZED, reason="later")
    ferry.clock.advance(1)
    ferry.succeed(ferry.take(W1), result=b"done")

    history = ferry.history(job)

    told = [(attempt.number, attempt.kind, attempt.worker) for attempt in history.attempts]
    assert history.job == ferry.job(job)
    assert (history.job.args, history.job.result) == (b"args", b"done")
    assert told == [(1, OutcomeKind.RETRY, W1), (2, OutcomeKind.CRASHED, W2), (3, OutcomeKind.SNOOZED, W1)]


# -- lanes and queues


def test_lanes_count_every_state(ferry: Ferry) -> None:
    started = ferry.clock.now()
    ferry.add_many(3)
    ferry.clock.advance(1)
    ferry.add_many(2, priority=5, key="k")
    ferry.add(queue="a", delay=1_000)
    ferry.add(queue="a", after=(ferry.jobs()[0].id,))
    ferry.settle(ferry.claim(plan=None)[0], OutcomeKind.DEAD)
    ferry.take()

    lanes = ferry.run(ferry.store.lanes())

    told = [
        LaneCounts(lane.queue, lane.priority, {s: n for s, n in lane.counts.items() if n}, lane.oldest)
        for lane in lanes
    ]
    assert told == [
        LaneCounts("a", 0, {State.SCHEDULED: 1, State.WAITING: 1}, None),
        LaneCounts("default", 5, {State.DEAD: 1, State.RUNNING: 1}, None),
        LaneCounts("default", 0, {State.READY: 3}, started),
    ]


def test_counts_equal_the_rows_after_a_long_day(ferry: Ferry) -> None:
    ferry.register(W2)
    for n in range(60):
        ferry.add(
            queue="abc"[n % 3],
            priority=n % 4,
            key="k" if n % 5 == 0 else None,
            delay=500 * (n % 7 == 0),
            ttl=3_000 if n % 11 == 0 else None,
            max_attempts=2,
        )
    kinds = list(OutcomeKind)
    for n in range(40):
        for claim in ferry.claim(2, worker=(W1, W2)[n % 2]):
            ferry.settle(claim, kinds[n % len(kinds)], worker=(W1, W2)[n % 2], delay=700)
            check_counts(ferry.store)
        ferry.clock.advance(0.2)
    ferry.run(ferry.store.cancel(Filter(queues=("a",)), 3))
    ferry.run(ferry.store.replay(Filter(), 5))
    ferry.run(ferry.store.delete(Filter(queues=("b",)), 5))
    ferry.run(ferry.store.reprioritise(Filter(), 9, 10))

    check_counts(ferry.store)


def test_queues_are_told_by_name_once_declared_paused_or_used(ferry: Ferry) -> None:
    declared = QueueSettings(name="m", fair=True, weights={"acme": 2.5}, max_size=9, overflow="block")
    ferry.add(queue="z")
    ferry.run(ferry.store.declare([declared]))
    ferry.run(ferry.store.pause(["a"], True))

    assert ferry.run(ferry.store.queues()) == [
        QueueRecord(QueueSettings(name="a"), True),
        QueueRecord(declared, False),
        QueueRecord(QueueSettings(name="z"), False),
    ]


def test_the_last_declaration_counts(ferry: Ferry) -> None:
    ferry.run(ferry.store.declare([QueueSettings(name="q", max_size=1, fair=True)]))
    ferry.run(ferry.store.declare([QueueSettings(name="q", max_size=5)]))

    assert ferry.run(ferry.store.queues()) == [QueueRecord(QueueSettings(name="q", max_size=5), False)]


# -- causes


def test_dead_letters_are_grouped_by_task_and_cause(ferry: Ferry) -> None:
    deaths = [
        ("send", ErrorInfo("IOError", "refused\nat 12:01")),
        ("send", ErrorInfo("IOError", "refused\nat 12:02")),
        ("send", ErrorInfo("IOError", "timeout")),
        ("read", ErrorInfo("IOError", "refused")),
        ("send", ErrorInfo("IOError", "refused\nat 12:03")),
        ("send", ErrorInfo("KeyError", "")),
    ]
    times = []
    for task, error in deaths:
        ferry.add(task=task)
        ferry.finish_next(OutcomeKind.DEAD, error=error)
        times.append(ferry.clock.now())
        ferry.clock.advance(1)

    causes = ferry.run(ferry.store.causes(Filter()))
    of_read = ferry.run(ferry.store.causes(Filter(tasks=("read",))))

    assert causes[0] == CauseCount("send", "IOError: refused", 3, times[0], times[4])
    assert sorted(causes[1:], key=lambda cause: (cause.task, cause.cause)) == [
        CauseCount("read", "IOError: refused", 1, times[3], times[3]),
        CauseCount("send", "IOError: timeout", 1, times[2], times[2]),
        CauseCount("send", "KeyError", 1, times[5], times[5]),
    ]
    assert of_read == [CauseCount("read", "IOError: refused", 1, times[3], times[3])]


def test_a_replayed_dead_letter_is_no_cause_any_more(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.finish_next(OutcomeKind.DEAD)

    ferry.replay(job)

    assert ferry.run(ferry.store.causes(Filter())) == []


# -- statistics


def _minute(ferry: Ferry) -> int:
    return ferry.clock.now() // 60_000 * 60_000


def _stats(ferry: Ferry) -> list[MinuteStats]:
    """The statistics of all minutes, without zero buckets."""
    return [
        MinuteStats(
            minute=row.minute,
            queue=row.queue,
            task=row.task,
            enqueued=row.enqueued,
            succeeded=row.succeeded,
            failed=row.failed,
            dead=row.dead,
            waited={bucket: n for bucket, n in row.waited.items() if n},
            ran={bucket: n for bucket, n in row.ran.items() if n},
        )
        for row in ferry.run(ferry.store.stats(0, ferry.clock.now() + 3_600_000))
    ]


def test_statistics_tell_what_a_task_did_in_a_minute(ferry: Ferry) -> None:
    minute = _minute(ferry)
    ferry.add_many(3, max_attempts=1)
    ferry.clock.advance(2)
    one, two, three = ferry.claim(3)

    ferry.settle(one, OutcomeKind.SUCCEEDED, ran_us=0)
    ferry.settle(two, OutcomeKind.DEAD, ran_us=0)
    ferry.settle(three, OutcomeKind.RETRY, ran_us=0)

    assert _stats(ferry) == [
        MinuteStats(
            minute=minute,
            queue="default",
            task="work",
            enqueued=3,
            succeeded=1,
            failed=2,
            dead=2,
            waited={bucket_of(2_000_000): 3},
            ran={bucket_of(0): 3},
        )
    ]


def test_run_times_and_waiting_times_fall_into_their_buckets(ferry: Ferry) -> None:
    ferry.add_many(3, max_attempts=2)
    claims = ferry.claim(3)
    ferry.clock.advance(10)

    for claim, ran in zip(claims, (1_500, 40_000, 10_000_000), strict=True):
        ferry.settle(claim, OutcomeKind.SUCCEEDED, ran_us=ran)

    (row,) = _stats(ferry)
    assert row.ran == {bucket_of(1_500): 1, bucket_of(40_000): 1, bucket_of(10_000_000): 1}
    assert sum(row.waited.values()) == 3
    assert row.waited[bucket_of(0)] == 1


def test_each_attempt_that_failed_counts_and_each_job_that_died(ferry: Ferry) -> None:
    ferry.add(max_attempts=4)

    for kind in (OutcomeKind.RETRY, OutcomeKind.CRASHED, OutcomeKind.RETRY, OutcomeKind.CRASHED):
        ferry.finish_next(kind)

    (row,) = _stats(ferry)
    assert (row.enqueued, row.succeeded, row.failed, row.dead) == (1, 0, 4, 1)
    assert (sum(row.waited.values()), sum(row.ran.values())) == (4, 4)


def test_snoozes_releases_and_cancellations_are_no_attempts_ended(ferry: Ferry) -> None:
    ferry.add_many(3)

    for claim, kind in zip(
        ferry.claim(3), (OutcomeKind.SNOOZED, OutcomeKind.RELEASED, OutcomeKind.CANCELLED), strict=True
    ):
        ferry.settle(claim, kind, delay=1_000)

    (row,) = _stats(ferry)
    assert (row.enqueued, row.succeeded, row.failed, row.dead) == (3, 0, 0, 0)
    assert (row.waited, row.ran) == ({}, {})


def test_statistics_are_kept_by_minute_queue_and_task(ferry: Ferry) -> None:
    first = _minute(ferry)
    ferry.enqueue(new_job(queue="b"), new_job(queue="a", task="y"), new_job(queue="a", task="x"))
    ferry.clock.advance(60)
    ferry.add_many(2, queue="a", task="x")
    ferry.clock.advance(60)
    ferry.add(queue="a", task="x")

    told = [(row.minute, row.queue, row.task, row.enqueued) for row in _stats(ferry)]
    middle = ferry.run(ferry.store.stats(first + 60_000, first + 120_000))

    assert told == [
        (first, "a", "x", 1),
        (first, "a", "y", 1),
        (first, "b", "work", 1),
        (first + 60_000, "a", "x", 2),
        (first + 120_000, "a", "x", 1),
    ]
    assert [(row.minute, row.enqueued) for row in middle] == [(first + 60_000, 2)]


def test_duplicates_and_lost_outcomes_count_nothing(ferry: Ferry) -> None:
    job = new_job()
    ferry.enqueue(job, job)
    claim = ferry.take()
    ferry.succeed(claim)
    ferry.enqueue(job)
    ferry.settle(claim, OutcomeKind.DEAD)

    (row,) = _stats(ferry)
    assert (row.enqueued, row.succeeded, row.failed) == (1, 1, 0)


def test_statistics_outlive_the_jobs(ferry: Ferry) -> None:
    ferry.add()
    job = ferry.finish_next()

    ferry.delete(job)

    (row,) = _stats(ferry)
    assert (row.enqueued, row.succeeded) == (1, 1)


def test_a_store_tells_its_time(ferry: Ferry) -> None:
    ferry.clock.advance(12.5)

    assert ferry.run(ferry.store.time()) == ferry.clock.now()
