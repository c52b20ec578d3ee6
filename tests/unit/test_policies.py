"""Decisions of the worker: which lanes to claim from, how much to hold ahead, who gets what."""

from __future__ import annotations

import random

import pytest

from ferryman.policy.latency import bucket_of, percentile, upper_bound
from ferryman.policy.prefetch import Pace, share
from ferryman.policy.priority import strict_plan


def test_a_higher_priority_is_planned_before_a_lower_one_in_any_queue() -> None:
    plan = strict_plan([("a", 0), ("b", 9), ("c", 5)], 10, turn=3)

    assert plan == [(("b", 9), 10), (("c", 5), 10), (("a", 0), 10)]


def test_lanes_of_one_priority_get_an_equal_share_before_one_gets_the_rest() -> None:
    plan = strict_plan([("a", 0), ("b", 0), ("c", 0)], 10, turn=0)

    assert plan[:3] == [(("a", 0), 4), (("b", 0), 4), (("c", 0), 4)]
    assert plan[3:] == [(("a", 0), 10), (("b", 0), 10), (("c", 0), 10)]


def test_lanes_of_one_priority_go_first_by_turns() -> None:
    lanes = [("a", 0), ("b", 0), ("c", 0)]

    first = [strict_plan(lanes, 1, turn)[0][0] for turn in range(6)]

    assert first == [("a", 0), ("b", 0), ("c", 0)] * 2


def test_nothing_is_planned_without_lanes() -> None:
    assert strict_plan([], 10, turn=1) == []


@pytest.mark.parametrize(
    ("count", "rooms", "shares"),
    [
        (6, [3, 3], [3, 3]),
        (4, [10, 2], [4, 0]),
        (10, [10, 2], [9, 1]),
        (1, [2, 2, 2], [1, 0, 0]),
        (99, [1, 0, 2], [1, 0, 2]),
        (5, [], []),
        (0, [4], [0]),
    ],
)
def test_the_emptiest_executor_gets_most(count: int, rooms: list[int], shares: list[int]) -> None:
    assert share(count, rooms) == shares


def test_shares_add_up_and_never_exceed_the_room() -> None:
    luck = random.Random(7)
    for _ in range(2_000):
        rooms = [luck.randrange(0, 20) for _ in range(luck.randrange(1, 6))]
        count = luck.randrange(0, 60)

        shares = share(count, rooms)

        assert sum(shares) == min(count, sum(rooms))
        assert all(0 <= given <= room for given, room in zip(shares, rooms, strict=True))
        left = [room - given for given, room in zip(shares, rooms, strict=True)]
        served = [rest for rest, given in zip(left, shares, strict=True) if given]
        # Whoever got something is no fuller afterwards than whoever could have had it instead.
        assert not served or max(left) - min(served) <= 1


def test_nothing_is_held_ahead_before_a_pace_was_shown() -> None:
    assert Pace(0.0, places=8).ahead(1.0) == 0


def test_an_executor_holds_some_hundredths_of_a_second_of_short_jobs_ahead() -> None:
    pace = Pace(0.0, places=8)
    for step in range(1, 101):
        pace.record(100, 0.005, step * 0.01)  # ten thousand a second

    assert pace.ahead(1.0) == pytest.approx(300, abs=5)


def test_long_jobs_are_not_held_ahead() -> None:
    pace = Pace(0.0, places=8)
    for step in range(1, 11):
        pace.record(1, 1.0, float(step))

    assert pace.ahead(10.0) == 0


def test_of_jobs_that_take_some_ms_no_more_are_held_ahead_than_run() -> None:
    pace = Pace(0.0, places=16)
    for step in range(1, 101):
        pace.record(32, 32 * 0.005, step * 0.01)  # 16 at once

    assert pace.ahead(1.0) == 16


def test_what_is_held_ahead_dwindles_when_nothing_gets_done() -> None:
    pace = Pace(0.0, places=8)
    for step in range(1, 101):
        pace.record(100, 0.005, step * 0.01)

    assert pace.ahead(1.0) > pace.ahead(1.1) > pace.ahead(2.0)
    assert pace.ahead(60.0) <= 1


@pytest.mark.parametrize("us", [*range(70), 999, 1_000, 10**6, 3 * 10**9])
def test_a_duration_lies_in_its_bucket(us: int) -> None:
    bucket = bucket_of(us)

    assert us <= upper_bound(bucket) <= max(us * 9 // 8 + 1, us)
    assert bucket == 0 or upper_bound(bucket - 1) < us


def test_a_negative_duration_counts_as_none() -> None:
    assert bucket_of(-5) == 0


def test_percentiles_are_read_from_the_buckets() -> None:
    histogram = {bucket_of(100): 90, bucket_of(1_000): 9, bucket_of(50_000): 1}

    assert percentile(histogram, 0.5) == upper_bound(bucket_of(100))
    assert percentile(histogram, 0.95) == upper_bound(bucket_of(1_000))
    assert percentile(histogram, 1.0) == upper_bound(bucket_of(50_000))
    assert percentile({}, 0.5) is None
