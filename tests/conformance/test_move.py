"""A move between any two stores that share: all arrives, nothing is left, and producers may go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferryman.clock import ManualClock
from ferryman.config import BlobSettings
from ferryman.errors import ConfigError, FerrymanError, PayloadError, StoreUnavailable
from ferryman.io.operation import Operation, perform
from ferryman.job import Job, JobId, OutcomeKind, State
from ferryman.moving import arriving, mover
from ferryman.moving.mover import MOVED, Moved, Mover, Watch
from ferryman.moving.record import LOCK, Record, read_record, write_record
from ferryman.payload import Payloads, read_reference
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import Filter, QueueSettings, Retention, Take

from .driver import ALL, LEASE, W1, Ferry, check_counts, new_job, worker_info
from .stores import STORES, Candidate
from .test_cargo import Alone, Ground, tell

SHARED = [candidate for candidate in STORES if candidate.shared]


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
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
    write_record(ferry.store, Record.new("owner", there.url, (), 0))

    with pytest.raises(ConfigError, match="was begun and has not ended"):
        ship(ferry.store, elsewhere)
    ship(ferry.store, elsewhere, anew=True)

    assert len(jobs_of(elsewhere)) == 1


def test_a_move_to_a_store_that_cannot_be_reached_was_not_begun(ferry: Ferry, ground: Ground) -> None:
    there, nowhere = ground.open(SHARED[0]), open_store("redis://127.0.0.1:1/")
    job = ferry.add()

    with pytest.raises(StoreUnavailable):
        ship(ferry.store, nowhere)
    ship(ferry.store, there)

    assert list(jobs_of(there)) == [job]


def _die(what: str, *_: object) -> None:
    if what == "copied":
        raise KeyboardInterrupt


def test_no_move_begins_from_a_store_to_which_another_is_under_way(ferry: Ferry, ground: Ground) -> None:
    middle, end = ground.open(SHARED[0]), ground.open(SHARED[0])
    ferry.add()
    with pytest.raises(KeyboardInterrupt):
        ship(ferry.store, middle, _die)

    for goal in (end, ferry.store):
        with pytest.raises(ConfigError, match=r"a move or restore to .* was begun and has not ended"):
            ship(middle, goal)
    before = jobs_of(end)
    ship(middle, end, anew=True)

    assert before == {}
    assert len(jobs_of(end)) == 1


def test_a_job_that_is_cancelled_after_it_was_copied_is_cancelled_in_both_stores(
    ferry: Ferry, ground: Ground
) -> None:
    there = ground.open(SHARED[0])
    ids = ferry.add_many(4)

    def change_ones_mind(what: str, *_: object) -> None:
        if what == "copied":
            ferry.cancel(ids[1], reason="the customer has left")
            ferry.cancel(ids[3])

    ship(ferry.store, there, change_ones_mind)

    assert [(job.state, job.reason) for job in jobs_of(there).values()][::-1] == [
        (State.READY, None),
        (State.CANCELLED, "the customer has left"),
        (State.READY, None),
        (State.CANCELLED, None),
    ]
    assert not ferry.jobs()


def test_a_job_that_is_cancelled_just_before_it_is_forgotten_is_cancelled_in_the_second_store(
    ferry: Ferry, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = ground.open(SHARED[0])
    ids = ferry.add_many(3)
    forget = ferry.store.forget
    cancelled: list[int] = []

    def forget_a_moment_later(*args: Any) -> Operation[int]:
        if not cancelled:
            cancelled.append(ferry.cancel(ids[1], reason="at the last moment"))
        return forget(*args)

    monkeypatch.setattr(ferry.store, "forget", forget_a_moment_later)
    moved = ship(ferry.store, there)

    found = jobs_of(there)
    assert cancelled == [1]
    assert (found[ids[1]].state, found[ids[1]].reason) == (State.CANCELLED, "at the last moment")
    assert moved.jobs.total() == 3
    assert not ferry.jobs()


def test_a_job_that_was_cancelled_before_a_move_that_broke_off_and_runs_in_the_second_store_goes_on(
    ferry: Ferry, ground: Ground
) -> None:
    there = ground.open(SHARED[0])
    (job,) = ferry.add_many(1)
    ferry.cancel(job)
    with pytest.raises(KeyboardInterrupt):
        ship(ferry.store, there, _die, history=True)
    ferry.run(ferry.store.unlock(LOCK, _owner(ferry)))

    there.runner().run(there.replay(Filter(ids=(job,)), 1))
    ship(ferry.store, there, history=True)

    assert jobs_of(there)[job].state is State.READY
    assert not ferry.jobs()


@pytest.mark.parametrize("history", [False, True], ids=["pending", "all"])
def test_a_job_that_is_cancelled_while_a_move_is_broken_off_is_cancelled_in_the_second_store(
    ferry: Ferry, ground: Ground, history: bool
) -> None:
    there = ground.open(SHARED[0])
    kept, job = ferry.add_many(2)
    ferry.clock.advance(1)
    with pytest.raises(KeyboardInterrupt):
        ship(ferry.store, there, _die, history=history)
    ferry.run(ferry.store.unlock(LOCK, _owner(ferry)))
    ferry.clock.advance(1)

    ferry.cancel(job, reason="meanwhile")
    ship(ferry.store, there, history=history)

    found = jobs_of(there)
    assert found[kept].state is State.READY
    assert (found[job].state, found[job].reason) == (State.CANCELLED, "meanwhile")


def test_two_moves_of_one_store_do_not_meet(ferry: Ferry, ground: Ground) -> None:
    there = ground.open(SHARED[0])
    ferry.add()
    ferry.run(ferry.store.lock(LOCK, "another", LEASE))

    with pytest.raises(FerrymanError, match="somebody else is moving"):
        ship(ferry.store, there)


def test_a_store_is_not_moved_to_itself(shared_ferry: Ferry) -> None:
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


# -- while workers of the second store run what has arrived --------------------------------------------

KEEP_NOTHING = Retention(succeeded=0, succeeded_count=0, dead=0, dead_count=0, other=0, other_count=0)


def run_and_prune(after: Ferry) -> list[JobId]:
    """What workers of the second store do meanwhile, if it is told to keep nothing that has finished."""
    done = after.drain()
    after.clock.advance(1)
    after.run(after.store.prune(KEEP_NOTHING, ALL))
    return done


@pytest.mark.parametrize("target", SHARED, ids=lambda candidate: f"to-{candidate.name}")
def test_jobs_that_end_in_the_second_store_are_kept_there_until_the_move_ends(
    ground: Ground, target: Candidate
) -> None:
    ferry, after = ferry_on(ground.open(SHARED[0]), ground.clock), ferry_on(ground.open(target), ground.clock)
    ids = ferry.add_many(1_200)
    done: list[JobId] = []

    def work(what: str, *_: object) -> None:
        if what == "copied":
            done.extend(run_and_prune(after))
            assert len(done) <= len(ids)

    ship(ferry.store, after.store, work)

    assert done == ids
    assert len(after.jobs()) == len(ids)
    run_and_prune(after)
    assert after.jobs() == []
    assert ferry.jobs() == []


def test_a_parent_that_has_ended_in_the_second_store_is_there_when_its_child_arrives(
    ferry: Ferry, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "_PAGE", 1)
    after = ferry_on(ground.open(SHARED[0]), ground.clock)
    parent = ferry.add()
    child = ferry.add(after=(parent,))
    done: list[JobId] = []

    def work(*_: object) -> None:
        done.extend(run_and_prune(after))
        assert len(done) <= 2

    ship(ferry.store, after.store, work)

    assert done == [parent, child]


def test_a_mover_that_was_killed_has_a_day_to_be_started_again(ferry: Ferry, ground: Ground) -> None:
    after = ferry_on(ground.open(SHARED[0]), ground.clock)
    ids = ferry.add_many(2)

    def die(what: str, *_: object) -> None:
        if what == "copied":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ship(ferry.store, after.store, die)
    done = run_and_prune(after)
    ground.clock.advance(23 * 3_600)
    done += run_and_prune(after)
    ferry.run(ferry.store.unlock(LOCK, _owner(ferry)))
    ship(ferry.store, after.store)
    done += run_and_prune(after)

    assert done == ids
    assert after.jobs() == []


def test_a_move_may_take_days(ferry: Ferry, ground: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mover, "_PAGE", 1)
    monkeypatch.setattr(arriving, "_RENEW", 0)
    after = ferry_on(ground.open(SHARED[0]), ground.clock)
    ids = ferry.add_many(4)
    done: list[JobId] = []

    def work(*_: object) -> None:
        ground.clock.advance(20 * 3_600)
        after.heartbeat()
        done.extend(run_and_prune(after))
        assert len(done) <= len(ids)

    ship(ferry.store, after.store, work)

    assert done == ids


def test_one_that_is_given_up_keeps_finished_jobs_for_a_day_only(ferry: Ferry, ground: Ground) -> None:
    after = ferry_on(ground.open(SHARED[0]), ground.clock)
    ferry.add_many(2)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ship(ferry.store, after.store, die)
    ground.clock.advance(24 * 3_600)
    run_and_prune(after)

    assert after.jobs() == []


def test_one_move_to_a_store_may_end_while_another_goes_on(
    ferry: Ferry, ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mover, "_PAGE", 1)
    other, after = (
        ferry_on(ground.open(SHARED[0]), ground.clock),
        ferry_on(ground.open(SHARED[0]), ground.clock),
    )
    ids, others = ferry.add_many(3), other.add_many(2)
    done: list[JobId] = []

    def work(what: str, *_: object) -> None:
        if what == "copied":
            if not done:
                ship(other.store, after.store)
            done.extend(run_and_prune(after))
            assert len(done) <= 5

    ship(ferry.store, after.store, work)

    assert sorted(done) == sorted([*ids, *others])
    run_and_prune(after)
    assert after.jobs() == []


# -- children and their parents ------------------------------------------------------------------------


@pytest.mark.parametrize("page", [1, 500])
def test_a_child_waits_for_a_parent_in_a_queue_that_is_made_meanwhile(
    ferry: Ferry, ground: Ground, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    monkeypatch.setattr(mover, "_PAGE", page)
    after = ferry_on(ground.open(SHARED[0]), ground.clock)
    first = ferry.add()
    family: list[JobId] = []

    def produce(what: str, *_: object) -> None:
        if what == "waiting for running jobs" and not family:
            # The queues that are to be paused are known by now.
            parent = ferry.add(queue="new")
            child = ferry.add(after=(parent,))
            family.extend([parent, child, ferry.add(after=(child,))])
            ferry.succeed(claim)

    claim = ferry.take()
    moved = ship(ferry.store, after.store, produce)

    assert moved.jobs.total() == 3
    assert after.drain() == family
    assert ferry.state(first) is State.SUCCEEDED


def test_an_ordered_key_keeps_its_order_over_a_queue_that_is_made_meanwhile(
    ferry: Ferry, ground: Ground
) -> None:
    after = ferry_on(ground.open(SHARED[0]), ground.clock)
    ferry.add()
    claim = ferry.take()
    line: list[JobId] = []

    def produce(what: str, *_: object) -> None:
        if what == "waiting for running jobs" and not line:
            line.extend(ferry.add(queue=queue, key="k", ordered=True) for queue in ("new", "default"))
            ferry.succeed(claim)
        if what == "copied":
            after.drain()

    ship(ferry.store, after.store, produce)

    ended = sorted(after.jobs(), key=lambda job: job.seq)
    assert [job.id for job in ended] == line


# -- pauses --------------------------------------------------------------------------------------------


def paused_in(store: Store) -> set[str]:
    return {queue.settings.name for queue in store.runner().run(store.queues()) if queue.paused}


def test_a_second_move_does_not_pause_what_was_resumed_in_the_second_store(
    ferry: Ferry, ground: Ground
) -> None:
    there = ground.open(SHARED[0])
    ferry.run(ferry.store.pause(["default"], True))
    ferry.add()
    ship(ferry.store, there)
    before = paused_in(there)
    there.runner().run(there.pause(["default"], False))
    late = ferry.add()

    ship(ferry.store, there)

    assert before == {"default"}
    assert paused_in(there) == set()
    assert paused_in(ferry.store) == {"default"}
    assert late in jobs_of(there)


# -- payloads that cannot be brought along -------------------------------------------------------------


def stowed(ferry: Ferry, settings: BlobSettings) -> tuple[JobId, Path]:
    """A job with large arguments, and where these lie."""
    (job,) = perform(
        ferry.runner,
        Payloads(settings, lambda: ferry.store).stow_args([new_job(args=bytes(range(256)) * 40)]),
    )
    ferry.enqueue(job)
    reference = read_reference(job.args)
    assert reference is not None
    assert settings.url is not None
    return job.id, Path(settings.url.removeprefix("file://")) / reference.name


def test_a_payload_that_is_gone_does_not_stop_a_move(ferry: Ferry, ground: Ground, tmp_path: Path) -> None:
    there = ground.open(SHARED[0])
    settings = BlobSettings(url=f"file://{tmp_path}/blobs", above=1_024)
    job, path = stowed(ferry, settings)
    path.unlink()

    moved = Mover(ferry.store, there, settings, history=False, watch=nothing).run()

    assert moved.lost_payloads == 1
    assert job in jobs_of(there)


@pytest.mark.parametrize("why", ["damaged", "too large"])
def test_a_payload_that_is_there_and_cannot_be_had_stops_a_move(
    ferry: Ferry, ground: Ground, tmp_path: Path, why: str
) -> None:
    there = ground.open(SHARED[0])
    settings = BlobSettings(url=f"file://{tmp_path}/blobs", above=1_024)
    told = settings if why == "damaged" else BlobSettings(url=settings.url, above=1_024, max_payload=2_048)
    job, path = stowed(ferry, settings)
    whole = path.read_bytes()
    if why == "damaged":
        path.write_bytes(b"x" * len(whole))

    with pytest.raises(PayloadError, match=f"job {job} cannot be brought along"):
        Mover(ferry.store, there, told, history=False, watch=nothing).run()
    before = ferry.has(job)
    path.write_bytes(whole)
    ferry.run(ferry.store.unlock(LOCK, _owner(ferry)))
    moved = Mover(ferry.store, there, settings, history=False, watch=nothing).run()

    assert before
    assert moved.lost_payloads == 0
    assert job in jobs_of(there)
