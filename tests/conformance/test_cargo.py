"""Cargo: what one store packs, any other can unpack, and nothing is lost or changed on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ferryman.clock import ManualClock
from ferryman.errors import UnknownParent
from ferryman.job import (
    FINISHED,
    PENDING,
    Attempt,
    ErrorInfo,
    Job,
    Note,
    OutcomeKind,
    State,
    UniqueKey,
    WorkerId,
    new_id,
)
from ferryman.store.cargo import Parcel
from ferryman.store.port import Store
from ferryman.store.records import Filter, JobNote, QueueSettings

from .driver import ALL, BOOM, W2, Ferry, check_counts, new_job
from .stores import STORES, Candidate
from .test_agreement import SETTINGS, Pair, Verb, Walk, differences, plain

STEPS = 120


def pack_all(store: Store, *states: State, page: int = 7) -> list[Parcel]:
    """All parcels, page by page."""
    parcels: list[Parcel] = []
    while True:
        after = parcels[-1].seq if parcels else 0
        found = store.runner().run(store.pack(states, after, page))
        if not found:
            return parcels
        parcels += found


def unpack_all(store: Store, parcels: list[Parcel], page: int = 5) -> list[bool]:
    return [
        is_new
        for start in range(0, len(parcels), page)
        for is_new in store.runner().run(store.unpack(parcels[start : start + page]))
    ]


def facts(parcel: Parcel) -> Any:
    """A parcel as `plain` tells it, without the period of a unique key that is over: not every store knows it."""
    told = msgspec.structs.asdict(parcel)
    told["job"] = msgspec.structs.asdict(parcel.job)
    told["job"]["room"] = parcel.job.room if parcel.job.key else 1
    if parcel.job.unique is not None and parcel.unique_until is None:
        told["job"]["unique"] = (
            parcel.job.unique.key,
            parcel.job.unique.period is None,
            parcel.job.unique.until,
        )
    if not parcel.job.after:
        told["job"]["on_parent_failure"] = "cancel"
    told["waits_for"] = sorted(parcel.waits_for)
    # Of a job that has finished, it is of no interest.
    if parcel.state in FINISHED:
        told["holds"] = False
    return plain(told)


class Alone(Pair):
    """One store that a walk is done on."""

    def __init__(self, store: Store, clock: ManualClock) -> None:
        super().__init__(store, store, clock)

    def do(self, verb: Verb) -> Any:
        return self._answer(self.stores[0], verb)


@pytest.fixture
def ground(tmp_path: Path) -> Iterator[Ground]:
    ground = Ground(tmp_path)
    yield ground
    ground.close()


class Ground:
    """Any number of stores under one clock."""

    def __init__(self, folder: Path) -> None:
        self.clock = ManualClock()
        self._folder = folder
        self._open: list[tuple[Candidate, Path, Store]] = []

    def open(self, candidate: Candidate) -> Store:
        folder = self._folder / str(len(self._open))
        folder.mkdir()
        store = candidate.open(folder, self.clock)
        self._open.append((candidate, folder, store))
        return store

    def close(self) -> None:
        for candidate, folder, store in self._open:
            store.close()
            candidate.clear(folder)


def tell(pair: Pair, seed: int) -> Walk:
    walk = Walk(pair, Random(seed))
    for _ in range(STEPS):
        walk.step()
        walk.ids = [job.id for job in pair.do(lambda store: store.find(Filter(), ALL))][::-1]
    return walk


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("other", STORES[1:], ids=lambda candidate: candidate.name)
def test_two_stores_pack_the_same_and_make_the_same_of_it(
    ground: Ground, other: Candidate, seed: int
) -> None:
    pair = Pair(ground.open(STORES[0]), ground.open(other), ground.clock)
    tell(pair, seed)
    targets = Pair(ground.open(STORES[0]), ground.open(other), ground.clock)
    targets.do(lambda store: store.declare(SETTINGS))

    one, two = (pack_all(store) for store in pair.stores)
    unpacked = [unpack_all(store, one) for store in targets.stores]

    assert len(one) > STEPS / 6
    parted = list(differences([facts(parcel) for parcel in one], [facts(parcel) for parcel in two]))
    assert not parted, "\n".join(parted)
    assert unpacked == [[True] * len(one)] * 2
    targets.compare(histories=True)
    one_again, two_again = ([facts(parcel) for parcel in pack_all(store)] for store in targets.stores)
    parted = list(differences(one_again, two_again))
    assert not parted, "\n".join(parted)
    for store in targets.stores:
        check_counts(store)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("target", STORES, ids=lambda candidate: f"to-{candidate.name}")
@pytest.mark.parametrize("source", STORES, ids=lambda candidate: f"from-{candidate.name}")
def test_all_that_is_known_of_a_job_arrives(
    ground: Ground, source: Candidate, target: Candidate, seed: int
) -> None:
    here, there = ground.open(source), ground.open(target)
    tell(Alone(here, ground.clock), 100 + seed)
    there.runner().run(there.declare(SETTINGS))

    unpack_all(there, pack_all(here))

    ids = [job.id for job in here.runner().run(here.find(Filter(), ALL))][::-1]
    assert [job.id for job in there.runner().run(there.find(Filter(), ALL))][::-1] == ids
    for id_ in ids:
        before = here.runner().run(here.history(id_))
        after = there.runner().run(there.history(id_))
        assert before is not None
        assert after is not None
        expected, found = as_arrived(before.job, after.job.state), plain(after.job)
        parted = list(differences(expected, found, f"job {id_}"))
        parted += differences(plain(before.attempts), plain(after.attempts), f"attempts of {id_}")
        parted += differences(plain(before.notes), plain(after.notes), f"notes of {id_}")
        parted += differences(plain(before.parents), plain(after.parents), f"parents of {id_}")
        if after.job.state is State.CANCELLED and before.job.state is State.WAITING:
            parted = []  # Its parent had been deleted.
        assert not parted, "\n".join(parted)
    check_counts(there)


def as_arrived(job: Job, arrived: State) -> Any:
    """What a store makes of a job that another one had like this."""
    expected = plain(job)
    lanes = {State.READY, State.PARKED}
    if job.state is State.RUNNING:
        # Not even its place of the key is its own any more.
        assert arrived in lanes
        expected["attempt"] = job.attempt - 1
        expected.pop("worker", None)
        expected.pop("started_at", None)
    if job.state is State.RUNNING or (job.state is not arrived and {job.state, arrived} <= lanes):
        expected["state"] = arrived
    if job.state is State.SCHEDULED and arrived in lanes:
        expected["state"] = arrived  # It was due.
    if arrived is State.READY:
        expected.pop("reason", None)
    return {name: value for name, value in expected.items() if value != 0}


def test_unpacking_again_changes_nothing(ferry: Ferry) -> None:
    ids = ferry.add_many(3)
    parcels = pack_all(ferry.store)
    ferry.delete(*ids)
    first = ferry.run(ferry.store.unpack(parcels))
    ferry.cancel(ids[0])

    second = ferry.run(ferry.store.unpack([*parcels, *parcels]))

    assert first == [True] * 3
    assert second == [False] * 6
    assert ferry.states(ids) == [State.CANCELLED, State.READY, State.READY]


def test_a_parcel_that_is_there_twice_is_unpacked_once(ferry: Ferry) -> None:
    job = ferry.add(key="k")
    (parcel,) = pack_all(ferry.store)
    ferry.delete(job)

    answers = ferry.run(ferry.store.unpack([parcel, parcel]))

    assert answers == [True, False]
    assert ferry.drain() == [job]


def test_pages_come_in_order_of_arrival_and_only_of_the_states_asked_for(ferry: Ferry) -> None:
    ready = ferry.add_many(5)
    scheduled = ferry.add_many(3, delay=1_000)
    ferry.finish_next()

    found = pack_all(ferry.store, State.SCHEDULED, State.READY, page=2)

    assert [parcel.job.id for parcel in found] == [*ready[1:], *scheduled]


def test_jobs_are_packed_by_their_ids(ferry: Ferry) -> None:
    first, _, third = ferry.add_many(3)

    found = ferry.run(ferry.store.pack((), 0, ALL, [third, first, new_id()]))

    assert [parcel.job.id for parcel in found] == [first, third]


def test_pages_of_large_jobs_are_short(ferry: Ferry) -> None:
    ids = [ferry.add(args=bytes(3_000_000)) for _ in range(5)]

    page = ferry.run(ferry.store.pack((), 0, 100))
    all_of_them = pack_all(ferry.store, page=100)

    assert len(page) < 5
    assert [parcel.job.id for parcel in all_of_them] == ids


def test_pages_of_jobs_with_long_histories_are_short(ferry: Ferry) -> None:
    error = ErrorInfo("ValueError", "boom", "x" * 16_000)
    failed = [
        Attempt(
            number=1, kind=OutcomeKind.RETRY, worker=WorkerId("w1"), started_at=1, finished_at=1, error=error
        )
        for _ in range(150)
    ]
    notes = [Note(at=1, attempt=1, text="y" * 4_000) for _ in range(600)]
    ids = ferry.add_many(8)
    parcels = pack_all(ferry.store)
    ferry.delete(*ids)
    for number, parcel in enumerate(parcels):
        told = {"notes": tuple(notes)} if number % 2 else {"attempts": tuple(failed)}
        ferry.run(ferry.store.unpack([msgspec.structs.replace(parcel, **told)]))

    page = ferry.run(ferry.store.pack((), 0, 100))
    all_of_them = pack_all(ferry.store, page=100)

    assert len(page) == 4
    assert [parcel.job.id for parcel in all_of_them] == ids
    assert [len(parcel.attempts) + len(parcel.notes) for parcel in all_of_them] == [150, 600] * 4


def test_a_running_job_arrives_ready_with_its_attempt_given_back(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=1)
    ferry.take()
    (parcel,) = pack_all(ferry.store)
    ferry.run(ferry.store.rescue([WorkerId("w1")]))
    ferry.delete(job)
    ferry.register(W2)

    ferry.run(ferry.store.unpack([parcel]))

    claim = ferry.take(W2)
    assert (claim.id, claim.attempt) == (job, 1)


def test_spent_attempts_and_deaths_are_kept(ferry: Ferry) -> None:
    job = ferry.add(max_attempts=3)
    claim = ferry.take()
    ferry.run(
        ferry.store.annotate(
            WorkerId("w1"), [JobNote(job, claim.lease, 0.25, "half of it"), JobNote(job, claim.lease, 0.5)]
        )
    )
    ferry.settle(claim, OutcomeKind.CRASHED, error=BOOM)
    before = ferry.history(job)
    parcels = pack_all(ferry.store)
    ferry.delete(job)

    ferry.run(ferry.store.unpack(parcels))

    after = ferry.history(job)
    assert plain(after.attempts) == plain(before.attempts)
    assert plain(after.notes) == plain(before.notes)
    again = ferry.take()
    assert (again.attempt, again.deaths) == (2, 1)


def test_an_ordered_job_that_waits_for_its_retry_goes_on_holding_up_the_others(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k", ordered=True, max_attempts=2)
    ferry.settle(ferry.take(), OutcomeKind.RETRY, delay=5_000)
    parcels = pack_all(ferry.store)
    ferry.run(ferry.store.forget([second, first]))

    ferry.run(ferry.store.unpack(parcels))

    assert ferry.states([first, second]) == [State.SCHEDULED, State.PARKED]
    ferry.clock.advance(6)
    assert ferry.drain() == [first, second]


def test_a_child_goes_on_waiting_for_those_of_its_parents_that_have_not_finished(ferry: Ferry) -> None:
    done, todo = ferry.add_many(2)
    child = ferry.add(after=(done, todo))
    ferry.finish_next()
    parcels = pack_all(ferry.store)
    ferry.run(ferry.store.forget([child, todo, done]))

    ferry.run(ferry.store.unpack(parcels))

    assert ferry.states([done, todo, child]) == [State.SUCCEEDED, State.READY, State.WAITING]
    assert ferry.drain() == [todo, child]
    assert [parent.id for parent in ferry.parents_of(child)] == [done, todo]


def test_a_child_whose_parent_has_finished_here_meanwhile_does_as_it_was_told(ferry: Ferry) -> None:
    parents = ferry.add_many(3)
    told = ["cancel", "continue", "hold"]
    children = [ferry.add(after=(p,), on_parent_failure=how) for p, how in zip(parents, told, strict=True)]
    parcels = pack_all(ferry.store)
    ferry.run(ferry.store.forget(children))
    for _ in parents:
        ferry.finish_next(OutcomeKind.DEAD)

    ferry.run(ferry.store.unpack(parcels))

    assert ferry.states(children) == [State.CANCELLED, State.READY, State.WAITING]
    ferry.replay(parents[2])
    assert set(ferry.drain()) == {children[1], parents[2], children[2]}


@pytest.mark.parametrize("told", ["cancel", "continue", "hold"])
def test_a_grandchild_that_arrives_with_a_child_whose_parent_is_gone_is_told_once(
    ferry: Ferry, told: str
) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,), key="k")
    grandchild = ferry.add(after=(child,), key="k", on_parent_failure=told)
    parcels = pack_all(ferry.store, State.WAITING)
    ferry.delete(grandchild)
    ferry.delete(child)
    ferry.delete(parent)
    other = ferry.add(key="k")

    unpack_all(ferry.store, parcels)

    ended = {"cancel": State.CANCELLED, "continue": State.PARKED, "hold": State.WAITING}[told]
    assert ferry.states([child, grandchild]) == [State.CANCELLED, ended]
    assert ferry.drain() == ([other, grandchild] if told == "continue" else [other])


def test_a_unique_key_arrives_with_its_job(ferry: Ferry) -> None:
    job = ferry.add(unique=UniqueKey("u"))
    period = ferry.add(unique=UniqueKey("p", period=10_000))
    parcels = pack_all(ferry.store)
    ferry.run(ferry.store.forget([job, period]))

    ferry.run(ferry.store.unpack(parcels))

    again = ferry.enqueue(new_job(unique=UniqueKey("u")), new_job(unique=UniqueKey("p", period=1)))
    assert [answer.id for answer in again] == [job, period]
    ferry.drain()
    assert not ferry.enqueue(new_job(unique=UniqueKey("u")))[0].duplicate
    ferry.clock.advance(11)
    assert not ferry.enqueue(new_job(unique=UniqueKey("p", period=1)))[0].duplicate


def test_a_job_whose_unique_key_is_taken_meanwhile_arrives_all_the_same(ferry: Ferry) -> None:
    job = ferry.add(unique=UniqueKey("u"))
    parcels = pack_all(ferry.store)
    ferry.run(ferry.store.forget([job]))
    other = ferry.add(unique=UniqueKey("u"))

    answers = ferry.run(ferry.store.unpack(parcels))

    assert answers == [True]
    (claim,) = ferry.claim(1)
    assert claim.id == other
    assert ferry.enqueue(new_job(unique=UniqueKey("u")))[0].id == other
    ferry.succeed(claim)
    assert ferry.drain() == [job]


def test_bounds_are_not_looked_at_by_what_arrives(ferry: Ferry) -> None:
    ids = ferry.add_many(3, queue="small")
    parcels = pack_all(ferry.store)
    ferry.delete(*ids)
    ferry.run(ferry.store.declare([QueueSettings(name="small", max_size=1)]))

    answers = ferry.run(ferry.store.unpack(parcels))

    assert answers == [True] * 3


def test_fair_queues_share_what_arrives_among_tenants(ferry: Ferry) -> None:
    many = ferry.add_many(4, queue="fair", tenant="many")
    one = ferry.add(queue="fair", tenant="one")
    parcels = pack_all(ferry.store)
    ferry.run(ferry.store.forget([*many, one]))
    ferry.run(ferry.store.declare([QueueSettings(name="fair", fair=True)]))

    ferry.run(ferry.store.unpack(parcels))

    assert ferry.drain(1).index(one) == 1


def test_results_that_are_kept_for_a_time_end_in_their_new_store_too(ferry: Ferry) -> None:
    job = ferry.add()
    ferry.settle(ferry.take(), OutcomeKind.SUCCEEDED, result=b"done", keep_result=5_000)
    parcels = pack_all(ferry.store)
    ferry.delete(job)
    ferry.run(ferry.store.unpack(parcels))

    before = ferry.job(job)
    ferry.clock.advance(6)

    assert before.result == b"done"
    assert ferry.job(job).result is None
    assert pack_all(ferry.store)[0].result is None


def test_forgetting_tells_no_child(ferry: Ferry) -> None:
    parent = ferry.add()
    child = ferry.add(after=(parent,))

    forgotten = ferry.run(ferry.store.forget([parent, new_id()]))

    assert forgotten == 1
    assert not ferry.has(parent)
    assert ferry.state(child) is State.WAITING
    (parcel,) = pack_all(ferry.store)
    assert (parcel.job.after, parcel.waits_for) == ((parent,), (parent,))


def test_forgetting_gives_back_what_a_job_held(ferry: Ferry) -> None:
    first, second = ferry.add_many(2, key="k")
    unique = ferry.add(unique=UniqueKey("u", period=60_000))

    ferry.run(ferry.store.forget([first, unique]))

    assert ferry.state(second) is State.READY
    assert not ferry.enqueue(new_job(unique=UniqueKey("u")))[0].duplicate


def test_only_jobs_in_the_states_that_are_named_are_forgotten(ferry: Ferry) -> None:
    dead = ferry.add()
    ferry.finish_next(OutcomeKind.DEAD)
    ready, cancelled = ferry.add_many(2)
    ferry.cancel(cancelled)

    forgotten = ferry.run(ferry.store.forget([ready, cancelled, dead], [State.READY, State.DEAD]))

    assert forgotten == 2
    assert [ferry.has(job) for job in (ready, cancelled, dead)] == [False, True, False]


def test_what_runs_is_not_forgotten(ferry: Ferry) -> None:
    running, dead = ferry.add_many(2)
    claims = ferry.claim(2)
    ferry.settle(claims[1], OutcomeKind.DEAD)

    forgotten = ferry.run(ferry.store.forget([running, dead]))

    assert forgotten == 1
    assert ferry.has(running)
    ferry.succeed(claims[0])


def test_a_batch_of_parcels_is_unpacked_wholly_or_not_at_all(ferry: Ferry) -> None:
    ids = ferry.add_many(2, key="k")
    parcels = pack_all(ferry.store)
    ferry.run(ferry.store.forget(ids))

    with pytest.raises(UnknownParent):
        ferry.runner.run_all([ferry.store.unpack(parcels), ferry.store.enqueue([new_job(after=(new_id(),))])])

    assert ferry.states(ids) == [None, None]


def test_nothing_is_packed_of_an_empty_store_and_nothing_is_made_of_no_parcels(ferry: Ferry) -> None:
    assert pack_all(ferry.store) == []
    assert ferry.run(ferry.store.unpack([])) == []
    assert ferry.run(ferry.store.forget([])) == 0
    assert not PENDING & {job.state for job in ferry.jobs()}
