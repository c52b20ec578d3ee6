"""An executor of an app with tasks of both kinds runs no more jobs at once than it has places."""

from __future__ import annotations

import asyncio
import collections
import random
import threading
import time
from collections.abc import Iterator

import pytest

from ferryman import Context, Ferryman
from ferryman.job import Claim, OutcomeKind
from ferryman.worker import outbox
from ferryman.worker.frames import Assignment, Kind, Track

from .supervising import PATIENCE, InProcess, claim

app = Ferryman("memory://")


class Quay:
    """What the tasks of this file have seen."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.begun: list[int] = []
        self.running: set[int] = set()
        self.most = collections.Counter[int]()

    def begin(self, number: int) -> None:
        self.begun.append(number)
        self.running.add(number)
        self.most[len(self.running)] += 1


quay = Quay()


@app.task(name="thread.work")
def work(number: int, seconds: float) -> None:
    quay.begin(number)
    time.sleep(seconds)
    quay.running.remove(number)


@app.task(name="loop.work")
async def awork(number: int, seconds: float) -> None:
    quay.begin(number)
    await asyncio.sleep(seconds)
    quay.running.remove(number)


@app.task(name="thread.hold")
def hold(ctx: Context) -> None:
    ctx.note("holds")
    assert quay.gate.wait(PATIENCE)


@app.task(name="loop.hold")
async def ahold(ctx: Context) -> None:
    ctx.note("holds")
    while not quay.gate.is_set():
        await asyncio.sleep(0.001)


@app.task(name="loop.block")
async def block(ctx: Context) -> None:
    ctx.note("blocks")
    assert quay.gate.wait(PATIENCE)


@pytest.fixture(autouse=True)
def _anew() -> Iterator[None]:
    quay.__init__()  # type: ignore[misc]
    yield
    quay.gate.set()


def mixed(executor: InProcess, claims: list[Claim]) -> list[tuple[Track, Assignment]]:
    """Hand over jobs of both tracks in one frame."""
    batch: list[tuple[Track, Assignment]] = []
    for each in claims:
        track: Track = "loop" if each.task.startswith("loop") else "thread"
        executor.serials[track] += 1
        batch.append((track, Assignment(executor.serials[track], each)))
    executor.send(Kind.RUN, [each for _, each in batch])
    return batch


def works(tracks: list[Track], seconds: float = 0.0) -> list[Claim]:
    return [
        claim(f"{track}.work", {"number": number, "seconds": seconds}) for number, track in enumerate(tracks)
    ]


@pytest.mark.parametrize("places", [1, 2, 4])
@pytest.mark.parametrize("seconds", [0.0, 0.002])
def test_def_and_async_tasks_side_by_side_run_as_many_jobs_at_once_as_there_are_places(
    places: int, seconds: float
) -> None:
    executor = InProcess(app, places)
    tracks: list[Track] = random.Random(places).choices(["thread", "loop"], k=200)

    for start in range(0, 200, 50):
        mixed(executor, works(tracks, seconds)[start : start + 50])
    outcomes = executor.outcomes(200)

    assert len({each.id for each in outcomes}) == 200
    assert {each.kind for each in outcomes} == {OutcomeKind.SUCCEEDED}
    assert max(quay.most) <= places
    assert not seconds or max(quay.most) == places
    executor.close()


def test_jobs_of_both_kinds_start_in_the_order_in_which_they_came() -> None:
    executor = InProcess(app, places=1)
    tracks: list[Track] = random.Random(5).choices(["thread", "loop"], k=100)

    mixed(executor, works(tracks))
    executor.outcomes(100)

    assert quay.begun == list(range(100))
    executor.close()


@pytest.mark.parametrize("track", ["thread", "loop"])
def test_a_job_that_waits_in_line_is_cancelled_at_once(track: Track) -> None:
    executor = InProcess(app, places=2)
    mixed(executor, [claim("thread.hold"), claim("loop.hold")])
    executor.notes(2)
    (first, second, third) = mixed(executor, works(["thread", "loop", track]))

    executor.cancel(third[1], "not wanted", track)
    cancelled = executor.outcome(third[1])
    quay.gate.set()
    outcomes = executor.outcomes(4)

    assert (cancelled.kind, cancelled.reason) == (OutcomeKind.CANCELLED, "not wanted")
    assert {first[1].claim.id, second[1].claim.id} <= {each.id for each in outcomes}
    assert sorted(quay.begun) == [0, 1]
    executor.close()


def test_a_cancel_is_for_the_track_that_it_names_though_serial_numbers_are_alike() -> None:
    executor = InProcess(app, places=1)
    mixed(executor, [claim("thread.hold")])
    executor.notes(1)
    waiting = mixed(executor, works(["loop", "loop", "thread"]))
    assert [each.serial for _, each in waiting] == [1, 2, 2]

    executor.cancel(waiting[2][1], track="thread")

    assert executor.outcome(waiting[2][1]).kind is OutcomeKind.CANCELLED
    quay.gate.set()
    assert {each.kind for each in executor.outcomes(3)} == {OutcomeKind.SUCCEEDED}
    executor.close()


def test_what_waits_for_a_loop_that_is_blocked_can_be_recalled_and_its_places_are_free_again() -> None:
    executor = InProcess(app, places=3)
    mixed(executor, [claim("loop.block")])
    executor.notes(1)
    waiting = mixed(executor, works(["loop", "loop", "thread"]))

    executor.send(Kind.RECALL)
    returned = executor.returned()
    mixed(executor, works(["thread"] * 10))
    executor.outcomes(10)
    quay.gate.set()

    assert returned == [each.claim.id for _, each in waiting]
    assert executor.outcomes(1)[0].kind is OutcomeKind.SUCCEEDED
    executor.close()


def test_outcomes_are_sent_together_while_jobs_wait_in_line_and_at_once_when_none_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Whoever leaves it to the flusher would wait for that long.
    monkeypatch.setattr(outbox, "_CADENCE_NS", 10**12)
    executor = InProcess(app, places=2)
    mixed(executor, works(["thread"]))
    executor.outcomes(1)

    mixed(executor, works(["thread", "loop"] * 200))
    frames = 0
    done = 0
    while done < 400:
        done += len(executor.frame(Kind.DONE).body)
        frames += 1
    mixed(executor, works(["thread"]))
    executor.outcomes(1)
    mixed(executor, works(["loop"]))
    executor.outcomes(1)

    assert frames < 10
    executor.close()
