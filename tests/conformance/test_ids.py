"""What people say of jobs: what can be no id is found on no store, and whatever can is found on all; reasons are kept."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferryman import Ferryman, Filter, JobNotFound, Settings, State
from ferryman.errors import InvalidValue
from ferryman.job import new_id

from .stores import Candidate


@pytest.fixture
def app(candidate: Candidate, tmp_path: Path) -> Iterator[Ferryman]:
    app = Ferryman(settings=Settings(url=candidate.url(tmp_path)))
    yield app
    app.close()
    candidate.clear(tmp_path)


@pytest.mark.parametrize("id", ["abc", "", "x" * 32, "a\0b", "\ud800", 5, None], ids=ascii)
def test_what_can_be_no_id_is_not_found(app: Ferryman, id: Any) -> None:
    job = app.job(id)

    for ask in (job.status, job.record, job.result, job.cancel, job.replay):
        with pytest.raises(JobNotFound, match="is no job's id, which is 32 hexadecimal digits"):
            ask()


def test_an_id_that_nobody_has_is_not_found(app: Ferryman) -> None:
    with pytest.raises(JobNotFound, match="has no job"):
        app.job(new_id()).status()


def test_an_id_is_known_in_capitals_with_dashes_and_as_a_uuid(app: Ferryman) -> None:
    work = app.task(name="work")(lambda: None)
    id = work.enqueue().id

    found = [app.job(way).record().id for way in (id, id.upper(), str(uuid.UUID(id)), uuid.UUID(id))]

    assert found == [id] * 4
    assert app.cancel(Filter(ids=(id.upper(),))) == 1  # type: ignore[arg-type]
    assert app.job(id).status() is State.CANCELLED


def test_a_text_where_several_are_wanted_changes_nothing(app: Ferryman) -> None:
    work = app.task(name="work", queue="reports")(lambda: None)
    job = work.enqueue()

    with pytest.raises(InvalidValue, match="queues must be a tuple of texts"):
        app.cancel(Filter(queues="reports"))  # type: ignore[arg-type]

    assert job.status() is State.READY
    assert app.cancel(Filter(queues=["reports"])) == 1  # type: ignore[arg-type]


def test_a_parent_can_be_named_by_its_id(app: Ferryman) -> None:
    work = app.task(name="work")(lambda: None)
    first = work.enqueue()

    child = work.options(after=[first.id.upper()]).enqueue()

    assert child.status() is State.WAITING


@pytest.mark.parametrize("bulk", [False, True])
def test_any_reason_for_a_cancel_is_kept_as_text(app: Ferryman, bulk: bool) -> None:
    work = app.task(name="work")(lambda: None)
    job = work.enqueue()
    reason = "a NUL \0, half a letter \ud800" + "!" * 3_000

    app.cancel(Filter(ids=(job.id,)), reason) if bulk else job.cancel(reason)

    kept = job.record().reason or ""
    assert kept.startswith("a NUL \\0, half a letter \\ud800!!!")
    assert len(kept) < 2_010
