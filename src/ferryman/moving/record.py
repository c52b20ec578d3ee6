"""What a store remembers of a move from it, so that a move that was killed can go on."""

from __future__ import annotations

import os
import socket
from typing import ClassVar

import msgspec

from ferryman.job import WorkerId
from ferryman.store.port import Store
from ferryman.store.records import WorkerInfo
from ferryman.worker.identity import place, process_birth

__all__ = ["LOCK", "LOCK_TTL", "Record", "read_record", "write_record"]

LOCK = "ferryman.move"
LOCK_TTL = 30_000
"""ms that a mover who says nothing is believed to be at it."""


class Record(msgspec.Struct, frozen=True):
    """A move that has begun."""

    KEY: ClassVar[str] = "ferryman.move"

    owner: str
    """Of the lock."""
    to: str
    """The URL of the store to which the jobs go, without passwords."""
    paused: tuple[str, ...]
    """Queues that were paused before."""
    mover: WorkerInfo
    """The process that moves."""
    name: str = ""
    """Of the move itself; it stays the same when it is begun again."""
    begun: int = 0
    """When it began first, by the time of the store from which the jobs go."""

    @classmethod
    def new(cls, owner: str, to: str, paused: tuple[str, ...], begun: int, name: str = "") -> Record:
        """Of a move by this process."""
        info = WorkerInfo(
            id=WorkerId(owner), host=socket.gethostname(), place=place(), pid=os.getpid(),
            pid_birth=process_birth(os.getpid()), queues=(), tasks=(), concurrency=0,
        )  # fmt: skip
        return cls(owner, to, paused, info, name or owner, begun)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Record).decode


def read_record(store: Store) -> Record | None:
    """The move from this store that was begun last and has not ended."""
    entry = store.runner().run(store.kv_get(Record.KEY))
    return None if entry is None else _decode(entry.value)


def write_record(store: Store, record: Record) -> None:
    """Remember a move. Whoever does so has the lock."""
    runner = store.runner()
    entry = runner.run(store.kv_get(Record.KEY))
    runner.run(store.kv_put(Record.KEY, _encode(record), expected=None if entry is None else entry.version))
