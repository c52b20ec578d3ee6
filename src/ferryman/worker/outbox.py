"""What an executor has to say, on its way to the supervisor in batches.

Outcomes go out at once when there is nothing else to do, and else a millisecond later at most, so that few
jobs run twice when everything is killed. While there is nothing to send, nobody wakes up.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from ferryman.errors import PayloadError
from ferryman.job import JobId, Outcome, OutcomeKind
from ferryman.store.records import JobNote
from ferryman.values import plain_text
from ferryman.worker.bell import Bell
from ferryman.worker.frames import FrameError, Kind, encode_batch, encode_frame
from ferryman.worker.judge import describe

__all__ = ["Outbox"]

_CADENCE_NS = 1_000_000
_MAX_NOTE = 4_000

log = logging.getLogger("ferryman.worker")


class Outbox:
    """Thread-safe. Its lists are appended to without a lock: only who holds the lock takes from their fronts."""

    __slots__ = (
        "_asleep",
        "_bell",
        "_closed",
        "_due_ns",
        "_frames",
        "_lock",
        "_notes",
        "_outcomes",
        "_sock",
        "_unsent",
    )

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._outcomes: list[Outcome] = []
        self._notes: list[JobNote] = []
        self._frames: list[bytes] = []
        self._unsent = b""
        """The rest of what has been sent in part."""
        self._lock = threading.Lock()
        self._due_ns = 0
        self._asleep = False
        self._closed = False
        self._bell = Bell()

    def start(self) -> None:
        """Start the thread that sends what nobody else does."""
        threading.Thread(target=self._serve, name="ferryman-flusher", daemon=True).start()

    def settle(self, outcome: Outcome, now_ns: int, idle: bool) -> None:
        """Send an outcome: at once if its sender is idle, else soon. `now_ns` is by `time.monotonic_ns`."""
        self._outcomes.append(outcome)
        if idle or now_ns >= self._due_ns:
            self.flush()
        elif self._asleep:
            self._bell.ring()

    def note(self, note: JobNote) -> None:
        """Send what a job says of itself, soon."""
        if note.text is not None:
            note = JobNote(note.id, note.lease, note.progress, plain_text(note.text, _MAX_NOTE))
        self._notes.append(note)
        if self._asleep:
            self._bell.ring()

    def post(self, kind: Kind, body: Any = None) -> None:
        """Send another frame, behind the outcomes so far. Does not block: the flusher writes it.

        A reader that wrote could wait for a supervisor that waits for the reader.
        """
        self._frames.append(encode_frame(kind, body))
        self._bell.ring()

    def flush(self) -> None:
        """Send what there is, unless another thread is at it: that one looks again afterwards. Does not block, since an
        event loop may do it: what a supervisor in the middle of a call does not take now is left to the flusher."""
        self._flush(wait=False)

    def _flush(self, *, wait: bool) -> None:
        while self._has_something():
            if not self._lock.acquire(blocking=False):
                if wait:
                    self._bell.wait(_CADENCE_NS / 1e9)
                return
            try:
                self._send(wait=wait)
            finally:
                self._lock.release()
            if self._unsent:
                self._bell.ring()
                return

    def _has_something(self) -> bool:
        return bool(self._unsent or self._outcomes or self._notes or self._frames)

    def close(self) -> None:
        """Send the rest, and nothing from then on."""
        with self._lock:
            self._send(wait=True)
            self._closed = True
        self._bell.ring()

    def abandon(self) -> None:
        """Drop the rest: there is nobody to send it to."""
        self._closed = True
        self._bell.ring()

    def _serve(self) -> None:
        while not self._closed:
            self._asleep = True
            # Who appended before that did not ring, hence the look; who appends after it does.
            if not self._has_something():
                self._bell.wait()
            self._asleep = False
            if not (self._frames or self._unsent):
                self._bell.wait(_CADENCE_NS / 1e9)
            self._flush(wait=True)

    def _send(self, *, wait: bool) -> None:
        if self._unsent and not self._pass_on(self._unsent, wait=wait):
            return
        # Outcomes are counted before notes are taken: so the notes of these jobs are among those taken.
        frames, outcomes = _take(self._frames), _take(self._outcomes)
        notes = _take(self._notes)
        self._due_ns = time.monotonic_ns() + _CADENCE_NS
        if self._closed:
            return
        parts: list[bytes] = []
        if notes:
            parts += _encode_notes(_latest(notes))
        if outcomes:
            parts += _encode_outcomes(outcomes)
        self._pass_on(b"".join(parts + frames), wait=wait)

    def _pass_on(self, data: bytes, *, wait: bool) -> bool:
        """Send these bytes, or as many as are taken. Answers whether it was all."""
        self._unsent = b""
        try:
            if wait:
                self._sock.sendall(data)
            else:
                self._unsent = data[self._sock.send(data, socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            self._unsent = data
        except OSError:
            # The supervisor is gone; the reader sees it too and ends the executor.
            self._closed = True
        return not self._unsent


def _take(items: list[Any]) -> list[Any]:
    count = len(items)
    taken = items[:count]
    del items[:count]
    return taken


def _latest(notes: Sequence[JobNote]) -> list[JobNote]:
    """All texts, but of each job's progress only the last report."""
    reported: set[JobId] = set()
    kept: list[JobNote] = []
    for note in reversed(notes):
        if note.progress is not None:
            if note.id in reported:
                if note.text is None:
                    continue
                note = JobNote(note.id, note.lease, None, note.text)
            reported.add(note.id)
        kept.append(note)
    kept.reverse()
    return kept


def _encode_notes(notes: Sequence[JobNote]) -> list[bytes]:
    try:
        return encode_batch(Kind.NOTES, notes)
    except (FrameError, TypeError, ValueError):
        log.exception("%d notes of running jobs cannot be sent and are dropped", len(notes))
        return []


def _encode_outcomes(outcomes: Sequence[Outcome]) -> list[bytes]:
    try:
        return encode_batch(Kind.DONE, outcomes)
    except (FrameError, TypeError, ValueError):
        return [part for outcome in outcomes for part in _encode_one(outcome)]


def _encode_one(outcome: Outcome) -> list[bytes]:
    try:
        return encode_batch(Kind.DONE, [outcome])
    except (FrameError, TypeError, ValueError) as error:
        problem = PayloadError(f"the task ran to its end, but its outcome cannot be sent: {error}")
        dead = Outcome(outcome.id, outcome.lease, OutcomeKind.DEAD, outcome.ran_us, error=describe(problem))
        return encode_batch(Kind.DONE, [dead])
