"""Frames: what goes in at one end comes out at the other, however the stream is cut."""

from __future__ import annotations

import os
import random
import socket

import pytest

from ferryman.config import Settings
from ferryman.job import ErrorInfo, JobId, Outcome, OutcomeKind
from ferryman.policy.retry import Retry
from ferryman.store.records import JobNote, QueueSettings
from ferryman.worker import frames
from ferryman.worker.frames import (
    Assignment,
    CancelRequest,
    ExecutorHello,
    Frame,
    FrameError,
    FrameReader,
    Kind,
    Returned,
    TaskFacts,
    encode_batch,
    encode_frame,
    write_batch,
)

from .supervising import claim

BODIES = {
    Kind.RUN: [Assignment(1, claim("a")), Assignment(2, claim("b", {"x": "y"}, key="k", timeout=3.0))],
    Kind.CANCEL: CancelRequest(7, "loop", "no longer wanted"),
    Kind.RECALL: None,
    Kind.PING: 3,
    Kind.DRAIN: None,
    Kind.HELLO: ExecutorHello(
        pid=1,
        url="memory://",
        settings=Settings(),
        tasks=[TaskFacts(name="t", track="loop", timeout=1.5, retry=Retry(base=3, backoff="linear"))],
        queues=[QueueSettings(name="q", fair=True, weights={"acme": 2.0})],
    ),
    Kind.BROKEN: "there is no module 'tasks'",
    Kind.DONE: [
        Outcome(JobId("1"), 1, OutcomeKind.SUCCEEDED, 12, b"\x01\xc0"),
        Outcome(JobId("2"), 2, OutcomeKind.RETRY, error=ErrorInfo("ValueError", "ä")),
    ],
    Kind.RETURNED: [Returned(JobId("1"), 4)],
    Kind.NOTES: [JobNote(JobId("1"), 4, 0.5, "half")],
    Kind.PONG: 3,
    Kind.BYE: None,
}

ALL = [Frame(kind, body) for kind, body in BODIES.items()]
STREAM = b"".join(encode_frame(*frame) for frame in ALL)


def test_every_kind_has_an_example_here() -> None:
    assert set(BODIES) == set(Kind)


def test_every_frame_comes_out_as_it_went_in() -> None:
    assert FrameReader().feed(STREAM) == ALL


def test_frames_come_out_whole_though_bytes_come_one_by_one() -> None:
    reader = FrameReader()

    received = [frame for byte in STREAM for frame in reader.feed(bytes([byte]))]

    assert received == ALL


@pytest.mark.parametrize("seed", range(20))
def test_frames_come_out_whole_wherever_the_stream_is_cut(seed: int) -> None:
    dice = random.Random(seed)
    cuts = sorted(dice.sample(range(len(STREAM) * 3), 12))
    stream = STREAM * 3
    reader = FrameReader()

    received: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += reader.feed(stream[start:end])

    assert received == ALL * 3


def test_a_large_frame_is_put_together_from_many_pieces() -> None:
    payload = os.urandom(3_000_000)
    frame = encode_frame(Kind.DONE, [Outcome(JobId("1"), 1, OutcomeKind.SUCCEEDED, 1, payload)])
    reader = FrameReader()

    received = [each for i in range(0, len(frame), 5_000) for each in reader.feed(frame[i : i + 5_000])]

    assert [outcome.result for outcome in received[0].body] == [payload]


def test_a_frame_that_announces_too_much_is_refused() -> None:
    with pytest.raises(FrameError, match=r"4,294,967,295 bytes, more than the 67,108,864"):
        FrameReader().feed(b"\xff\xff\xff\xff")


@pytest.mark.parametrize("frame", [b"", b"\x92", b"\x92\x63\xc0", b"\x93\x01\xc0", b"GET / HTTP/1.1"])
def test_what_is_no_frame_is_refused(frame: bytes) -> None:
    with pytest.raises(FrameError, match="unknown kind"):
        FrameReader().feed(len(frame).to_bytes(4, "big") + frame)


def test_a_frame_with_a_wrong_body_is_refused_by_name() -> None:
    with pytest.raises(FrameError, match="RUN frame cannot be read"):
        FrameReader().feed(encode_frame(Kind.RUN, "nonsense"))


def test_what_exceeds_a_frame_is_refused_before_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 100)

    with pytest.raises(FrameError, match=r"BROKEN frame of 202 bytes.*max_payload"):
        encode_frame(Kind.BROKEN, "x" * 200)


def test_a_batch_that_exceeds_a_frame_is_sent_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "MAX_FRAME_BYTES", 200)
    outcomes = [Outcome(JobId(str(i)), i, OutcomeKind.SUCCEEDED, 1, bytes(50)) for i in range(9)]

    parts = encode_batch(Kind.DONE, outcomes)

    received = FrameReader().feed(b"".join(parts))
    assert len(parts) > 2
    assert all(len(part) <= 204 for part in parts)
    assert [outcome for frame in received for outcome in frame.body] == outcomes


def test_a_batch_is_written_to_a_socket() -> None:
    here, there = socket.socketpair()
    with here, there:
        write_batch(here, Kind.RETURNED, [Returned(JobId("1"), 1)])

        assert FrameReader().feed(there.recv(1_000)) == [(Kind.RETURNED, [Returned(JobId("1"), 1)])]
