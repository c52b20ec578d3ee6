"""The executor in threads of this process: each job is run and answered once, whatever happens to it."""

from __future__ import annotations

import asyncio
import contextvars
import random
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from ferryman.app import App
from ferryman.codec import Codec
from ferryman.context import Cancelled, Context, SoftTimeout
from ferryman.job import Claim, Outcome, OutcomeKind, RetryIn, Snooze
from ferryman.policy.retry import Retry
from ferryman.store.records import JobNote
from ferryman.worker import outbox, stopping, threads
from ferryman.worker.frames import Assignment, Kind, Track, encode_batch
from ferryman.worker.judge import Stop
from ferryman.worker.slots import SlotTable
from ferryman.worker.stopping import Place, stop_job

from .supervising import PATIENCE, InProcess, claim

pytestmark = pytest.mark.usefixtures("bare_collector")

app = App("memory://")
app.queue("reports", fair=True)

gates: dict[str, threading.Event] = {}
seen: list[Any] = []
variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(autouse=True)
def _clean() -> Iterator[None]:
    gates.clear()
    seen.clear()
    yield
    for gate in gates.values():
        gate.set()


@pytest.fixture
def executor() -> Iterator[InProcess]:
    executor = InProcess(app)
    yield executor
    for gate in gates.values():
        gate.set()
    executor.close()


