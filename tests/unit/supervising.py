"""The supervisor's side of an executor, for tests: sends frames and collects what comes back."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ferryman.app import App
from ferryman.codec import Codec
from ferryman.job import Claim, JobId, Outcome, new_id
from ferryman.options import Overrides
from ferryman.store.records import JobNote
from ferryman.worker.executor import Executor
from ferryman.worker.frames import Assignment, CancelRequest, Frame, FrameReader, Kind, Track, write_frame
from ferryman.worker.slots import SlotTable

PATIENCE = 30.0
"""Seconds until a test that waits for something that never comes gives up."""

_CODEC = Codec()


def claim(task: str, arguments: Mapping[str, Any] | None = None, **fields: Any) -> Claim:
    """A leased job as a store would hand it out; keywords of `Overrides` go into its options."""
    overrides = {name: fields.pop(name) for name in Overrides.__struct_fields__ if name in fields}
    values: dict[str, Any] = {
        "id": new_id(), "task": task, "queue": "default", "lease": 1, "attempt": 1, "max_attempts": 4,
        "deaths": 0, "enqueued_at": 0, "ready_at": 0, "args": _CODEC.encode(dict(arguments or {})),
        "options": msgspec.msgpack.encode(Overrides(**overrides)) if overrides else None,
    }  # fmt: skip
    return Claim(**(values | fields))


class Supervised:
    """An executor, seen from its supervisor. Not thread-safe."""

    def __init__(self, sock: socket.socket, table: SlotTable) -> None:
        self.sock = sock
        self.table = table
        self.frames: list[Frame] = []
        self.serials: dict[Track, int] = {"thread": 0, "loop": 0}
        self._reader = FrameReader()
        sock.settimeout(PATIENCE)

    def send(self, kind: Kind, body: Any = None) -> None:
        write_frame(self.sock, kind, body)

    def assign(self, claims: Iterable[Claim], track: Track = "thread") -> list[Assignment]:
        """Number these jobs on and have them run."""
        assignments = []
        for each in claims:
            self.serials[track] += 1
            assignments.append(Assignment(self.serials[track], each))
        self.send(Kind.RUN, assignments)
        return assignments

    def run(self, task: str, arguments: Mapping[str, Any] | None = None, **fields: Any) -> Outcome:
        """Run one job and wait for its outcome."""
        (assignment,) = self.assign([claim(task, arguments, **fields)])
        return self.outcome(assignment)

    def cancel(self, assignment: Assignment, reason: str | None = None, track: Track = "thread") -> None:
        self.send(Kind.CANCEL, CancelRequest(assignment.serial, track, reason))

    def frame(self, kind: Kind) -> Frame:
        """The next frame of a kind that has not been asked for, waited for if need be."""
        while True:
            for number, frame in enumerate(self.frames):
                if frame.kind is kind:
                    return self.frames.pop(number)
            if not self._receive():
                raise EOFError(f"the executor is gone, and sent no {kind.name}; it sent {self.frames}")

    def outcomes(self, count: int) -> list[Outcome]:
        """The next so many outcomes."""
        found: list[Outcome] = []
        while len(found) < count:
            found += self.frame(Kind.DONE).body
        assert len(found) == count
        return found

    def outcome(self, assignment: Assignment) -> Outcome:
        (found,) = self.outcomes(1)
        assert found.id == assignment.claim.id
        return found

    def returned(self) -> list[JobId]:
        return [each.id for each in self.frame(Kind.RETURNED).body]

    def notes(self, count: int) -> list[JobNote]:
        """The next so many notes of running jobs."""
        found: list[JobNote] = []
        while len(found) < count:
            found += self.frame(Kind.NOTES).body
        assert len(found) == count
        return found

    def rest(self) -> list[Frame]:
        """What else came until the executor ended."""
        while self._receive():
            pass
        return self.frames

    def _receive(self) -> bool:
        data = self.sock.recv(1 << 16)
        self.frames += self._reader.feed(data)
        return bool(data)


class InProcess(Supervised):
    """An executor in a thread of this process."""

    def __init__(self, app: App, places: int = 2) -> None:
        here, there = socket.socketpair()
        super().__init__(here, SlotTable.create(places))
        self._there = there
        self.executor = Executor(app, there, self.table, "the app tests:app")
        self.drained: bool | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self.hello = self.frame(Kind.HELLO).body

    def close(self) -> None:
        """End it, and check that it ends."""
        self.sock.close()
        self.join()
        self._there.close()

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        self.drained = self.executor.run()


class Child(Supervised):
    """An executor in a process of its own."""

    def __init__(self, folder: Path, target: str, places: int = 2) -> None:
        here, there = socket.socketpair()
        super().__init__(here, SlotTable.create(places))
        fds = (there.fileno(), self.table.fd)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ferryman.worker.child", target,
             "--socket-fd", str(fds[0]), "--slots-fd", str(fds[1]), "--places", str(places)],
            pass_fds=fds, cwd=folder, stderr=subprocess.PIPE, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        there.close()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.sock.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=PATIENCE)
        self.table.close()
