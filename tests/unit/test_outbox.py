"""What an executor says gets to its supervisor whole and in order, and nobody who says it has to wait."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from ferryman.job import Outcome, OutcomeKind, new_id
from ferryman.worker.frames import FrameReader, Kind
from ferryman.worker.outbox import Outbox


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with ours, theirs:
        yield ours, theirs


def _outcomes(count: int, size: int) -> list[Outcome]:
    return [Outcome(new_id(), 1, OutcomeKind.SUCCEEDED, result=os.urandom(size)) for _ in range(count)]


def _read(sock: socket.socket, count: int) -> list[Outcome]:
    reader = FrameReader()
    found: list[Outcome] = []
    while len(found) < count:
        for frame in reader.feed(sock.recv(1 << 16)):
            assert frame.kind is Kind.DONE
            found += frame.body
    return found


def test_nobody_waits_for_a_supervisor_that_does_not_read(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    outbox = Outbox(theirs)
    outcomes = _outcomes(20, 300_000)

    # Without a flusher: had any of these waited for the reader, it would have waited for ever.
    for outcome in outcomes:
        outbox.settle(outcome, now_ns=0, idle=True)
    outbox.start()

    assert _read(ours, 20) == outcomes
    outbox.close()


def test_what_many_say_at_once_arrives_once_each_while_the_supervisor_reads_slowly(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = ends
    outbox = Outbox(theirs)
    outbox.start()
    outcomes = _outcomes(300, 20_000)

    for outcome in outcomes:
        outbox.settle(outcome, now_ns=0, idle=False)
        outbox.flush()

    assert _read(ours, 300) == outcomes
    outbox.close()