@pytest.fixture
def _restless() -> Iterator[None]:
    """Threads change places after almost every step, so that their races are lost as often as won."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def place_of(executor: InProcess, running: Assignment) -> Place:
    """Where a job runs."""
    (place,) = [
        each
        for each in executor.executor._threads._places
        if each.job is not None and each.job.serial == running.serial
    ]
    return place


def gate(name: str) -> str:
    gates[name] = threading.Event()
    return name


@app.task(name="add")
def add(a: int, b: int = 1) -> int:
    return a + b


@app.task(name="noop")
def noop() -> None: ...


@app.task(name="anoop")
async def anoop() -> None: ...


@app.task(name="aadd")
async def aadd(a: int, b: int = 1) -> int:
    await asyncio.sleep(0)
    return a + b


@app.task(name="pass_gate")
def pass_gate(ctx: Context, gate: str) -> str:
    ctx.note("waits")
    assert gates[gate].wait(PATIENCE)
    return gate


@app.task(name="apass_gate")
async def apass_gate(ctx: Context, gate: str) -> str:
    ctx.note("waits")
    while not gates[gate].is_set():
        await asyncio.sleep(0.001)
    return gate


@app.task(name="spin")
def spin(ctx: Context) -> None:
    ctx.note("spins")
    try:
        while True:
            pass
    finally:
        seen.append(ctx.cancelled)


@app.task(name="aspin")
async def aspin(ctx: Context) -> None:
    ctx.note("spins")
    try:
        await asyncio.Event().wait()
    finally:
        seen.append(ctx.cancelled)


@app.task(name="stubborn")
def stubborn(ctx: Context, answer: str) -> str:
    ctx.note("spins")
    try:
        while True:
            pass
    except (SoftTimeout, Cancelled):
        if answer == "raise":
            raise ValueError("could not clean up") from None
        return answer


@app.task(name="fail", retry=Retry(base=2, jitter=0, give_up_on=(KeyError,)))
def fail(what: str) -> None:
    raise {"value": ValueError, "key": KeyError, "exit": SystemExit, "interrupt": KeyboardInterrupt}[what](
        what
    )


@app.task(name="afail")
async def afail(what: str) -> None:
    fail.function(what)


@app.task(name="once", at_most_once=True)
def once(how: str) -> None:
    seen.append(how)
    raise RetryIn(1) if how == "asks" else ValueError(how)


@app.task(name="aonce", at_most_once=True)
async def aonce(how: str) -> None:
    once.function(how)


@app.task(name="remember")
def remember(value: str) -> str:
    before = variable.get()
    variable.set(value)
    return before


@app.task(name="aremember")
async def aremember(value: str) -> str:
    return remember.function(value)  # type: ignore[no-any-return]


@app.task(name="report")
def report(count: int, ctx: Context, *, end: str = "done") -> None:
    for number in range(count):
        ctx.progress(number / count, str(number))
    ctx.note("a line")
    ctx.progress(1, end)


@app.task(name="mark")
def mark() -> None:
    seen.append("ran")


@app.task(name="amark")
async def amark() -> None:
    seen.append("ran")


@app.task(name="crunch")
def crunch(steps: int) -> int:
    total = 0
    for step in range(steps):
        total += step
    return total


@app.task(name="bytes")
def many_bytes(count: int) -> bytes:
    return random.Random(0).randbytes(count)


# -- hello and the everyday ------------------------------------------------------------------------


def test_it_introduces_itself_with_all_that_a_supervisor_needs(executor: InProcess) -> None:
    hello = executor.hello

    tasks = {task.name: task for task in hello.tasks}
    assert hello.url == "memory://"
    assert hello.settings == app.settings
    assert [queue.name for queue in hello.queues] == ["reports"]
    assert (tasks["add"].track, tasks["aadd"].track) == ("thread", "loop")
    assert tasks["fail"].retry == Retry(base=2, jitter=0)


@pytest.mark.parametrize("task", ["add", "aadd"])
def test_a_job_is_called_with_its_arguments_and_its_result_comes_back(executor: InProcess, task: str) -> None:
    outcome = executor.run(task, {"a": 2}, lease=9)

    assert (outcome.kind, outcome.lease) == (OutcomeKind.SUCCEEDED, 9)
    assert outcome.result is not None
    assert Codec().decoder(int)(outcome.result) == 3


def test_five_thousand_mixed_jobs_are_each_answered_once(executor: InProcess) -> None:
    dice = random.Random(1)
    tracks: tuple[Track, Track] = ("thread", "loop")
    claims: dict[Track, list[Claim]] = {"thread": [], "loop": []}
    for _ in range(5_000):
        track = dice.choice(tracks)
        claims[track].append(claim("noop" if track == "thread" else "anoop"))

    while claims["thread"] or claims["loop"]:
        for track in tracks:
            executor.assign(claims[track][-100:], track)
            del claims[track][-100:]
    outcomes = executor.outcomes(5_000)

    assert len({outcome.id for outcome in outcomes}) == 5_000
    assert {outcome.kind for outcome in outcomes} == {OutcomeKind.SUCCEEDED}
    assert executor.table.started_upto("thread") == executor.serials["thread"]
    assert executor.table.started_upto("loop") == executor.serials["loop"]


@pytest.mark.parametrize("task", ["remember", "aremember"])
def test_context_variables_do_not_leak_from_job_to_job(executor: InProcess, task: str) -> None:
    outcomes = [executor.run(task, {"value": str(number)}) for number in range(6)]

    assert {Codec().decoder(str)(outcome.result or b"") for outcome in outcomes} == {"unset"}


def test_the_context_stands_where_the_function_wants_it_and_notes_come_before_the_outcome(
    executor: InProcess,
) -> None:
    outcome = executor.run("report", {"count": 300, "end": "over"})

    notes = [note for frame in executor.frames for note in frame.body]
    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert all(frame.kind is Kind.NOTES for frame in executor.frames)
    assert JobNote(outcome.id, 1, None, "a line") in notes
    assert notes[-1] == JobNote(outcome.id, 1, 1.0, "over")


def test_only_the_latest_progress_of_each_job_is_sent() -> None:
    a, b = claim("a").id, claim("b").id
    notes = [
        JobNote(a, 1, 0.1),
        JobNote(b, 1, 0.2),
        JobNote(a, 1, None, "x"),
        JobNote(a, 1, 0.3),
        JobNote(a, 1, None, "y"),
    ]

    assert outbox._latest(notes) == [notes[1], notes[2], notes[3], notes[4]]


# -- failures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["fail", "afail"])
@pytest.mark.parametrize(
    ("what", "name"),
    [("value", "ValueError"), ("exit", "SystemExit"), ("interrupt", "KeyboardInterrupt")],
)
def test_whatever_a_task_raises_is_a_failure_of_that_job_alone(
    executor: InProcess, task: str, what: str, name: str
) -> None:
    outcome = executor.run(task, {"what": what})

    assert outcome.kind is OutcomeKind.RETRY
    assert outcome.error is not None
    assert outcome.error.cause == f"{name}: {what}"
    assert "test_executor.py" in outcome.error.traceback
    assert "ferryman/worker" not in outcome.error.traceback
    assert executor.run("add", {"a": 1}).kind is OutcomeKind.SUCCEEDED


def test_the_policy_of_the_task_and_the_numbers_of_the_job_are_heeded(executor: InProcess) -> None:
    again = executor.run("fail", {"what": "value"}, attempt=3)
    slower = executor.run("fail", {"what": "value"}, backoff=Retry(backoff="fixed", base=60, jitter=0))
    fatal = executor.run("fail", {"what": "key"})

    assert (again.kind, again.delay) == (OutcomeKind.RETRY, 8_000)
    assert (slower.kind, slower.delay) == (OutcomeKind.RETRY, 60_000)
    assert fatal.kind is OutcomeKind.DEAD


ONCE = pytest.mark.parametrize(("task", "track"), [("once", "thread"), ("aonce", "loop")])


@ONCE
@pytest.mark.parametrize("how", ["fails", "asks"])
def test_a_job_of_a_task_that_runs_at_most_once_is_not_tried_again_whoever_gave_it_more_attempts(
    executor: InProcess, task: str, track: Any, how: str
) -> None:
    (job,) = executor.assign([claim(task, {"how": how}, max_attempts=4)], track)

    outcome = executor.outcome(job)

    assert (outcome.kind, outcome.delay, seen) == (OutcomeKind.DEAD, 0, [how])


@ONCE
def test_a_job_of_a_task_that_runs_at_most_once_is_not_begun_in_a_second_attempt(
    executor: InProcess, task: str, track: Any
) -> None:
    (job,) = executor.assign([claim(task, {"how": "fails"}, attempt=2, max_attempts=4)], track)

    outcome = executor.outcome(job)

    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.error is not None
    assert outcome.error.type == "BegunBefore"
    assert seen == []


def test_a_job_of_an_unknown_task_is_put_back(executor: InProcess) -> None:
    outcome = executor.run("elsewhere.task")

    assert (outcome.kind, outcome.delay) == (OutcomeKind.SNOOZED, 5_000)
    assert outcome.reason == "the app tests:app has no task 'elsewhere.task'; it waits for a worker that has"


@pytest.mark.parametrize(("task", "track"), [("add", "thread"), ("aadd", "loop")])
@pytest.mark.parametrize(
    "fields",
    [{"args": b""}, {"args": b"\x01junk"}, {"args": Codec().encode({"a": "x"})}, {"options": b"junk"}],
)
def test_a_job_that_cannot_be_read_is_dead(
    executor: InProcess, task: str, track: Any, fields: dict[str, bytes]
) -> None:
    (assignment,) = executor.assign([claim(task, {"a": 1}, **fields)], track)
    outcome = executor.outcome(assignment)

    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.error is not None
    assert outcome.error.type == "ferryman.errors.PayloadError"


def test_results_that_exceed_a_frame_together_come_in_several(
    executor: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ferryman.worker.frames.MAX_FRAME_BYTES", 50_000)

    executor.assign([claim("bytes", {"count": 30_000}) for _ in range(10)])

    assert {outcome.kind for outcome in executor.outcomes(10)} == {OutcomeKind.SUCCEEDED}


def test_a_result_that_exceeds_a_frame_alone_makes_the_job_dead(
    executor: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ferryman.worker.frames.MAX_FRAME_BYTES", 50_000)

    outcome = executor.run("bytes", {"count": 60_000})

    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.error is not None
    assert "cannot be sent" in outcome.error.message


# -- soft timeouts and cancels ---------------------------------------------------------------------


@pytest.mark.parametrize(("task", "track"), [("spin", "thread"), ("aspin", "loop")])
def test_a_soft_timeout_ends_the_job_and_its_place_is_usable_again(
    executor: InProcess, task: str, track: Any
) -> None:
    (assignment,) = executor.assign([claim(task, timeout=0.02, attempt=2)], track)
    outcome = executor.outcome(assignment)

    assert outcome.kind is OutcomeKind.RETRY
    assert outcome.error is not None
    assert outcome.error.cause == "TimeLimit: stopped after its timeout of 0.02 s"
    assert f"in {task}" in outcome.error.traceback
    assert 1_500 < outcome.delay < 2_500
    assert outcome.ran_us >= 20_000
    assert seen == [True]
    again = executor.assign(
        [claim("add" if track == "thread" else "aadd", {"a": 1}) for _ in range(4)], track
    )
    assert [each.kind for each in executor.outcomes(len(again))] == [OutcomeKind.SUCCEEDED] * 4


@pytest.mark.parametrize(("task", "track"), [("spin", "thread"), ("aspin", "loop")])
def test_a_running_job_is_cancelled(executor: InProcess, task: str, track: Any) -> None:
    (assignment,) = executor.assign([claim(task)], track)
    executor.notes(1)

    executor.cancel(assignment, "not wanted", track)

    outcome = executor.outcome(assignment)
    assert (outcome.kind, outcome.reason) == (OutcomeKind.CANCELLED, "not wanted")
    assert seen == [True]


@pytest.mark.parametrize(
    ("task", "idle", "track"), [("pass_gate", "mark", "thread"), ("apass_gate", "amark", "loop")]
)
def test_a_job_that_waits_is_cancelled_without_being_run(
    executor: InProcess, task: str, idle: str, track: Any
) -> None:
    gate("first")
    blockers = executor.assign([claim(task, {"gate": "first"}) for _ in range(2)], track)
    waiting = executor.assign([claim(idle), claim(task, {"gate": "first"})], track)

    executor.cancel(waiting[0], "too late", track)
    executor.send(Kind.PING, 1)
    executor.frame(Kind.PONG)
    gates["first"].set()

    outcomes = {outcome.id: outcome for outcome in executor.outcomes(4)}
    cancelled = outcomes.pop(waiting[0].claim.id)
    assert (cancelled.kind, cancelled.reason) == (OutcomeKind.CANCELLED, "too late")
    assert {outcome.kind for outcome in outcomes.values()} == {OutcomeKind.SUCCEEDED}
    assert len(outcomes) == len(blockers) + 1
    assert seen == []


def test_a_cancel_of_a_job_that_has_ended_disturbs_nobody(executor: InProcess) -> None:
    gate("first")
    (ended,) = executor.assign([claim("noop")])
    executor.outcome(ended)
    (running,) = executor.assign([claim("pass_gate", {"gate": "first"})])
    executor.notes(1)

    executor.cancel(ended)
    executor.cancel(ended, track="loop")
    gates["first"].set()

    assert executor.outcome(running).kind is OutcomeKind.SUCCEEDED


def test_a_task_that_returns_in_spite_of_a_stop_has_succeeded(executor: InProcess) -> None:
    outcome = executor.run("stubborn", {"answer": "in time"}, timeout=0.02)

    assert outcome.kind is OutcomeKind.SUCCEEDED


def test_a_cancelled_task_is_not_run_again_though_it_raised_something_else(executor: InProcess) -> None:
    (assignment,) = executor.assign([claim("stubborn", {"answer": "raise"})])
    executor.notes(1)

    executor.cancel(assignment)

    assert executor.outcome(assignment).kind is OutcomeKind.CANCELLED


def test_an_error_after_a_soft_timeout_is_judged_as_that_error(executor: InProcess) -> None:
    outcome = executor.run("stubborn", {"answer": "raise"}, timeout=0.02)

    assert outcome.error is not None
    assert outcome.error.cause == "ValueError: could not clean up"


def test_a_stop_that_looks_too_late_spares_the_next_job() -> None:
    executor = InProcess(app, places=1)
    gate("open")
    (ended,) = executor.assign([claim("noop")])
    executor.outcome(ended)
    (running,) = executor.assign([claim("pass_gate", {"gate": "open"})])
    executor.notes(1)

    stop_job(place_of(executor, running), ended, Stop(SoftTimeout))
    gates["open"].set()

    assert executor.outcome(running).kind is OutcomeKind.SUCCEEDED
    executor.close()


def test_a_stop_that_arrives_after_the_tasks_end_changes_nothing() -> None:
    executor = InProcess(app, places=1)
    gate("open")
    (running,) = executor.assign([claim("pass_gate", {"gate": "open"})])
    executor.notes(1)

    place = place_of(executor, running)
    with place.lock:
        # As `_stop` does, but the task ends between its look and its shot.
        place.stop = Stop(SoftTimeout)
        gates["open"].set()
        while place.job is not None:
            threading.Event().wait(0.001)
        stopping._raise_in(place.thread, SoftTimeout)

    assert executor.outcome(running).kind is OutcomeKind.SUCCEEDED
    assert executor.run("mark").kind is OutcomeKind.SUCCEEDED
    assert place.stop is None
    executor.close()


@pytest.mark.usefixtures("_restless")
def test_a_stray_soft_timeout_never_hits_the_next_job(executor: InProcess) -> None:
    dice = random.Random(3)
    claims, timed = [], set()
    for _ in range(4_000):
        steps = dice.randrange(2_000)
        if dice.random() < 0.5:
            claims.append(claim("crunch", {"steps": steps}, timeout=dice.uniform(0.000_001, 0.000_1)))
            timed.add(claims[-1].id)
        else:
            claims.append(claim("crunch", {"steps": steps}))

    for start in range(0, len(claims), 200):
        executor.assign(claims[start : start + 200])
    outcomes = executor.outcomes(len(claims))

    stopped = {outcome.id for outcome in outcomes if outcome.kind is OutcomeKind.RETRY}
    assert len({outcome.id for outcome in outcomes}) == len(claims)
    assert {outcome.error.type for outcome in outcomes if outcome.error} == {"TimeLimit"}
    assert stopped <= timed
    assert {outcome.kind for outcome in outcomes if outcome.id not in timed} == {OutcomeKind.SUCCEEDED}
    assert executor.table.running("thread") == []


@pytest.mark.usefixtures("_restless")
def test_a_stray_cancel_never_hits_the_next_job(executor: InProcess) -> None:
    assignments = [
        each
        for _ in range(30)
        for each in executor.assign([claim("crunch", {"steps": 500}) for _ in range(100)])
    ]
    wanted = random.Random(4).sample(assignments, 1_000)

    for each in wanted:
        executor.cancel(each)
    outcomes = executor.outcomes(len(assignments))

    cancelled = {outcome.id for outcome in outcomes if outcome.kind is OutcomeKind.CANCELLED}
    others = {outcome.kind for outcome in outcomes if outcome.id not in cancelled}
    assert len({outcome.id for outcome in outcomes}) == len(assignments)
    assert cancelled <= {each.claim.id for each in wanted}
    assert others == {OutcomeKind.SUCCEEDED}


# -- recall, drain, end ----------------------------------------------------------------------------


def test_a_recall_returns_exactly_what_was_not_started(executor: InProcess) -> None:
    gate("open")
    held = executor.assign([claim("pass_gate", {"gate": "open"})])
    loops = executor.assign([claim("apass_gate", {"gate": "open"}, lease=n) for n in range(7)], "loop")
    held += executor.assign([claim("pass_gate", {"gate": "open"}, lease=n) for n in range(7)])
    executor.notes(2)

    executor.send(Kind.RECALL)
    returned = executor.returned()
    gates["open"].set()
    done = executor.outcomes(2)

    assert returned == [each.claim.id for each in loops[1:] + held[1:]]
    assert {each.id for each in done} == {held[0].claim.id, loops[0].claim.id}
    assert executor.table.started_upto("thread") == executor.table.started_upto("loop") == 1


def test_a_recall_settles_what_was_cancelled_while_it_waited(executor: InProcess) -> None:
    gate("open")
    executor.assign([claim("pass_gate", {"gate": "open"}) for _ in range(2)])
    waiting = executor.assign([claim("noop"), claim("noop")])
    executor.notes(2)

    executor.cancel(waiting[0], "too late")
    executor.send(Kind.RECALL)

    assert executor.returned() == [waiting[1].claim.id]
    assert executor.outcome(waiting[0]).kind is OutcomeKind.CANCELLED


def test_jobs_recalled_in_the_midst_of_running_are_each_answered_or_returned_once(
    executor: InProcess,
) -> None:
    wanted = set()
    for _ in range(20):
        wanted |= {each.claim.id for each in executor.assign([claim("noop") for _ in range(100)])}
        wanted |= {each.claim.id for each in executor.assign([claim("anoop") for _ in range(100)], "loop")}
        executor.send(Kind.RECALL)
    returned = [id for _ in range(20) for id in executor.returned()]
    done = [outcome.id for outcome in executor.outcomes(len(wanted) - len(returned))]

    assert len(returned) + len(done) == len(wanted)
    assert set(returned) | set(done) == wanted


def test_a_ping_is_answered_while_every_place_is_taken(executor: InProcess) -> None:
    gate("open")
    executor.assign([claim("pass_gate", {"gate": "open"}) for _ in range(3)])

    executor.send(Kind.PING, 17)

    assert executor.frame(Kind.PONG).body == 17


def test_in_whatever_bursts_jobs_come_every_place_is_taken_and_somebody_listens() -> None:
    executor = InProcess(app, places=3)
    dice = random.Random(7)
    for number in range(150):
        gate("open")
        burst = dice.randrange(1, 7)
        early = dice.randrange(burst + 1)
        executor.assign([claim("pass_gate", {"gate": "open"}) for _ in range(early)])
        executor.assign([claim("pass_gate", {"gate": "open"}) for _ in range(burst - early)])

        executor.notes(min(3, burst))
        executor.send(Kind.PING, number)
        assert executor.frame(Kind.PONG).body == number
        assert len(executor.table.running("thread")) == min(3, burst)

        gates["open"].set()
        assert len({outcome.id for outcome in executor.outcomes(burst)}) == burst
        executor.notes(burst - min(3, burst))
    executor.close()


def test_no_job_is_started_before_one_that_came_earlier_and_waits() -> None:
    table = SlotTable.create(2)
    here, there = socket.socketpair()
    to_come = [[1], [2], [3, 4]]

    def listen() -> bool:
        if to_come:
            track.feed([Assignment(serial, claim("noop")) for serial in to_come.pop(0)])
            return True
        return False

    track = threads.ThreadTrack({}, "app", outbox.Outbox(here), table, None, listen, lambda: None)
    # No thread runs: what goes into the queue waits there. The first job is the leader's own, and others lead after that.
    own = [track._lead()]
    call = track._inbox.get_nowait()
    track._inbox.put(Assignment(0, claim("noop")))
    own.append(track._lead())

    waiting = [track._inbox.get_nowait() for _ in range(4)]
    assert [each.serial for each in own if each] == [1]
    assert call is threads._Call.LEAD
    assert [each.serial for each in waiting if isinstance(each, Assignment)] == [0, 2, 3, 4]
    for sock in (here, there):
        sock.close()
    table.close()


@pytest.mark.usefixtures("_restless")
def test_what_the_slots_say_was_started_never_grows_less(executor: InProcess) -> None:
    dice = random.Random(11)
    over = threading.Event()
    said = [0]

    def watch() -> None:
        while not over.is_set():
            said.append(executor.table.started_upto("thread"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(400):
        executor.outcomes(len(executor.assign([claim("noop") for _ in range(dice.randrange(1, 4))])))
    over.set()
    watcher.join()

    assert said == sorted(said)
    assert executor.table.started_upto("thread") == executor.serials["thread"]


def test_an_outcome_goes_out_at_once_if_no_job_waits(
    executor: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whoever leaves it to the flusher would wait for that long.
    monkeypatch.setattr(outbox, "_CADENCE_NS", 10**12)

    for _ in range(200):
        assert executor.run("noop").kind is OutcomeKind.SUCCEEDED


def test_a_drained_executor_gives_back_finishes_and_says_goodbye(executor: InProcess) -> None:
    gate("open")
    held = executor.assign([claim("pass_gate", {"gate": "open"})])
    loops = executor.assign([claim("apass_gate", {"gate": "open"}) for _ in range(2)], "loop")
    held += executor.assign([claim("pass_gate", {"gate": "open"})])
    executor.notes(2)

    executor.send(Kind.DRAIN)
    late = executor.assign([claim("noop")])
    returned = executor.returned()
    returned_late = executor.returned()
    gates["open"].set()
    done = executor.outcomes(2)
    executor.frame(Kind.BYE)
    executor.join()

    assert returned == [loops[1].claim.id, held[1].claim.id]
    assert returned_late == [late[0].claim.id]
    assert {outcome.kind for outcome in done} == {OutcomeKind.SUCCEEDED}
    assert executor.drained is True


def test_a_recall_that_comes_after_the_drain_keeps_no_thread_from_its_end(executor: InProcess) -> None:
    # Its supervisor sends one to whoever has not started all of its jobs for a while.
    gate("open")
    executor.assign([claim("pass_gate", {"gate": "open"}) for _ in range(2)])
    executor.notes(2)

    executor.send(Kind.DRAIN)
    executor.send(Kind.RECALL)
    returned = executor.returned() + executor.returned()
    gates["open"].set()
    executor.outcomes(2)
    executor.frame(Kind.BYE)
    executor.join()

    assert returned == []
    assert executor.drained is True


def test_an_idle_executor_drains_at_once(executor: InProcess) -> None:
    executor.send(Kind.DRAIN)

    assert executor.returned() == []
    executor.frame(Kind.BYE)


def test_jobs_are_stopped_when_the_supervisor_is_gone() -> None:
    executor = InProcess(app, places=3)
    executor.assign([claim("spin"), claim("spin"), claim("noop")])
    executor.assign([claim("aspin")], "loop")
    executor.notes(3)

    executor.close()

    deadline = time.monotonic() + PATIENCE
    while len(seen) < 3 and time.monotonic() < deadline:
        threading.Event().wait(0.001)
    assert seen == [True] * 3
    assert executor.drained is False


def test_nonsense_from_the_supervisor_ends_the_executor(executor: InProcess) -> None:
    executor.sock.sendall(b"GET / HTTP/1.1\r\n\r\n")

    executor.join()

    assert executor.drained is False


def test_a_batch_of_outcomes_is_one_frame() -> None:
    outcomes = [Outcome(claim("a").id, 1, OutcomeKind.SUCCEEDED) for _ in range(256)]

    assert len(encode_batch(Kind.DONE, outcomes)) == 1


@app.task(name="snoozes")
def snoozes() -> Snooze:
    return Snooze(2.5, "later")


def test_a_returned_signal_steers_the_job(executor: InProcess) -> None:
    outcome = executor.run("snoozes")

    assert (outcome.kind, outcome.delay, outcome.reason) == (OutcomeKind.SNOOZED, 2_500, "later")
