"""The slot table: what a reader in another process learns from it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator

import pytest

from ferryman.worker.frames import Track
from ferryman.worker.slots import SlotTable, monotonic_ms


@pytest.fixture(params=["memfd", "file"])
def table(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlotTable]:
    if request.param == "file":
        monkeypatch.delattr(os, "memfd_create")
    table = SlotTable.create(3)
    yield table
    table.close()


def test_a_fresh_table_has_started_and_runs_nothing(table: SlotTable) -> None:
    assert table.started_upto("thread") == table.started_upto("loop") == 0
    assert table.running("thread") == table.running("loop") == []


def test_what_runs_is_listed_with_its_start_by_track(table: SlotTable) -> None:
    before = monotonic_ms()

    table.start(1, 7)
    table.start(4, 2)

    ((serial, since),) = table.running("thread")
    assert serial == 7
    assert before <= since <= monotonic_ms()
    assert [running.serial for running in table.running("loop")] == [2]


def test_a_finished_job_still_counts_as_started(table: SlotTable) -> None:
    table.start(0, 5)
    table.start(2, 4)

    table.finish(0)

    assert table.started_upto("thread") == 5
    assert table.started_upto("loop") == 0
    assert [running.serial for running in table.running("thread")] == [4]


@pytest.mark.parametrize(("track", "slots"), [("thread", (0, 1, 2)), ("loop", (4, 5, 6))])
def test_a_job_whose_arguments_are_fetched_neither_runs_nor_was_started(
    table: SlotTable, track: Track, slots: tuple[int, int, int]
) -> None:
    first, second, third = slots
    table.start(first, 1)
    table.finish(first)
    table.fetch(second, 2)
    table.start(third, 3)

    before = [table.has_started(track, serial) for serial in (1, 2, 3, 4)]
    fetching = [table.is_fetching(track, serial) for serial in (1, 2, 3, 4)]
    running = [each.serial for each in table.running(track)]
    table.start(second, 2)

    assert before == [True, False, True, False]
    assert fetching == [False, True, False, False]
    assert running == [3]
    assert not table.is_fetching(track, 2)
    assert table.has_started(track, 2)
    assert [each.serial for each in table.running(track)] == [2, 3]


def test_another_view_of_the_same_memory_sees_every_change(table: SlotTable) -> None:
    other = SlotTable(os.dup(table.fd), table.places)

    table.start(5, 2**40)

    assert other.started_upto("loop") == 2**40
    other.close()


def test_a_table_leaves_no_file_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("slots")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delattr(os, "memfd_create")

    table = SlotTable.create(1)

    assert list(folder.iterdir()) == []
    table.close()
