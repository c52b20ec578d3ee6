"""What an executor does while the place of large payloads fails or hangs."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from ferryman import Ferryman, Settings
from ferryman.config import BlobSettings
from ferryman.job import Claim, OutcomeKind
from ferryman.payload import Reference, is_reference, read_reference
from ferryman.worker import outside
from ferryman.worker.frames import Kind, Track
from ferryman.worker.runnable import runnables
from tests.end_to_end.harness import wait_for

from .supervising import InProcess, claim

LARGE = 20_000

TRACKS = pytest.mark.parametrize("track", ["thread", "loop"])


def _app(url: str | None, max_payload: int = 4 << 20) -> Ferryman:
    app = Ferryman(
        settings=Settings(url="memory://", max_payload=max_payload, blobs=BlobSettings(url=url, above=10_000))
    )

    @app.task(name="thread.size")
    def size(data: bytes) -> int:
        return len(data)

    @app.task(name="loop.size")
    async def asize(data: bytes) -> int:
        return len(data)

    @app.task(name="thread.make")
    def make() -> bytes:
        return random.Random(0).randbytes(LARGE)

    @app.task(name="loop.make")
    async def amake() -> bytes:
        return random.Random(0).randbytes(LARGE)

    return app


def _large(app: Ferryman, track: Track) -> Claim:
    """A job whose arguments lie outside."""
    job = claim(f"{track}.size", {"data": random.Random(0).randbytes(LARGE)})
    args = app.perform(app.payloads.stow(job.id, "args", job.args))
    return claim(job.task, id=job.id, args=args)


def _reference(size: int) -> bytes:
    return b"\x0f" + msgspec.msgpack.encode(Reference("name", size, b"digest"))


class Hanging:
    """A file of a directory that hangs, as on a share whose server is away: who opens it waits."""

    def __init__(self, url: str, args: bytes) -> None:
        reference = read_reference(args)
        assert reference is not None
        self._file = Path(url.removeprefix("file://")) / reference.name
        self._data = self._file.read_bytes()
        self._file.unlink()
        os.mkfifo(self._file)

    def is_asked_for(self) -> bool:
        """Whether somebody waits."""
        with contextlib.suppress(OSError):
            self._writer = os.open(self._file, os.O_WRONLY | os.O_NONBLOCK)
            return True
        return False

    def go_on(self) -> None:
        os.set_blocking(self._writer, True)
        with open(self._writer, "wb") as stream:
            stream.write(self._data)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path}/blobs"


@TRACKS
def test_a_job_whose_arguments_do_not_come_does_not_run_yet(url: str, track: Track) -> None:
    app = _app(url)
    executor = InProcess(app, places=2)
    job = _large(app, track)
    hanging = Hanging(url, job.args)

    (assignment,) = executor.assign([job], track)
    wait_for(hanging.is_asked_for)
    (beside,) = executor.assign([claim(f"{track}.size", {"data": b"few"})], track)
    outcome_beside = executor.outcome(beside)
    running = executor.table.running(track)
    started = executor.table.has_started(track, assignment.serial)
    hanging.go_on()
    outcome = executor.outcome(assignment)

    assert (running, started) == ([], False)
    assert outcome_beside.kind is outcome.kind is OutcomeKind.SUCCEEDED
    assert executor.table.has_started(track, assignment.serial)
    executor.close()


@TRACKS
def test_a_drain_gives_back_a_job_whose_arguments_do_not_come(url: str, track: Track) -> None:
    app = _app(url)
    executor = InProcess(app, places=1)
    job = _large(app, track)
    hanging = Hanging(url, job.args)
    executor.assign([job], track)
    wait_for(hanging.is_asked_for)

    executor.send(Kind.DRAIN)
    recalled, returned = executor.returned(), executor.returned()
    executor.frame(Kind.BYE)
    executor.join()

    assert (recalled, returned) == ([], [job.id])
    assert executor.drained is True
    hanging.go_on()
    executor.close()


def test_a_thread_that_takes_a_job_while_its_executor_drains_gives_it_back(url: str) -> None:
    app = _app(url)
    executor = InProcess(app, places=1)
    job = _large(app, "thread")
    Hanging(url, job.args)

    executor.executor._threads._ends = True  # As if `finish` were a step ahead.
    executor.assign([job])

    assert executor.returned() == [job.id]
    executor.close()


@TRACKS
def test_a_job_whose_arguments_do_not_come_is_cancelled_and_its_place_is_usable_again(
    url: str, track: Track
) -> None:
    app = _app(url)
    executor = InProcess(app, places=1)
    job = _large(app, track)
    hanging = Hanging(url, job.args)
    (assignment,) = executor.assign([job], track)
    wait_for(hanging.is_asked_for)

    executor.cancel(assignment, "not wanted", track)
    outcome = executor.outcome(assignment)
    (after,) = executor.assign([claim(f"{track}.size", {"data": b"few"})], track)

    assert (outcome.kind, outcome.reason) == (OutcomeKind.CANCELLED, "not wanted")
    assert executor.outcome(after).kind is OutcomeKind.SUCCEEDED
    hanging.go_on()
    executor.close()


@TRACKS
def test_a_supervisor_that_is_gone_ends_an_executor_whose_arguments_do_not_come(
    url: str, track: Track
) -> None:
    app = _app(url)
    executor = InProcess(app, places=1)
    job = _large(app, track)
    hanging = Hanging(url, job.args)
    executor.assign([job], track)
    wait_for(hanging.is_asked_for)

    executor.close()

    assert executor.drained is False
    hanging.go_on()


@TRACKS
def test_nothing_is_fetched_for_a_job_that_was_cancelled_while_it_waited(url: str, track: Track) -> None:
    app = _app(url)
    executor = InProcess(app, places=1)
    first, second = _large(app, track), _large(app, track)
    hanging, untouched = Hanging(url, first.args), Hanging(url, second.args)
    ahead, waiting = executor.assign([first, second], track)
    wait_for(hanging.is_asked_for)

    executor.cancel(waiting, "not wanted", track)
    executor.send(Kind.PING, 1)
    executor.frame(Kind.PONG)
    hanging.go_on()
    outcomes = {outcome.id: outcome.kind for outcome in executor.outcomes(2)}

    assert outcomes[ahead.claim.id] is OutcomeKind.SUCCEEDED
    assert outcomes[waiting.claim.id] is OutcomeKind.CANCELLED
    assert not untouched.is_asked_for()
    executor.close()


@TRACKS
@pytest.mark.parametrize("what", ["boto3 is missing", "no such profile", "nobody has set the place"])
def test_a_job_waits_whatever_keeps_its_arguments_away(
    monkeypatch: pytest.MonkeyPatch, url: str, track: Track, what: str
) -> None:
    job = _large(_app(url), track)
    if what == "boto3 is missing":
        monkeypatch.setitem(sys.modules, "boto3", None)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    place = None if what == "nobody has set the place" else "s3://ferry/cargo"
    executor = InProcess(_app(place), places=1)

    (assignment,) = executor.assign([job], track)
    outcome = executor.outcome(assignment)
    (after,) = executor.assign([claim(f"{track}.size", {"data": b"few"})], track)

    said = {"boto3 is missing": "ferryman[s3]", "no such profile": "nobody"}.get(what, "FERRYMAN_BLOBS_URL")
    assert outcome.kind is OutcomeKind.SNOOZED
    assert said in str(outcome.reason)
    assert executor.outcome(after).kind is OutcomeKind.SUCCEEDED
    executor.close()


@TRACKS
def test_a_job_whose_arguments_do_not_come_in_time_is_put_off_and_its_place_is_usable_again(
    url: str, monkeypatch: pytest.MonkeyPatch, track: Track
) -> None:
    monkeypatch.setattr(outside, "_ANSWERS_WITHIN", 0.05)
    app = _app(url)
    executor = InProcess(app, places=1)
    job = _large(app, track)
    hanging = Hanging(url, job.args)

    (assignment,) = executor.assign([job], track)
    wait_for(hanging.is_asked_for)
    outcome = executor.outcome(assignment)
    (after,) = executor.assign([claim(f"{track}.size", {"data": b"few"})], track)

    assert (outcome.kind, outcome.delay) == (OutcomeKind.SNOOZED, 5_000)
    assert str(outcome.reason).startswith(
        "its arguments cannot be fetched now: there was no answer within 0.1 s"
    )
    assert executor.outcome(after).kind is OutcomeKind.SUCCEEDED
    hanging.go_on()
    executor.close()


@TRACKS
def test_a_place_of_a_worker_asks_for_nothing_more_while_it_has_no_answer(
    url: str, monkeypatch: pytest.MonkeyPatch, track: Track
) -> None:
    monkeypatch.setattr(outside, "_ANSWERS_WITHIN", 0.05)
    app = _app(url)
    executor = InProcess(app, places=1)
    first, second = _large(app, track), _large(app, track)
    hanging, untouched = Hanging(url, first.args), Hanging(url, second.args)
    before = set(threading.enumerate())
    executor.assign([first], track)
    wait_for(hanging.is_asked_for)
    executor.outcomes(1)
    asking = set(threading.enumerate()) - before

    (meanwhile,) = executor.assign([second], track)
    outcome = executor.outcome(meanwhile)
    was_asked_for = untouched.is_asked_for()
    hanging.go_on()
    for thread in asking:
        thread.join(10)
    (late,) = executor.assign([_large(app, track)], track)

    assert (outcome.kind, was_asked_for) == (OutcomeKind.SNOOZED, False)
    assert "earlier questions have no answer yet" in str(outcome.reason)
    assert executor.outcome(late).kind is OutcomeKind.SUCCEEDED
    executor.close()


def test_larger_arguments_are_waited_for_longer(url: str) -> None:
    app = _app(url)
    few, many = (claim("thread.size", args=_reference(size)) for size in (1 << 20, 100 << 20))
    damaged, absurd = (claim("thread.size", args=args) for args in (b"\x0f", _reference(1 << 63)))
    runnable = runnables(app.tasks)["thread.size"]

    seconds = [outside.fetches_within(runnable, job) for job in (few, many, damaged, absurd)]

    assert seconds == [31.0, 130.0, 30.0, 30.0 + 256.0]


@TRACKS
def test_a_result_goes_into_the_store_whatever_keeps_it_from_its_place(
    monkeypatch: pytest.MonkeyPatch, track: Track
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    executor = InProcess(_app("s3://ferry/cargo"), places=1)

    (assignment,) = executor.assign([claim(f"{track}.make")], track)
    outcome = executor.outcome(assignment)
    (after,) = executor.assign([claim(f"{track}.size", {"data": b"few"})], track)

    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert len(outcome.result or b"") > LARGE
    assert executor.outcome(after).kind is OutcomeKind.SUCCEEDED
    executor.close()


@TRACKS
def test_a_result_that_fits_nowhere_is_lost_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, track: Track
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    executor = InProcess(_app("s3://ferry/cargo", max_payload=15_000), places=1)

    (assignment,) = executor.assign([claim(f"{track}.make")], track)
    outcome = executor.outcome(assignment)

    assert outcome.kind is OutcomeKind.DEAD
    assert outcome.error is not None
    assert "its result is lost: payloads in s3://ferry/cargo need boto3" in outcome.error.message
    executor.close()


@TRACKS
def test_a_result_as_large_as_is_allowed_goes_into_the_store(
    monkeypatch: pytest.MonkeyPatch, track: Track
) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    executor = InProcess(_app("s3://ferry/cargo", max_payload=LARGE + len(b"\xc5??")), places=1)

    (assignment,) = executor.assign([claim(f"{track}.make")], track)

    assert executor.outcome(assignment).kind is OutcomeKind.SUCCEEDED
    executor.close()


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A service that takes connections and says nothing."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"s3://ferry/cargo?endpoint=http://127.0.0.1:{server.getsockname()[1]}&region=us-east-1"


@TRACKS
def test_a_result_goes_into_the_store_when_its_place_does_not_answer(
    silence: str, monkeypatch: pytest.MonkeyPatch, track: Track
) -> None:
    monkeypatch.setattr(outside, "_PATIENCE", 0.05)
    executor = InProcess(_app(silence), places=1)

    (assignment,) = executor.assign([claim(f"{track}.make")], track)
    outcome = executor.outcome(assignment)
    (after,) = executor.assign([claim(f"{track}.size", {"data": b"few"})], track)

    assert outcome.kind is OutcomeKind.SUCCEEDED
    assert not is_reference(outcome.result)
    assert len(outcome.result or b"") > LARGE
    assert executor.outcome(after).kind is OutcomeKind.SUCCEEDED
    executor.close()


@TRACKS
def test_a_result_that_the_store_cannot_take_is_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch, track: Track
) -> None:
    monkeypatch.setattr(outside, "_PATIENCE", 0.0)
    executor = InProcess(_app(url, max_payload=15_000), places=1)

    (assignment,) = executor.assign([claim(f"{track}.make")], track)

    assert is_reference(executor.outcome(assignment).result)
    executor.close()
