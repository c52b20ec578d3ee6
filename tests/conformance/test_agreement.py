"""Agreement: whatever is done to two stores, they tell the same afterwards, to the last detail.

The state machine holds each store to a model of what matters most. Here the first store of the register is the
model of the others, for all that can be read: fair queues, bounds, histories, reasons, statistics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest

from ferryman.clock import ManualClock
from ferryman.errors import FerrymanError
from ferryman.io.operation import Operation
from ferryman.job import (
    FINISHED,
    Claim,
    ErrorInfo,
    JobId,
    NewJob,
    Outcome,
    OutcomeKind,
    State,
    UniqueKey,
    WorkerId,
)
from ferryman.store.port import Store
from ferryman.store.records import Filter, JobNote, QueueSettings, Retention, Take, WorkerStatus

from .driver import ALL, LEASE, worker_info
from .stores import STORES, Candidate

Verb = Callable[[Store], Operation[Any]]

STEPS = 150
SETTINGS = [
    QueueSettings(name="fair", fair=True, weights={"acme": 3.0, "zoo": 0.5}),
    QueueSettings(name="small", max_size=4, overflow="drop_oldest"),
    QueueSettings(name="strict", max_size=5),
]
QUEUES = ["plain", "fair", "fair", "small", "strict"]
PLAN = [Take(queue, priority, 3) for priority in (1, 0) for queue in dict.fromkeys(QUEUES)]


class Pair:
    """Two stores under one clock."""

    def __init__(self, one: Store, other: Store, clock: ManualClock) -> None:
        self.stores = (one, other)
        self.clock = clock

    def do(self, verb: Verb) -> Any:
        """Do it to both; their answer, or the kind of error that both raised."""
        one, other = (self._answer(store, verb) for store in self.stores)
        parted = list(differences(plain(one), plain(other)))
        assert not parted, "\n".join(parted)
        return one

    def _answer(self, store: Store, verb: Verb) -> Any:
        try:
            return store.runner().run(verb(store))
        except FerrymanError as error:
            return type(error).__name__

    def compare(self, *, histories: bool) -> list[JobId]:
        """Read everything, histories too if they are asked for; all ids, the oldest first."""
        ids = [job.id for job in self.do(lambda store: store.find(Filter(), ALL))][::-1]
        self.do(lambda store: store.get(ids))
        for job in ids if histories else ():
            self.do(lambda store, job=job: store.history(job))  # type: ignore[misc]
            self.do(lambda store, job=job: store.parent_results(job, 0, 5))  # type: ignore[misc]
        self.do(lambda store: store.lanes())
        self.do(lambda store: store.queues())
        self.do(lambda store: store.workers())
        self.do(lambda store: store.causes(Filter()))
        self.do(lambda store: store.stats(0, 2**60))
        return ids


def plain(value: Any) -> Any:
    """An answer without what no contract settles: gaps in `seq`, zeros and lanes of nothing but zeros, the order of
    lanes, the wording of a store's own reasons, old reasons of jobs that run again, when a finished job had
    been due, errors of parents that have not died."""
    return _plain(msgspec.to_builtins(value, builtin_types=(bytes,), str_keys=True))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _plain(item) for key, item in value.items() if key not in ("seq", "last") and item != 0}
        if str(kept.get("reason")).startswith(("parent", "dropped")):
            kept["reason"] = "the store's own"
        if kept.get("state") in (State.READY, State.RUNNING, State.EXPIRED):
            kept.pop("reason", None)
        if kept.get("state") in FINISHED:
            kept.pop("run_at", None)
        if "result" in kept and kept.get("state") != State.DEAD:
            kept.pop("error", None)
        return kept
    if isinstance(value, list | tuple):
        items = [
            item for item in map(_plain, value) if not (isinstance(item, dict) and item.get("counts") == {})
        ]
        if items and isinstance(items[0], dict) and "depth" in items[0]:
            items.sort(key=lambda lane: (lane["queue"], lane.get("priority", 0)))
        return items
    return value


def differences(one: Any, other: Any, path: str = "answer") -> Iterator[str]:
    """Where two answers part, one line each."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in sorted({*one, *other}):
            yield from differences(one.get(key), other.get(key), f"{path}.{key}")
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for place, (left, right) in enumerate(zip(one, other, strict=True)):
            yield from differences(left, right, f"{path}[{place}]")
    elif one != other:
        yield f"{path}: {one!r} in the one, {other!r} in the other"


