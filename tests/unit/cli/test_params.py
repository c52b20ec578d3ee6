"""What people type: durations, moments, states and values."""

from __future__ import annotations

from typing import Any

import click
import pytest

from ferryman.cli.params import duration, json_or_text, moment, state
from ferryman.clock import SystemClock
from ferryman.job import State


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 30), ("0", 0), ("1.5h", 5_400), ("10m", 600), ("1h30m", 5_400), ("250ms", 0.25)],
)
def test_a_duration_is_seconds_or_has_units(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "x", "10 m", "10y", "-5", "inf", "nan", "m10", "1e300", "9999999999999d"]
)
def test_what_is_no_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write 30, 90s, 10m"):
        duration(text)


def test_a_moment_can_be_said_as_how_long_ago() -> None:
    before = SystemClock().now()

    told = moment("10m")

    assert before - 600_000 <= told <= SystemClock().now() - 600_000


def test_a_moment_in_iso_keeps_its_zone() -> None:
    assert moment("2023-11-14T22:13:20+00:00") == 1_700_000_000_000
    assert moment("2023-11-14T23:13:20+01:00") == 1_700_000_000_000


@pytest.mark.parametrize("text", ["yesterday", "9999999999999d", "1e300"])
def test_what_is_no_moment_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match="write how long ago"):
        moment(text)


@pytest.mark.parametrize("text", ["36500d", "1900-01-01", "0001-01-01T00:00+00:00"])
def test_a_moment_before_all_jobs_is_the_beginning(text: str) -> None:
    assert moment(text) == 0


def test_a_state_is_known_by_its_name() -> None:
    assert state("Dead") is State.DEAD
    with pytest.raises(click.BadParameter, match="the states are waiting, scheduled, ready"):
        state("failed")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("true", True),
        ('"1"', "1"),
        ("[1, 2]", [1, 2]),
        ("a@example.com", "a@example.com"),
        ("", ""),
    ],
)
def test_a_value_is_json_if_it_can_be_read_so(text: str, value: Any) -> None:
    assert json_or_text(text) == value
