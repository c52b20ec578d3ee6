"""Transitions: whatever is done, a job changes state only as the table says."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from ferryman.io.operation import Operation
from ferryman.job import FINISHED, TRANSITIONS, JobId, OutcomeKind, State, WorkerId
from ferryman.store.records import Filter

from .driver import ALL, LEASE, W1, Ferry, may_become


class Watch:
    """Looks at every job after every step, and remembers what became of what."""

    def __init__(self, ferry: Ferry) -> None:
        self.ferry = ferry
        self.states: dict[JobId, State] = {}
        self.seen: set[tuple[State | None, State]] = set()

    def look(self) -> None:
        states = {job.id: job.state for job in self.ferry.jobs()}
        for job, after in states.items():
            before = self.states.get(job)
            if before == after:
                continue
            assert may_become(before, after), f"{job} was {before!r} and became {after!r}"
            self.seen.add((before, after))
        for job in self.states.keys() - states.keys():
            assert self.states[job] is not State.RUNNING, f"{job} was deleted while it ran"
        self.states = states

    def run(self, operation: Operation[int]) -> None:
        self.ferry.run(operation)
        self.look()


def _walk(watch: Watch, random: Random, steps: int) -> None:
    """Do something at random, so many times."""
    ferry, store = watch.ferry, watch.ferry.store
    worker, number = W1, 1
    verbs: list[Callable[[], object]] = [
        lambda: _enqueue(ferry, random),
        lambda: _enqueue(ferry, random),
        lambda: _settle_some(watch, random, worker),
        lambda: _settle_some(watch, random, worker),
        lambda: ferry.clock.advance(random.choice([0.5, 1, 3])),
        lambda: watch.run(store.cancel(Filter(states=(random.choice(list(State)),)), 2)),
        lambda: watch.run(store.replay(Filter(states=(random.choice(sorted(FINISHED)),)), 2)),
        lambda: watch.run(store.reprioritise(Filter(), random.randint(-1, 1), 2)),
        lambda: watch.run(store.delete(Filter(states=(random.choice(list(State)),)), 1)),
    ]
    for _ in range(steps):
        random.choice(verbs)()
        watch.look()
        if random.random() < 0.05:
            ferry.clock.advance(LEASE / 1000 + 1)
            ferry.run(store.rescue())
            watch.look()
            number += 1
            worker = ferry.register(WorkerId(f"w{number}"))


def _enqueue(ferry: Ferry, random: Random) -> None:
    known = [job.id for job in ferry.jobs()]
    ferry.add(
        key=random.choice([None, "k"]),
        delay=random.choice([0, 0, 2_000]),
        ttl=random.choice([None, None, 4_500]),
        max_attempts=random.randint(1, 3),
        after=tuple(random.sample(known, 1)) if known and random.random() < 0.4 else (),
        on_parent_failure=random.choice(["cancel", "continue", "hold"]),
    )


def _settle_some(watch: Watch, random: Random, worker: WorkerId) -> None:
    ferry = watch.ferry
    claims = ferry.claim(random.randint(1, 3), worker=worker)
    watch.look()
    for claim in claims:
        if random.random() < 0.9:
            kind = random.choice(list(OutcomeKind))
            ferry.settle(claim, kind, worker=worker, delay=random.choice([0, 1_000]))
            watch.look()


@pytest.mark.parametrize("seed", range(3))
def test_states_change_only_as_the_table_says(ferry: Ferry, seed: int) -> None:
    watch = Watch(ferry)

    _walk(watch, Random(seed), steps=120)

    assert len(watch.seen) > 10


def test_every_change_that_the_table_allows_can_be_made(ferry: Ferry) -> None:
    watch = Watch(ferry)
    for story in STORIES:
        story(ferry, watch.look)
        ferry.run(ferry.store.delete(Filter(), ALL))
        watch.look()

    allowed = {(before, after) for before, states in TRANSITIONS.items() for after in states}

    assert allowed - watch.seen == set()


Look = Callable[[], None]


def _a_child_in_each_way(ferry: Ferry, look: Look) -> None:
    parent, blocker = ferry.add(priority=5), ferry.add(key="k")
    ferry.add(after=(parent,))
    ferry.add(after=(parent,), delay=1_000)
    ferry.add(after=(parent,), key="k")
    ferry.cancel(ferry.add(after=(parent, blocker)))
    look()
    short = ferry.add(after=(blocker,), ttl=100)
    cancelled = ferry.add(after=(blocker,))
    look()
    claim = ferry.take()
    look()
    ferry.succeed(claim)
    look()
    ferry.cancel(cancelled)
    ferry.clock.advance(2)
    ferry.claim(plan=[])
    look()
    assert ferry.state(short) is State.EXPIRED


def _schedules(ferry: Ferry, look: Look) -> None:
    ferry.add(key="s")
    ferry.add(delay=1_000)
    ferry.add(delay=1_000, key="s")
    late, cancelled = ferry.add(delay=9_000, ttl=100), ferry.add(delay=9_000)
    look()
    ferry.cancel(cancelled)
    ferry.clock.advance(2)
    ferry.claim(plan=[])
    look()
    assert ferry.state(late) is State.EXPIRED


def _parks(ferry: Ferry, look: Look) -> None:
    first = ferry.add(key="p")
    ferry.add(key="p")
    ferry.add(key="p", ttl=100)
    cancelled = ferry.add(key="p")
    look()
    ferry.cancel(cancelled)
    ferry.clock.advance(1)
    ferry.claim(plan=[])
    look()
    ferry.cancel(first)
    look()


def _ready_ones(ferry: Ferry, look: Look) -> None:
    ferry.cancel(ferry.add())
    expiring, cancelled = ferry.add(ttl=100), ferry.add()
    look()
    ferry.cancel(cancelled)
    ferry.clock.advance(1)
    ferry.claim(plan=[])
    look()
    assert ferry.state(expiring) is State.EXPIRED


def _runs(ferry: Ferry, look: Look) -> None:
    ferry.add_many(5, max_attempts=2)
    look()
    claims = ferry.claim(5)
    look()
    kinds = [OutcomeKind.SUCCEEDED, OutcomeKind.DEAD, OutcomeKind.CANCELLED]
    for claim, kind in zip(claims, [*kinds, OutcomeKind.SNOOZED, OutcomeKind.RETRY], strict=True):
        ferry.settle(claim, kind, delay=1_000 if kind is OutcomeKind.SNOOZED else 0)
    look()


def _replays(ferry: Ferry, look: Look) -> None:
    for key in (None, "r"):
        expiring = ferry.add(ttl=100)
        ferry.clock.advance(1)
        ferry.claim(plan=[])
        ids = ferry.add_many(3, key=key)
        look()
        for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.DEAD, OutcomeKind.CANCELLED):
            claim = ferry.take()
            look()
            ferry.settle(claim, kind)
            look()
        if key:
            ids.append(ferry.add(key=key, ttl=100))
            ferry.clock.advance(1)
            ferry.claim(plan=[])
            ferry.add(key=key)
        look()
        ferry.replay(expiring, *ids)
        look()
        ferry.delete(*(job.id for job in ferry.jobs()))
        look()


def _born_cancelled(ferry: Ferry, look: Look) -> None:
    parent = ferry.add()
    look()
    ferry.cancel(parent)
    look()
    ferry.add(after=(parent,))
    look()


STORIES = [_a_child_in_each_way, _schedules, _parks, _ready_ones, _runs, _replays, _born_cancelled]
