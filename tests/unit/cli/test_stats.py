"""What was done lately: statistics merged, and shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import pytest

from ferryman.app import App
from ferryman.cli.stats import Tally, bar, merge, short
from ferryman.clock import ManualClock, SystemClock
from ferryman.job import OutcomeKind
from ferryman.policy.latency import bucket_of, percentile
from ferryman.store.records import MinuteStats

from .conftest import Quay

MINUTE = 60_000


def part(minute: int = 0, queue: str = "email", task: str = "app.send", **numbers: Any) -> MinuteStats:
    return MinuteStats(minute=minute, queue=queue, task=task, **numbers)


def test_the_numbers_of_a_group_are_added_up() -> None:
    parts = [
        part(enqueued=3, succeeded=2, failed=1),
        part(MINUTE, enqueued=1, succeeded=1, failed=2, dead=1),
        part(queue="reports", enqueued=7),
    ]

    tallies = merge(parts, lambda each: each.queue)

    assert tallies == {
        "email": Tally(enqueued=4, succeeded=3, failed=3, dead=1),
        "reports": Tally(enqueued=7),
    }


def test_percentiles_of_a_group_are_those_of_all_its_attempts() -> None:
    quick, slow = bucket_of(1_000), bucket_of(1_000_000)
    parts = [
        MinuteStats(minute=0, queue="q", task="t", waited={quick: 97}, ran={slow: 1}),
        MinuteStats(minute=MINUTE, queue="q", task="t", waited={quick: 1, slow: 2}),
    ]

    (tally,) = merge(parts, lambda each: each.task).values()

    assert tally.waited == {quick: 98, slow: 2}
    assert tally.ran == {slow: 1}
    assert bucket_of(percentile(tally.waited, 0.98) or 0) == quick
    assert bucket_of(percentile(tally.waited, 0.99) or 0) == slow


def test_merging_leaves_the_parts_as_they_were() -> None:
    first = MinuteStats(minute=0, queue="q", task="t", ran={1: 1})

    merge([first, first], lambda each: each.queue)

    assert first.ran == {1: 1}


def test_nothing_merges_into_nothing() -> None:
    assert merge([], lambda each: each.queue) == {}


def test_a_bar_is_never_longer_than_its_width_and_shows_anything_at_all() -> None:
    assert bar(0, 0, 10) == ""
    assert bar(0, 1_000, 10) == ""
    assert bar(1, 1_000, 10) == "#"
    assert bar(500, 1_000, 10) == "#####"
    assert bar(1_000, 1_000, 10) == "##########"


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (None, "-"),
        (0, "0µs"),
        (850, "850µs"),
        (1_151, "1.2ms"),
        (9_970, "10ms"),
        (850_400, "850ms"),
        (2_400_000, "2.4s"),
        (59_900_000, "60s"),
        (90_000_000, "1.5m"),
        (7_200_000_000, "2h"),
        (100 * 86_400_000_000, "100d"),
    ],
)
def test_a_duration_takes_five_columns(us: int | None, text: str) -> None:
    assert short(us) == text
    assert len(text) <= 5


def test_no_time_is_shorter_than_the_minute_that_is_looked_at(quay: Quay) -> None:
    told = quay.ferryman("stats", "--since", "0").stderr

    assert told.startswith("nothing was enqueued or ended in the last minute; ")


@contextmanager
def some_minutes_ago(quay: Quay, minutes: int) -> Iterator[ManualClock]:
    """Meanwhile what the quay does to the store is done at a time that the test moves on."""
    clock = ManualClock(SystemClock().now() - minutes * MINUTE)
    present, quay.app = quay.app, App(quay.url, clock=clock)
    yield clock
    quay.app.close()
    quay.app = present


def work(quay: Quay) -> None:
    """One email that succeeds after a retry, one that dies, and a report that only waits."""
    worker = quay.start_worker(tasks=["app.send", "app.report"])
    quay.enqueue(queue="email", task="app.send", max_attempts=3)
    quay.enqueue(queue="reports", task="app.report")
    (claim,) = quay.claim(worker, "email")
    quay.settle(worker, claim, OutcomeKind.RETRY, delay=0, ran_us=2_000)
    (claim,) = quay.claim(worker, "email")
    quay.settle(worker, claim, OutcomeKind.SUCCEEDED, ran_us=900_000)
    quay.dead_letter(queue="email")


def test_stats_has_a_line_for_each_queue_and_task(quay: Quay) -> None:
    work(quay)

    died, sent, report = quay.lines("stats")

    assert (died["queue"], died["task"], died["dead"]) == ("email", "app.add", 1)
    assert (sent["queue"], sent["task"]) == ("email", "app.send")
    assert (sent["enqueued"], sent["succeeded"], sent["failed"], sent["dead"]) == (1, 1, 1, 0)
    assert 2 <= sent["ran_p50_ms"] <= 2.25
    assert 900 <= sent["ran_p99_ms"] <= 1_012.5
    assert sent["waited_p95_ms"] >= 0
    assert (report["task"], report["enqueued"], report["ran_p50_ms"]) == ("app.report", 1, None)


def test_stats_can_be_grouped_and_filtered(quay: Quay) -> None:
    work(quay)

    by_queue = quay.lines("stats", "--by", "queue")
    by_task = quay.lines("stats", "--by", "task", "--queue", "email")
    one = quay.lines("stats", "--task", "app.report", "--task", "app.send")

    assert [(row["queue"], row["enqueued"]) for row in by_queue] == [("email", 2), ("reports", 1)]
    assert [(row["task"], row["succeeded"]) for row in by_task] == [("app.add", 0), ("app.send", 1)]
    assert [row["task"] for row in one] == ["app.send", "app.report"]


def test_stats_for_people_end_with_the_total(quay: Quay) -> None:
    work(quay)

    titles, *rows, total = quay.ferryman("stats").stdout.splitlines()

    assert titles.split()[:7] == ["QUEUE", "/", "TASK", "ENQUEUED", "SUCCEEDED", "FAILED", "DEAD"]
    assert [row.split("  ")[0] for row in rows] == [
        "email / app.add",
        "email / app.send",
        "reports / app.report",
    ]
    assert total.split()[:5] == ["total", "3", "1", "2", "1"]


def test_stats_by_minute_draw_how_many_jobs_succeeded(quay: Quay) -> None:
    with some_minutes_ago(quay, 10) as clock:
        worker = quay.start_worker()
        for jobs in (4, 2):
            for _ in range(jobs):
                quay.enqueue()
            for claim in quay.claim(worker, count=jobs):
                quay.settle(worker, claim, OutcomeKind.SUCCEEDED)
            clock.advance(60)
        quay.enqueue()
        clock.advance(180)
        quay.enqueue()

    lines = quay.lines("stats", "--by", "minute")
    titles, *rows, _ = quay.ferryman("stats", "--by", "minute").stdout.splitlines()

    assert [line["succeeded"] for line in lines] == [4, 2, 0, 0]
    assert lines[1]["minute_ms"] - lines[0]["minute_ms"] == MINUTE
    assert lines[0]["minute"].endswith(":00.000Z")
    assert titles.split()[0] == "MINUTE"
    bars = [row.count("#") for row in rows]
    assert bars[0] > bars[1] > 0
    assert bars[2:] == [0, 0, 0]
    assert rows[3] == "..."


def test_stats_reach_back_as_far_as_asked(quay: Quay) -> None:
    with some_minutes_ago(quay, 180):
        quay.enqueue(queue="long-ago")
    quay.enqueue(queue="just-now")

    assert [row["queue"] for row in quay.lines("stats")] == ["just-now"]
    assert [row["queue"] for row in quay.lines("stats", "--since", "4h")] == ["just-now", "long-ago"]


def test_stats_of_nothing_say_where_to_look(quay: Quay) -> None:
    result = quay.ferryman("stats", "--since", "10m")

    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == (
        "nothing was enqueued or ended in the last 10m; look further back with --since 1d\n"
    )
    assert quay.lines("stats") == []


def test_stats_that_match_nothing_differ_from_none(quay: Quay) -> None:
    quay.enqueue()

    result = quay.ferryman("stats", "--queue", "nowhere", "--by", "minute")

    assert result.exit_code == 0
    assert result.stderr == "nothing was done in the last 1h that matches; see: ferryman stats --by queue\n"


def test_the_help_of_stats_has_examples(quay: Quay) -> None:
    shown = click.unstyle(quay.ferryman("stats", "--help").stdout)

    assert "ferryman stats --since 1d --by queue" in shown
    assert "[default: 1h]" in shown
