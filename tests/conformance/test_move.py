"""A move between any two stores that share: all arrives, nothing is left, and producers may go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.clock import ManualClock
from ferryman.config import BlobSettings
from ferryman.errors import ConfigError, FerrymanError
from ferryman.io.operation import perform
from ferryman.job import Job, JobId, OutcomeKind, State
from ferryman.moving import mover
from ferryman.moving.mover import MOVED, Moved, Mover, Watch
from ferryman.moving.record import LOCK, Record, read_record, write_record
from ferryman.payload import Payloads, read_reference
from ferryman.store.port import Store
from ferryman.store.records import Filter, QueueSettings, Take

from .driver import ALL, LEASE, W1, Ferry, check_counts, new_job, worker_info
from .stores import STORES
from .test_cargo import Alone, Ground, tell

SHARED = [candidate for candidate in STORES if candidate.shared]


@pytest.fixture
def ground(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    # Nobody claims beside these tests.
    monkeypatch.setattr(mover, "_CLAIMS_END", 0)
    ground = Ground(tmp_path)
    yield ground
    ground.close()


def nothing(*_: object) -> None:
    """Watches nothing."""


def ship(
    here: Store, there: Store, watch: Watch = nothing, *, history: bool = False, anew: bool = False
) -> Moved:
    return Mover(here, there, BlobSettings(), history=history, watch=watch).run(anew=anew)


def jobs_of(store: Store, *states: State) -> dict[JobId, Job]:
    return {job.id: job for job in store.runner().run(store.find(Filter(states=states), ALL))}


def ferry_on(store: Store, clock: ManualClock) -> Ferry:
    return Ferry(store, clock, lambda: store)


@pytest.mark.parametrize("target", SHARED, ids=lambda candidate: f"to-{candidate.name}")
@pytest.mark.parametrize("source", SHARED, ids=lambda candidate: f"from-{candidate.name}")
def test_all_that_may_run_again_is_moved(ground: Ground, source: object, target: object) -> None:
    here, there = ground.open(source), ground.open(target)  # type: ignore[arg-type]
    walk = tell(Alone(here, ground.clock), 7)
    here.runner().run(here.rescue([walk.worker]))
    before = jobs_of(here, *MOVED)
    paused = [queue.settings.name for queue in here.runner().run(here.queues()) if queue.paused]

    moved = ship(here, there)

    assert before
    assert moved.jobs.total() == len(before)
    assert set(before) <= set(jobs_of(there))
    assert not jobs_of(here, *MOVED)
    assert [q.settings.name for q in here.runner().run(here.queues()) if q.paused] == paused
    assert [q.settings.name for q in there.runner().run(there.queues()) if q.paused] == paused
    check_counts(here)
    check_counts(there)


def test_parents_whose_results_are_wanted_come_along(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    after = ferry_on(there, ground.clock)
    parent, other = ferry.add_many(2)
    child = ferry.add(after=(parent, other))
    ferry.settle(ferry.take(), OutcomeKind.SUCCEEDED, result=b"wanted")

    moved = ship(ferry.store, there)

    assert moved.parents == 1
    assert ferry.state(parent) is State.SUCCEEDED
    assert after.drain() == [other, child]
    assert [found.result for found in after.parents_of(child)] == [b"wanted", None]


def test_history_is_moved_if_asked_for(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    ids = ferry.add_many(3)
    ferry.finish_next()
    ferry.cancel(ids[1])

    ship(ferry.store, there, history=True)

    assert not ferry.jobs()
    assert [job.state for job in jobs_of(there).values()][::-1] == [
        State.SUCCEEDED,
        State.CANCELLED,
        State.READY,
    ]


def test_what_is_enqueued_meanwhile_is_moved_too(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    (parent,) = ferry.add_many(1)
    late: list[JobId] = []

    def produce(what: str, *_: object) -> None:
        if what == "copied" and not late:
            # Its parent is in the other store already, and about to be forgotten here.
            late.extend([ferry.add(after=(parent,)), ferry.add(queue="new"), ferry.add(key="k", queue="new")])

    moved = ship(ferry.store, there, produce)

    assert len(late) == 3
    assert moved.rounds > 1
    assert not ferry.jobs()
    assert set(ferry_on(there, ground.clock).drain()) == {parent, *late}


def test_running_jobs_are_waited_for_and_those_of_the_dead_taken_back(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    done, lost = ferry.add_many(2, max_attempts=2)
    ferry.clock.advance(1)
    (claim,) = ferry.claim(1)
    ferry.run(ferry.store.register(worker_info(W1 + "x"), 10))  # type: ignore[arg-type]
    ferry.run(ferry.store.claim(W1 + "x", [Take("default", 0, 1)], 1))  # type: ignore[arg-type]
    ferry.clock.advance(1)

    def finish(what: str, *_: object) -> None:
        if what == "waiting for running jobs" and ferry.state(done) is State.RUNNING:
            ferry.succeed(claim)

    ship(ferry.store, there, finish)

    assert ferry.state(done) is State.SUCCEEDED
    (job,) = jobs_of(there).values()
    assert (job.id, job.attempt, job.state) == (lost, 1, State.READY)


def test_settings_of_queues_go_before_their_jobs(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    ferry.run(
        ferry.store.declare([QueueSettings(name="fair", fair=True), QueueSettings(name="own", max_size=5)])
    )
    there.runner().run(there.declare([QueueSettings(name="own", max_size=7)]))
    many, one = ferry.add_many(3, queue="fair", tenant="many"), ferry.add(queue="fair", tenant="one")

    ship(ferry.store, there)

    settings = {queue.settings.name: queue.settings for queue in there.runner().run(there.queues())}
    assert settings["fair"].fair
    assert settings["own"].max_size == 7
    assert ferry_on(there, ground.clock).drain(1)[:2] == [many[0], one]


def test_a_move_that_broke_off_goes_on_where_it_was(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    ids = ferry.add_many(3)
    ferry.run(ferry.store.pause(["kept"], True))

    def fail(what: str, *_: object) -> None:
        if what == "copied":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ship(ferry.store, there, fail)
    held = ferry.claim(3)
    ferry.run(ferry.store.unlock(LOCK, _owner(ferry)))
    ferry_on(there, ground.clock).finish_next()
    ship(ferry.store, there)

    assert held == []
    assert not ferry.jobs()
    assert [job.state for job in jobs_of(there).values()][::-1] == [State.SUCCEEDED, State.READY, State.READY]
    assert list(jobs_of(there))[::-1] == ids
    paused = {queue.settings.name for queue in ferry.run(ferry.store.queues()) if queue.paused}
    assert paused == {"kept"}


def _owner(ferry: Ferry) -> str:
    record = read_record(ferry.store)
    assert record is not None
    return record.owner


def test_a_move_that_was_begun_goes_to_no_other_store(ferry: Ferry, ground: Ground) -> None:
    there, elsewhere = ground.open(SHARED[0]), ground.open(SHARED[0])
    ferry.add()
    write_record(ferry.store, Record.new("owner", there.url, ()))

    with pytest.raises(ConfigError, match="was begun and has not ended"):
        ship(ferry.store, elsewhere)
    ship(ferry.store, elsewhere, anew=True)

    assert len(jobs_of(elsewhere)) == 1


def test_two_moves_of_one_store_do_not_meet(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    ferry.add()
    ferry.run(ferry.store.lock(LOCK, "another", LEASE))

    with pytest.raises(FerrymanError, match="somebody else is moving"):
        ship(ferry.store, there)


def test_a_store_is_not_moved_to_itself(shared_ferry: Ferry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "_CLAIMS_END", 0)
    job = shared_ferry.add()
    again = shared_ferry.reopen()

    with pytest.raises(ConfigError, match="the same store"):
        ship(shared_ferry.store, again)

    again.close()
    assert shared_ferry.drain() == [job]


def test_payloads_outside_the_store_are_found_afterwards(
    ferry: Ferry, ground: Ground, tmp_path: Path
) -> None:
    there = ground.open(SHARED[0])
    settings = BlobSettings(url=f"file://{tmp_path}/blobs", above=1_024)
    large = bytes(range(256)) * 40
    (job,) = perform(ferry.runner, Payloads(settings, lambda: ferry.store).stow_args([new_job(args=large)]))
    ferry.enqueue(job)
    before = read_reference(ferry.job(job.id).args)
    assert before is not None

    with pytest.raises(ConfigError, match=r"blobs\.url"):
        ship(ferry.store, there)
    ferry.run(ferry.store.unlock(LOCK, _owner(ferry)))
    moved = Mover(ferry.store, there, settings, history=False, watch=nothing).run()

    (arrived,) = there.runner().run(there.get([job.id]))
    assert arrived is not None
    after = read_reference(arrived.args)
    assert after is not None
    assert after.name != before.name
    assert perform(there.runner(), Payloads(settings, lambda: there).fetch(arrived.args)) == large
    assert moved.lost_payloads == 0
    assert not ferry.has(job.id)
