"""``ferryman move``, ``backup`` and ``restore``, as people type them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ferryman.app import App
from ferryman.job import State
from ferryman.store.records import Filter

from .conftest import Quay


def states_in(url: str) -> list[State]:
    app = App(url)
    found = app.store.runner().run(app.store.find(Filter(), 100))
    app.close()
    return [job.state for job in found]


def test_move_ends_with_a_table_of_what_was_moved(quay: Quay) -> None:
    quay.enqueue(queue="sums")
    quay.dead_letter()

    result = quay.ferryman("move", quay.url, "sqlite:///new.db", "--yes")

    assert result.exit_code == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[:3] == [["QUEUE", "READY", "DEAD"], ["default", "0", "1"], ["sums", "1", "0"]]
    assert "2 jobs moved and verified" in result.stdout
    assert sorted(states_in("sqlite:///new.db")) == [State.READY, State.DEAD]
    assert quay.states() == []


def test_move_tells_programs_the_same(quay: Quay) -> None:
    quay.enqueue()

    result = quay.ferryman("move", quay.url, "sqlite:///new.db", "--yes", "--json")

    (line,) = map(json.loads, result.stdout.splitlines())
    assert (line["queue"], line["ready"], line["dead"]) == ("default", 1, 0)


def test_move_asks_before_it_pauses_anything(quay: Quay) -> None:
    quay.enqueue()

    result = quay.ferryman("move", quay.url, "sqlite:///new.db", input="n\n")

    assert result.exit_code == 1
    assert "nothing was changed" in result.stderr
    assert quay.states() == [State.READY]


def test_move_needs_stores_that_others_can_see(quay: Quay) -> None:
    missing = quay.ferryman("move", "sqlite:///nowhere.db", "sqlite:///new.db", "--yes")
    private = quay.ferryman("move", quay.url, "memory://", "--yes")

    assert (missing.exit_code, private.exit_code) == (3, 2)
    assert "there is no store at nowhere.db" in missing.stderr
    assert "cannot be moved" in private.stderr


def test_a_backup_is_restored_into_another_store(quay: Quay) -> None:
    quay.enqueue()
    quay.dead_letter()

    saved = quay.ferryman("backup", "jobs.ferry")
    restored = quay.ferryman("restore", "jobs.ferry", "--url", "sqlite:///new.db", "--yes")

    assert saved.exit_code == 0, saved.stderr
    assert "2 jobs in jobs.ferry" in saved.stdout
    assert restored.exit_code == 0, restored.stderr
    assert "new of 2 jobs: 2; " in restored.stdout
    assert sorted(states_in("sqlite:///new.db")) == [State.READY, State.DEAD]


def test_a_backup_replaces_a_file_only_if_told_so(quay: Quay) -> None:
    Path("jobs.ferry").write_text("precious")

    refused = quay.ferryman("backup", "jobs.ferry")
    (replaced,) = quay.lines("backup", "jobs.ferry", "--force")

    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert (replaced["jobs"], replaced["ready"]) == (0, 0)


@pytest.mark.parametrize("command", ["backup", "restore"])
@pytest.mark.parametrize("name", ["", "-"])
def test_a_backup_has_a_name(quay: Quay, command: str, name: str) -> None:
    result = quay.ferryman(command, "--", name)

    assert result.exit_code == 2
    assert f"{name!r} is no name of a file" in result.stderr
    assert not Path("-").exists()


def test_restore_into_a_store_with_jobs_has_to_be_meant(quay: Quay) -> None:
    quay.enqueue()
    quay.ferryman("backup", "jobs.ferry")

    refused = quay.ferryman("restore", "jobs.ferry", "--yes")
    (merged,) = quay.lines("restore", "jobs.ferry", "--merge", "--yes")

    assert refused.exit_code == 2
    assert "--merge" in refused.stderr
    assert (merged["jobs"], merged["new"]) == (1, 0)


def test_a_damaged_backup_is_refused_before_anything_is_stored(quay: Quay) -> None:
    quay.enqueue()
    quay.ferryman("backup", "jobs.ferry")
    path = Path("jobs.ferry")
    path.write_bytes(path.read_bytes()[:-1])

    result = quay.ferryman("restore", "jobs.ferry", "--url", "sqlite:///new.db", "--yes")

    assert result.exit_code == 3
    assert "is damaged" in result.stderr
    assert states_in("sqlite:///new.db") == []
