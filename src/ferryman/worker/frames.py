"""What a supervisor and its executors say to each other over a socket pair.

A frame is four bytes of length, big-endian, and a MessagePack array of its kind and its body. Batches
travel in one frame. Arguments and results stay bytes: the supervisor passes them on without a look.
"""

from __future__ import annotations

import enum
import socket
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from ferryman.config import Settings
from ferryman.errors import FerrymanError
from ferryman.job import Claim, JobId, Outcome
from ferryman.policy.retry import Retry
from ferryman.store.records import JobNote, QueueSettings

__all__ = [
    "MAX_FRAME_BYTES",
    "URL_VARIABLE",
    "Assignment",
    "CancelRequest",
    "ExecutorHello",
    "Frame",
    "FrameError",
    "FrameReader",
    "Kind",
    "Returned",
    "TaskFacts",
    "Track",
    "encode_batch",
    "encode_frame",
    "write_batch",
    "write_frame",
]

MAX_FRAME_BYTES = 64 * 1024 * 1024

URL_VARIABLE = "FERRYMAN_URL_OF_COMMAND"
"""In an executor's environment: the store that the command line named."""

Track = Literal["thread", "loop"]
"""Where a task runs: ``def`` tasks in threads, ``async def`` tasks in an event loop."""


class FrameError(FerrymanError):
    """What should be sent exceeds `MAX_FRAME_BYTES`, or what came is no frame: then the stream is of no use."""


class Kind(enum.IntEnum):
    """What a frame is about. The comment names the body."""

    # From the supervisor to the executor.
    RUN = 1  # list[Assignment]
    CANCEL = 2  # CancelRequest
    RECALL = 3  # None: give back what has not been started
    PING = 4  # int
    DRAIN = 5  # None: as RECALL, then finish what runs and end

    # From the executor to the supervisor.
    HELLO = 16  # ExecutorHello
    BROKEN = 17  # str: the app could not be loaded, and what to do about it
    DONE = 18  # list[Outcome]
    RETURNED = 19  # list[Returned]
    NOTES = 20  # list[JobNote], always ahead of the DONE of the same job
    PONG = 21  # int: the PING's
    BYE = 22  # None: drained


class Assignment(msgspec.Struct, frozen=True, array_like=True):
    """One job for an executor. Serial numbers count up from 1 by executor and track."""

    serial: int
    claim: Claim


class CancelRequest(msgspec.Struct, frozen=True, array_like=True):
    """Stop this job, whether it has been started or not."""

    serial: int
    track: Track
    reason: str | None = None


class Returned(msgspec.Struct, frozen=True, array_like=True):
    """A job that was given back without having been started."""

    id: JobId
    lease: int


class TaskFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor needs to know of a task to judge in the executor's stead after a kill."""

    name: str
    track: Track
    timeout: float | None = None
    """Seconds."""
    max_memory: int | None = None
    """MiB."""
    retry: Retry = Retry()
    """Only the fields that can be written down."""
    at_most_once: bool = False


class ExecutorHello(msgspec.Struct, frozen=True, kw_only=True):
    """An executor's first words, once the app is loaded."""

    pid: int
    url: str
    settings: Settings
    tasks: list[TaskFacts]
    queues: list[QueueSettings]


class Frame(NamedTuple):
    """A frame as it was received; the type of `body` is said at `Kind`."""

    kind: Kind
    body: Any


_ENCODER = msgspec.msgpack.Encoder()

_BODIES: dict[Kind, Any] = {
    Kind.RUN: list[Assignment],
    Kind.CANCEL: CancelRequest,
    Kind.RECALL: None,
    Kind.PING: int,
    Kind.DRAIN: None,
    Kind.HELLO: ExecutorHello,
    Kind.BROKEN: str,
    Kind.DONE: list[Outcome],
    Kind.RETURNED: list[Returned],
    Kind.NOTES: list[JobNote],
    Kind.PONG: int,
    Kind.BYE: None,
}

_DECODERS: dict[int, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(body) for kind, body in _BODIES.items()
}

_LENGTH_BYTES = 4
_ARRAY_OF_TWO = 0x92
"""MessagePack's head of an array of two; the kind follows in one byte, since it is below 128."""


def encode_frame(kind: Kind, body: Any = None) -> bytes:
    """The bytes of one frame. Raises FrameError."""
    data = _ENCODER.encode(body)
    if len(data) + 2 > MAX_FRAME_BYTES:
        raise FrameError(
            f"a {kind.name} frame of {len(data):,} bytes is more than the {MAX_FRAME_BYTES:,} allowed; "
            "store large data elsewhere and pass a reference, or lower max_payload"
        )
    return b"%b%c%c%b" % ((len(data) + 2).to_bytes(_LENGTH_BYTES, "big"), _ARRAY_OF_TWO, kind, data)


def encode_batch(kind: Kind, items: Sequence[Any]) -> list[bytes]:
    """The bytes of a list, as one frame or, if that were too large, as several in the same order.

    Raises FrameError if a single item is too large.
    """
    try:
        return [encode_frame(kind, items)]
    except FrameError:
        if len(items) == 1:
            raise
    half = len(items) // 2
    return encode_batch(kind, items[:half]) + encode_batch(kind, items[half:])


def write_frame(sock: socket.socket, kind: Kind, body: Any = None) -> None:
    """Send one frame over a blocking socket. Raises FrameError, OSError."""
    sock.sendall(encode_frame(kind, body))


def write_batch(sock: socket.socket, kind: Kind, items: Sequence[Any]) -> None:
    """Send a list over a blocking socket, in as many frames as it takes. Raises FrameError, OSError."""
    for frame in encode_batch(kind, items):
        sock.sendall(frame)


class FrameReader:
    """Puts frames together from the bytes of a stream. Not thread-safe."""

    __slots__ = ("_partial", "_wanted")

    def __init__(self) -> None:
        self._partial = bytearray()
        self._wanted = 0
        """How long `_partial` must become before it is worth another look."""

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that these bytes complete. Raises FrameError; the stream is of no use then."""
        if self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return []
            data = bytes(self._partial)
            self._partial.clear()
        frames: list[Frame] = []
        start, view = 0, memoryview(data)
        while True:
            body = start + _LENGTH_BYTES
            if len(data) < body:
                self._wanted = _LENGTH_BYTES
                break
            length = int.from_bytes(view[start:body], "big")
            if length > MAX_FRAME_BYTES:
                raise FrameError(
                    f"a frame announces {length:,} bytes, more than the {MAX_FRAME_BYTES:,} allowed: "
                    "something else has written to the socket"
                )
            end = body + length
            if len(data) < end:
                self._wanted = end - start
                break
            frames.append(_decode(view[body:end]))
            start = end
        self._partial += view[start:]
        return frames


def _decode(frame: memoryview) -> Frame:
    if len(frame) < 3 or frame[0] != _ARRAY_OF_TWO or frame[1] not in _DECODERS:
        raise FrameError(f"a frame of unknown kind begins with {bytes(frame[:2]).hex() or 'nothing'}")
    kind = Kind(frame[1])
    try:
        return Frame(kind, _DECODERS[kind].decode(frame[2:]))
    except msgspec.DecodeError as error:
        raise FrameError(f"a {kind.name} frame cannot be read: {error}") from error
