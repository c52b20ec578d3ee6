"""Chores go on beside jobs, whatever happens to one round of them."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from ferryman.errors import StoreUnavailable
from ferryman.worker.chore import Chore


def test_of_failures_in_a_row_the_first_is_told(caplog: pytest.LogCaptureFixture) -> None:
    ends = iter([StoreUnavailable("away"), StoreUnavailable("away"), None, StoreUnavailable("away again")])
    chore = Chore("tidying", lambda: _meet(ends))

    with caplog.at_level(logging.WARNING, "ferryman.worker"):
        for _ in range(4):
            chore.round()

    assert [record.getMessage() for record in caplog.records] == [
        "tidying did not work, will try again: away",
        "tidying did not work, will try again: away again",
    ]


def test_what_nobody_expected_is_told_with_its_place(caplog: pytest.LogCaptureFixture) -> None:
    chore = Chore("tidying", lambda: _meet(iter([KeyError("what")])))

    with caplog.at_level(logging.WARNING, "ferryman.worker"):
        chore.round()

    assert "in _meet" in caplog.text


def _meet(ends: Iterator[Exception | None]) -> None:
    if (end := next(ends)) is not None:
        raise end