class Walk:
    """Something at random, again and again."""

    def __init__(self, pair: Pair, random: Random) -> None:
        self.pair, self.random = pair, random
        self.ids: list[JobId] = []
        self.born = 0
        self.signed_on = 0
        self.held: list[tuple[WorkerId, Claim]] = []
        self.worker = self._sign_on()
        pair.do(lambda store: store.declare(SETTINGS))

    def _sign_on(self) -> WorkerId:
        self.signed_on += 1
        worker = WorkerId(f"w{self.signed_on}")
        self.pair.do(lambda store: store.register(worker_info(worker), LEASE))
        return worker

    def step(self) -> None:
        verbs = [self._enqueue] * 4 + [self._claim] * 4 + [self._settle] * 5 + [self._advance] * 2
        self.random.choice(
            [*verbs, self._annotate, self._steer, self._steer, self._beat, self._lose, self._prune]
        )()

    def _enqueue(self) -> None:
        jobs = [self._new() for _ in range(self.random.choice([1, 1, 2, 3]))]
        self.pair.do(lambda store: store.enqueue(jobs))

    def _new(self) -> NewJob:
        self.born += 1
        pick = self.random.choice
        queue = pick(QUEUES)
        # Whether a job may take the key of one that its own batch pushes out is not settled.
        key = None if queue == "small" else pick([None, None, "k", "o"])
        parents = tuple(self.random.sample(self.ids, min(len(self.ids), pick([0, 0, 1, 2]))))
        return NewJob(
            id=JobId(f"{self.born:032x}"),
            task=pick(["read", "write"]),
            args=str(self.born).encode(),
            queue=queue,
            priority=pick([0, 0, 1]),
            max_attempts=pick([1, 2, 4]),
            delay=pick([0, 0, 0, 1_500]),
            # Of a parent and a child that are late at the same moment, either may be the first to end.
            ttl=None if parents else pick([None, None, None, 4_250]),
            key=key,
            room=2 if key == "k" else 1,
            ordered=key == "o",
            unique=None
            if queue == "small"
            else pick([None, None, UniqueKey("u"), UniqueKey("p", period=3_250)]),
            after=parents,
            on_parent_failure=pick(["cancel", "continue", "hold"]),
            tenant=pick([None, "acme", "zoo", "other"]),
            tags=tuple(self.random.sample(["red", "blue"], pick([0, 0, 1, 2]))),
        )

    def _claim(self) -> None:
        limit = self.random.randint(1, 5)
        claimed = self.pair.do(lambda store: store.claim(self.worker, PLAN, limit))
        self.held += [(self.worker, claim) for claim in claimed.jobs]

    def _settle(self) -> None:
        mine = [claim for worker, claim in self.held if worker == self.worker]
        some = mine[: self.random.randint(0, 4)] + self.random.sample(mine, min(1, len(mine)))
        outcomes = [self._outcome(claim) for claim in some]
        self.pair.do(lambda store: store.settle(self.worker, outcomes))
        self.held = [(w, claim) for w, claim in self.held if claim not in some]

    def _outcome(self, claim: Claim) -> Outcome:
        pick = self.random.choice
        kind = pick([*OutcomeKind, OutcomeKind.SUCCEEDED, OutcomeKind.RETRY])
        delay = pick([0, 500, 2_000]) or 500 * (kind is OutcomeKind.SNOOZED)
        error = ErrorInfo(pick(["ValueError", "OSError"]), pick(["", "boom", "two\nlines"]), "trace")
        failed = kind in (OutcomeKind.RETRY, OutcomeKind.DEAD, OutcomeKind.CRASHED)
        return Outcome(
            claim.id,
            claim.lease,
            kind,
            ran_us=pick([0, 700_000, 3_000_000]),
            result=b"result" if kind is OutcomeKind.SUCCEEDED else None,
            delay=delay,
            error=error if failed else None,
            reason="because" if kind in (OutcomeKind.SNOOZED, OutcomeKind.CANCELLED) else None,
        )

    def _annotate(self) -> None:
        notes = [JobNote(claim.id, claim.lease, 0.5, f"at {self.born}") for _, claim in self.held[:3]]
        self.pair.do(lambda store: store.annotate(self.worker, notes))

    def _advance(self) -> None:
        self.pair.clock.advance(self.random.choice([0.5, 1, 2, 20]))

    def _steer(self) -> None:
        limit = self.random.choice([1, 2])
        which = self.random.choice(
            [
                Filter(queues=(self.random.choice(QUEUES),)),
                Filter(tags=("red",), states=(self.random.choice(list(State)),)),
                Filter(tasks=("read",), causes=("ValueError: boom", "OSError")),
                Filter(since=self.pair.clock.now() - 3_000),
            ]
        )
        queue, paused = self.random.choice(QUEUES), self.random.random() < 0.3
        verbs: list[Verb] = [
            # Whether a child that was taken along is counted is not settled: one at a time.
            lambda store: store.cancel(which, 1, "enough"),
            lambda store: store.replay(which, limit),
            lambda store: store.reprioritise(which, self.born % 2, limit),
            lambda store: store.delete(which, 1),
            lambda store: store.pause([queue], paused),
        ]
        self.pair.do(self.random.choice(verbs))

    def _beat(self) -> None:
        self.pair.do(lambda store: store.heartbeat(self.worker, WorkerStatus(done=self.born), LEASE))

    def _lose(self) -> None:
        if self.random.random() < 0.5:
            self.pair.do(lambda store: store.rescue([self.worker]))
        else:
            self.pair.do(lambda store: store.leave(self.worker))
        self.worker = self._sign_on()

    def _prune(self) -> None:
        retention = Retention(succeeded=30_000, dead=40_000, other=20_000, dead_count=5)
        self.pair.do(lambda store: store.prune(retention, ALL))


@pytest.fixture(params=STORES[1:], ids=lambda candidate: candidate.name)
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Pair]:
    clock = ManualClock()
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    other: Candidate = request.param
    one, two = STORES[0].open(folders[0], clock), other.open(folders[1], clock)
    yield Pair(one, two, clock)
    one.close()
    two.close()
    other.clear(folders[1])


@pytest.mark.parametrize("seed", range(6))
def test_two_stores_tell_the_same_after_the_same_story(pair: Pair, seed: int) -> None:
    walk = Walk(pair, Random(seed))

    for number in range(1, STEPS + 1):
        walk.step()
        # Histories grow, so that what parts two of them is there to be seen some steps later.
        walk.ids = pair.compare(histories=number % 10 == 0)

    assert walk.born > STEPS / 5
