"""Whatever befalls a worker, in whatever order: no job is lost or charged with more than it did, and the end comes."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from ferryman.errors import StoreUnavailable
from ferryman.job import FINISHED, MAX_DEATHS, ErrorInfo, JobId, OutcomeKind, State
from ferryman.store.records import OrderKind
from ferryman.worker import duties
from ferryman.worker.frames import Kind, TaskFacts
from ferryman.worker.supervisor import Phase

from .supervisor_scene import Begin, ScriptedExecutor, scenes

begin = pytest.fixture(scenes, name="begin")

UNSAYABLE = ErrorInfo("Unsayable", "a text that the store does not take")


class Storm:
    """A worker to which anything may happen at any turn."""

    def __init__(self, begin: Begin, seed: int) -> None:
        self.dice = dice = random.Random(seed)
        self.scene = begin(
            concurrency=dice.choice([1, 2, 4, 8]),
            executors=dice.choice([1, 2, 3]),
            recycle_after=dice.choice([0, 0, 7]),
            shutdown_timeout=1_000.0,
            grace=0.3,
        )
        self.scene.tasks = [
            TaskFacts(name="work", track="thread", timeout=dice.choice([None, 5.0])),
            TaskFacts(name="other", track="loop"),
        ]
        self.jobs: list[JobId] = []
        self.deaths: Counter[JobId] = Counter()
        """How often an executor died beside a job."""
        self.successes: Counter[JobId] = Counter()
        self.taken: Counter[JobId] = Counter()
        """How often a job was taken from this worker because it was thought dead."""
        self._deaf: set[ScriptedExecutor] = set()
        self._deadliness = dice.choice([0.0, 0.005, 0.03])
        self._is_slow = dice.choice([True, False])
        self._trouble = 0.0
        """How often the store fails."""
        self._may_end = False
        self._refused = 0
        self.scene.refuse(lambda outcome: outcome.error == UNSAYABLE)
        self.scene.before_call = self._lose_a_call
        self.scene.after_call = self._lose_a_call

    # -- what executors do -------------------------------------------------------------------------

    def _let_executors(self, script: Callable[[ScriptedExecutor], None]) -> None:
        self.scene.script = script
        for executor in self.scene.alive:
            executor.script = script

    def _rage(self, executor: ScriptedExecutor) -> None:
        if not executor.is_ready:
            self._arrive(executor)
            return
        if executor in self._deaf:
            self._deaf -= {executor} if self._happens(0.1) else set()
        elif self._happens(0.02):
            self._deaf.add(executor)
        elif self._happens(0.7):
            executor.listen()
        if self._happens(0.6):
            executor.start()
        for _ in range(len(executor.running)):
            if self._happens(0.15):
                self._finish(executor)
        if self._happens(self._deadliness):
            self.deaths.update(each.claim.id for each in executor.running.values())
            self.dice.choice([executor.die, executor.die_behind_its_socket])()
            return
        executor.say_bye()
        if executor.has_said_bye and self._happens(0.2):
            executor.die()

    def _arrive(self, executor: ScriptedExecutor) -> None:
        match self.dice.randrange(30):
            case 0:
                executor.say(Kind.BROKEN, "SyntaxError: invalid syntax")
                executor.die()
            case 1:
                executor.say_hello()
                executor.die()
            case 2:
                executor.die()
            case number if number < 12:
                executor.say_hello()
            case _:
                pass

    def _finish(self, executor: ScriptedExecutor) -> None:
        match self.dice.randrange(8):
            case 0 if self._refused == 0 and self._trouble == 0:
                executor.finish(OutcomeKind.RETRY, error=UNSAYABLE)
                self._refused += 1
            case 0 | 1:
                executor.finish(OutcomeKind.RETRY, error=ErrorInfo("ValueError", "no"))
            case 2:
                executor.finish(OutcomeKind.SNOOZED)
            case _:
                self._succeed(executor)

    def _succeed(self, executor: ScriptedExecutor) -> None:
        job = next(iter(executor.running.values())).claim.id
        self.successes[job] += job not in executor.cancelled
        executor.finish()

    def _work(self, executor: ScriptedExecutor) -> None:
        """It does all that it should, at once."""
        executor.say_hello()
        executor.listen()
        executor.start()
        while executor.running:
            self._succeed(executor)
            executor.start()
        executor.say_bye()
        if executor.has_said_bye:
            executor.die()

    # -- what happens ------------------------------------------------------------------------------

    def blow(self, turns: int) -> None:
        """So many turns in which anything happens."""
        self._let_executors(self._rage)
        for _ in range(turns):
            self._let_something_happen()
            if not self._turn():
                assert self._may_end, f"it ended by itself: {self.scene}"
                return

    def calm_down(self) -> None:
        """The store answers, executors work, nobody wants anything any more."""
        self._trouble = 0.0
        self.scene.launch_fails = None
        self._let_executors(self._work)

    def wait_until_all_is_done(self) -> None:
        def is_done() -> bool:
            if self.scene.supervisor.phase is Phase.PAUSED and self._happens(0.1):
                self.scene.order("resume")
            if self.scene.desk.unsaid and self._happens(0.05):
                # What is refused is known to be at fault when others' outcomes are accepted.
                self.jobs += self.scene.ferry.add_many(1)
            self._check_members()
            return self.scene.states(self.jobs) <= FINISHED

        self.scene.until(is_done)
        self.scene.go_on(1)

    def _turn(self) -> bool:
        goes_on = self.scene.turn(self.dice.choice([0.001, 0.004, 0.02, 0.06]))
        self._check_members()
        return goes_on

    def _let_something_happen(self) -> None:
        scene, dice = self.scene, self.dice
        match dice.randrange(200):
            case 0 | 1:
                jobs = scene.suspects(dice.randrange(1, 4))
                self.deaths.update(dict.fromkeys(jobs, MAX_DEATHS - 1))
                self.jobs += jobs
            case number if number < 20:
                task = dice.choice(["work", "other", "gone"])
                self.jobs += scene.ferry.add_many(dice.randrange(1, 10), task=task, max_attempts=10)
            case number if number < 26 and self.jobs:
                scene.ferry.cancel(dice.choice(self.jobs), reason="enough")
            case 26:
                scene.supervisor.reload()
            case 27 | 28 if not self._may_end:
                scene.order("pause")
            case number if 29 <= number < 33 and not self._may_end:
                scene.order("resume")
            case 33 if not self._may_end:
                self._take_for_dead()
            case number if 34 <= number < 38 and not self._may_end:
                self._trouble = dice.choice([0.0, 0.0, 0.15])
            case 38 | 39:
                scene.launch_fails = dice.choice([None, OSError(11, "Resource temporarily unavailable")])
            case 40:
                scene.time.set_forward(dice.choice([30, 3_600]))
            case 41 if scene.alive:
                self._say_something_odd(dice.choice(scene.alive))
            case _:
                pass

    def _say_something_odd(self, executor: ScriptedExecutor) -> None:
        self.deaths.update(each.claim.id for each in executor.running.values())
        executor.script = _do_no_more
        executor.say(Kind.PING, 1)

    def _take_for_dead(self) -> None:
        ferry, store, worker = self.scene.ferry, self.scene.store, self.scene.supervisor.id
        self.taken.update(held.id for held in ferry.run(store.holding(worker)))
        ferry.run(store.rescue([worker], late=False))

    def _lose_a_call(self) -> None:
        if self._is_slow and self._happens(0.05):
            self.scene.time.advance(0.5 * self.dice.random())
        if self._happens(self._trouble):
            raise StoreUnavailable("away")

    def _happens(self, chance: float) -> bool:
        return self.dice.random() < chance

    # -- the end -----------------------------------------------------------------------------------

    def end(self) -> None:
        """Tell the worker to end in one way or another, and wait for it."""
        supervisor = self.scene.supervisor
        self._trouble = 0.0
        self._may_end = True
        order: OrderKind = self.dice.choice(["drain", "stop"])
        by_signal = self._happens(0.4)
        if by_signal:
            supervisor.stop()
        else:
            self.scene.order(order)
        self.blow(self.dice.randrange(30))
        if self._happens(0.3) and not self.scene.is_over:
            supervisor.stop()
            supervisor.stop()
            self._turn()
            assert self.scene.is_over, "whoever says so twice means it"
        self.calm_down()

        def is_over() -> bool:
            # An order to a worker that has begun anew meanwhile did not reach it.
            if not by_signal and supervisor.phase in (Phase.ACTIVE, Phase.PAUSED) and self._happens(0.1):
                self.scene.order(order)
            return self.scene.is_over

        self.scene.until(is_over, 30)
        self.scene.end()

    # -- what must hold ----------------------------------------------------------------------------

    def _check_members(self) -> None:
        crew = self.scene.supervisor.crew
        assert crew.running() <= crew.settings.concurrency
        assert len(self.scene.running()) <= crew.settings.concurrency
        waiting = {id_ for id_, _ in self.scene.supervisor.suspects.leases()}
        for member in self.scene.supervisor.crew.members:
            suspects = [held for held in member.jobs.values() if held.claim.deaths == MAX_DEATHS - 1]
            assert not suspects or len(member.jobs) == 1, "a suspect runs alone"
            is_kept = member.solo is not None and not member.jobs and not member.retiring
            assert not is_kept or member.solo in waiting, "nobody is kept for nothing"

    def check_rest(self) -> None:
        """All is done, so nothing is left over, and nobody is busy."""
        supervisor = self.scene.supervisor
        for member in supervisor.crew.members:
            assert (member.solo, member.jobs, member.cancelling, member.doomed) == (None, {}, {}, {})
        assert supervisor.suspects.leases() == set()
        assert not self.scene.desk.unsaid
        assert len(supervisor.crew.members) <= 2 * len(supervisor.crew.shape) + 2
        busy = 0
        for _ in range(20):
            self.scene.turn()
            busy += supervisor._patience() <= 0
        assert busy < 10, "it waits until there is something to do"

    def check_end(self) -> None:
        """Nothing of the worker is left, and each job got what it deserved."""
        assert self.scene.alive == []
        assert all(executor.is_closed for executor in self.scene.executors)
        for job in map(self.scene.ferry.job, self.jobs):
            assert job.state is not State.RUNNING
            assert job.deaths <= self.deaths[job.id] + self.taken[job.id]
            assert self.successes[job.id] <= 1 + self.taken[job.id]


def _do_no_more(executor: ScriptedExecutor) -> None:
    """It is about to be killed."""


@pytest.mark.parametrize("seed", range(40))
def test_no_job_is_lost_or_charged_with_more_than_it_did_and_the_end_comes(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    # What a worker itself leaves to chance shall be the same each time, too.
    luck = random.Random(seed)
    monkeypatch.setattr(random, "random", luck.random)
    monkeypatch.setattr(duties, "random", SimpleNamespace(Random=lambda: luck))
    storm = Storm(begin, seed)

    storm.blow(storm.dice.randrange(20, 250))
    storm.calm_down()
    storm.wait_until_all_is_done()
    storm.check_rest()
    storm.blow(storm.dice.randrange(60))
    storm.end()

    storm.check_end()
