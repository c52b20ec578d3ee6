"""An executor as its supervisor sees it: what it was given, what it runs, and how it answers."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from ferryman.job import Claim, JobId, Outcome
from ferryman.options import Overrides
from ferryman.policy.prefetch import Pace
from ferryman.worker.frames import (
    URL_VARIABLE,
    Assignment,
    CancelRequest,
    Frame,
    FrameError,
    FrameReader,
    Kind,
    TaskFacts,
    Track,
    encode_batch,
    encode_frame,
)
from ferryman.worker.slots import SlotTable

__all__ = ["Casualty", "Held", "Launch", "Launched", "Member", "launch_process"]

_READ_BYTES = 1 << 18

log = logging.getLogger("ferryman.worker")

_PATIENCE = 0.05
"""Seconds for which an executor may leave a ping unanswered before it counts as stalled."""


class Launched(Protocol):
    """A started executor: a process, or a thread of this one."""

    sock: socket.socket
    table: SlotTable
    pid: int

    can_kill: bool
    """Whether `kill` ends it at once, whatever it runs: a thread cannot be."""

    def kill(self) -> None:
        """End it at once if that is possible; else have it end when it can."""
        ...

    def has_ended(self) -> bool:
        """Whether it lives no more, for certain. Its socket may still be open: what C code has forked can hold that."""
        ...

    def close(self) -> None:
        """Let go of it once it has ended."""
        ...


Launch = Callable[[int], Launched]
"""Starts an executor with so many places."""


class Held(NamedTuple):
    """A job that an executor was given."""

    claim: Claim
    serial: int
    track: Track
    timeout: float | None
    """Seconds that an attempt may take."""
    max_memory: int | None
    """MiB that the executor may take meanwhile."""


class Casualty(NamedTuple):
    """A job that an executor had when it was lost."""

    claim: Claim
    started: bool
    fetching: bool
    """Not started: its arguments were on their way."""
    ran_us: int


class Member:
    """One executor. Nothing here blocks: what the executor does not read yet is kept. Not thread-safe."""

    def __init__(self, launched: Launched, places: int) -> None:
        now = time.monotonic()
        self.launched = launched
        self.places = places
        self.jobs: dict[JobId, Held] = {}
        self.ready = False
        """It has said hello..."""
        self.facts: Mapping[str, TaskFacts] = {}
        """... and what tasks it has, which need not be what others have: code is reloaded."""
        self.retiring = False
        """It gets no more jobs."""
        self.solo: JobId | None = None
        """A suspect that it runs alone."""
        self.relief = False
        """It was started because all others were stalled."""
        self.doomed: dict[JobId, Outcome] = {}
        """Jobs for whose sake it is about to be killed, and what becomes of them."""
        self.cancelling: dict[JobId, tuple[float, str]] = {}
        """Jobs that were told to stop: when that must have happened, and why."""
        self.stalled = False
        self.farewell: float | None = None
        """When it said that it ends; its process may take its time."""
        self.done = 0
        self.idle_since = now
        self.pace = Pace(now, places)
        self._serials: dict[Track, int] = {"thread": 0, "loop": 0}
        self._reader = FrameReader()
        self._unsent = bytearray()
        self._ping = 0
        self._pinged_at: float | None = None
        self._progress_at = now
        self._recalled = False
        launched.sock.setblocking(False)

    # -- talking -----------------------------------------------------------------------------------

    def fileno(self) -> int:
        return self.launched.sock.fileno()

    @property
    def wants_to_write(self) -> bool:
        return bool(self._unsent)

    def send(self, kind: Kind, body: object = None) -> None:
        """Send a frame, now or as soon as the executor reads."""
        self._unsent += encode_frame(kind, body)
        self.flush()

    def flush(self) -> None:
        """Send as much as the executor takes. Its death will be seen by `receive`."""
        with contextlib.suppress(BlockingIOError, OSError):
            while self._unsent:
                sent = self.launched.sock.send(self._unsent)
                del self._unsent[:sent]

    def receive(self) -> list[Frame] | None:
        """The frames that have come; None once the executor is dead."""
        frames: list[Frame] = []
        try:
            while not frames:
                data = self.launched.sock.recv(_READ_BYTES)
                if not data:
                    return None
                frames = self._reader.feed(data)
        except BlockingIOError:
            pass
        except OSError:
            return None
        except FrameError as error:
            self.reject(str(error))
            return None
        return frames

    def reject(self, reason: str) -> None:
        """What it says is of no use, and so is it."""
        log.error("executor %d is ended: %s", self.launched.pid, reason)
        self.launched.kill()

    # -- jobs --------------------------------------------------------------------------------------

    def assign(self, claims: Sequence[Claim]) -> None:
        """Hand over jobs."""
        if not self.jobs:
            self._progress_at = time.monotonic()  # Its rest was no silence.
        assignments: list[Assignment] = []
        for claim in claims:
            fact = self.facts.get(claim.task)
            track: Track = fact.track if fact else "thread"
            self._serials[track] += 1
            held = Held(claim, self._serials[track], track, *_limits(claim, fact))
            self.jobs[claim.id] = held
            assignments.append(Assignment(held.serial, claim))
        if not assignments:
            return
        self._recalled = False
        for frame in encode_batch(Kind.RUN, assignments):
            self._unsent += frame
        self.flush()

    def take_off(self, id_: JobId, lease: int) -> Held | None:
        """The executor has done with a job, or gave it back."""
        held = self.jobs.get(id_)
        if held is None or held.claim.lease != lease:
            return None
        del self.jobs[id_]
        self.cancelling.pop(id_, None)
        if self.solo == id_:
            self.solo = None
        return held

    def progressed(self, outcomes: Sequence[Outcome], now: float) -> None:
        """These jobs were done just now."""
        self.done += len(outcomes)
        self.pace.record(len(outcomes), sum([outcome.ran_us for outcome in outcomes]) / 1e6, now)
        self._progress_at = now
        if not self.jobs:
            self.idle_since = now

    @property
    def takes_jobs(self) -> bool:
        """Whether it may be given any job."""
        return self.ready and not self.retiring and self.solo is None and not self.doomed

    def room(self, now: float) -> int:
        """How many more jobs it should have."""
        if not self.takes_jobs:
            return 0
        return max(0, self.places + self.pace.ahead(now) - len(self.jobs))

    def places_free(self) -> int:
        """How many jobs it could start at once, however slow it is."""
        if not self.takes_jobs:
            return 0
        return max(0, self.places - len(self.jobs))

    def cancel(self, held: Held, reason: str | None) -> None:
        """Ask it to stop a job."""
        self.send(Kind.CANCEL, CancelRequest(held.serial, held.track, reason))

    def has_started(self, held: Held) -> bool:
        """Whether a job was started, as the shared memory tells, even after the executor's death."""
        return self.launched.table.has_started(held.track, held.serial)

    def running(self) -> list[tuple[Held, float]]:
        """The jobs that run, with the seconds since they were started."""
        by_serial = {(held.track, held.serial): held for held in self.jobs.values()}
        now_ms = time.monotonic_ns() // 1_000_000
        tracks: tuple[Track, Track] = ("thread", "loop")
        return [
            (by_serial[track, serial], (now_ms - started_ms) / 1000)
            for track in tracks
            for serial, started_ms in self.launched.table.running(track)
            if (track, serial) in by_serial
        ]

    def casualties(self) -> list[Casualty]:
        """What it had when it was lost: readable until `launched` is closed."""
        ran = {held.claim.id: elapsed for held, elapsed in self.running()}
        is_fetching = self.launched.table.is_fetching
        return [
            Casualty(
                held.claim,
                self.has_started(held),
                is_fetching(held.track, held.serial),
                int(ran.get(held.claim.id, 0) * 1_000_000),
            )
            for held in self.jobs.values()
        ]

    # -- health ------------------------------------------------------------------------------------

    def probe(self, now: float) -> None:
        """Look whether it answers: a task that hogs the interpreter lets it stall. Call this often; `now` is when it
        was last listened to."""
        if not self.ready:
            return
        if self._pinged_at is not None:
            self.stalled = self.stalled or now - self._pinged_at > _PATIENCE
        elif self.jobs and now - self._progress_at > _PATIENCE:
            self._ping += 1
            self.send(Kind.PING, self._ping)
            self._pinged_at = time.monotonic()
        elif not self.jobs:
            self.stalled = False
        if self.jobs and now - self._progress_at > _PATIENCE and not self._recalled:
            self._recall_waiting()

    def answered(self, ping: int, at: float) -> None:
        """It answered a ping, not before `at`."""
        if ping == self._ping and self._pinged_at is not None:
            self.stalled = at - self._pinged_at > _PATIENCE / 4
            self._pinged_at = None

    def _recall_waiting(self) -> None:
        """What waits behind jobs that take long may be started sooner elsewhere."""
        self._recalled = True
        if not all(self.has_started(held) for held in self.jobs.values()):
            self.send(Kind.RECALL)

    def memory(self) -> int:
        """MiB of memory that it takes; 0 if that cannot be told."""
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{self.launched.pid}/statm") as statm:
            return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
        return 0


