"""What a supervisor is told from outside reaches it, and whoever tells it goes on at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NoReturn

import pytest

from ferryman.job import Claim, JobId
from ferryman.worker.frames import Frame, Kind, TaskFacts
from ferryman.worker.main import _stop
from ferryman.worker.supervisor import Phase

from .supervisor_scene import WORK, Begin, scenes

begin = pytest.fixture(scenes, name="begin")


def test_whoever_tells_it_something_does_not_wait_until_it_listens(begin: Begin) -> None:
    scene = begin()
    before = scene.ready

    for _ in range(2_000):
        scene.supervisor.reload()
    scene.supervisor.stop()

    assert scene.until_over() < 5
    assert all(each.is_closed for each in before)


def test_a_job_whose_task_is_made_while_it_is_claimed_waits_for_the_executor_that_knows_it(
    begin: Begin,
) -> None:
    scene = begin()
    before = scene.ready
    scene.tasks = [WORK, TaskFacts(name="new", track="thread")]
    (job,) = scene.ferry.add_many(1, task="new")

    turn = scene.desk.turn

    def make_the_task_meanwhile(room: int) -> Sequence[Claim]:
        claims = turn(room)
        if claims:
            scene.supervisor.reload()
        return claims

    scene.monkeypatch.setattr(scene.desk, "turn", make_the_task_meanwhile)
    scene.until(lambda: job in scene.running())

    assert "new" in scene.where(job).tasks
    assert not any(_runs(frame, job) for executor in before for frame in executor.heard)


def test_it_is_told_to_stop_although_there_can_be_no_more_threads(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: threading.Thread) -> NoReturn:
        raise RuntimeError("can't start new thread")

    scene = begin()
    (job,) = scene.start_jobs(1)
    monkeypatch.setattr(threading.Thread, "start", fail)

    _stop(scene.supervisor)
    scene.turn()

    assert scene.supervisor.phase is Phase.DRAINING
    assert job in scene.running(), "it is waited for"


def _runs(frame: Frame, job: JobId) -> bool:
    return frame.kind is Kind.RUN and job in [each.claim.id for each in frame.body]