def _limits(claim: Claim, fact: TaskFacts | None) -> tuple[float | None, int | None]:
    timeout = fact.timeout if fact else None
    max_memory = fact.max_memory if fact else None
    if claim.options is not None:
        with contextlib.suppress(msgspec.DecodeError):  # the executor says so to whoever must know
            overrides = msgspec.msgpack.decode(claim.options, type=Overrides)
            timeout = timeout if overrides.timeout is None else overrides.timeout
            max_memory = max_memory if overrides.max_memory is None else overrides.max_memory
    return timeout or None, max_memory or None


# -- processes -------------------------------------------------------------------------------------


class _Process:
    """An executor that is a child process."""

    can_kill = True

    def __init__(self, sock: socket.socket, table: SlotTable, process: subprocess.Popen[bytes]) -> None:
        self.sock = sock
        self.table = table
        self.pid = process.pid
        self._process = process

    def kill(self) -> None:
        self._process.kill()

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def close(self) -> None:
        self.sock.close()
        self._process.kill()
        self._process.wait()
        self.table.close()


def launch_process(target: str, places: int, url: str | None = None) -> Launched:
    """Start a child process that loads the app `target` names; `url` has precedence over the app's own."""
    ours, theirs = socket.socketpair()
    table = SlotTable.create(places)
    try:
        process = subprocess.Popen(  # noqa: S603
            [
                sys.executable, "-m", "ferryman.worker.child", target,
                "--socket-fd", str(theirs.fileno()), "--slots-fd", str(table.fd), "--places", str(places),
            ],
            pass_fds=(theirs.fileno(), table.fd),
            stdin=subprocess.DEVNULL,
            # ^C at a terminal is the supervisor's to handle; it shall not reach programs that tasks have started.
            process_group=0,
            env=None if url is None else {**os.environ, URL_VARIABLE: url},
        )  # fmt: skip
    except BaseException:
        ours.close()
        table.close()
        raise
    finally:
        theirs.close()
    return _Process(ours, table, process)
