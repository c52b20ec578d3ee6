"""Workers as stores keep them, and the records that are made of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec

from ferryman.job import WorkerId
from ferryman.store.records import WorkerInfo, WorkerRecord, WorkerStatus

__all__ = ["record_of"]

_decode_info = msgspec.msgpack.Decoder(WorkerInfo).decode
_decode_status = msgspec.msgpack.Decoder(WorkerStatus).decode


def record_of(
    name: str, info: bytes, status: bytes, times: Sequence[int], gone: Literal["stopped", "dead"] | None
) -> WorkerRecord:
    """`times` are those of its registration, its last heartbeat and the end of its lease.

    What cannot be read, since a newer Ferryman wrote it, is no reason to leave a worker out: somebody must see that its
    lease ends.
    """
    registered_at, seen_at, lease_until = times
    return WorkerRecord(
        info=_info_of(WorkerId(name), info), status=_status_of(status), registered_at=registered_at, seen_at=seen_at,
        lease_until=lease_until, gone=gone,
    )  # fmt: skip


def _info_of(id_: WorkerId, data: bytes) -> WorkerInfo:
    try:
        return _decode_info(data)
    except msgspec.DecodeError:
        return WorkerInfo(
            id=id_, host="?", place="?", pid=0, pid_birth=0, queues=(), tasks=(), concurrency=0, version="?"
        )


def _status_of(data: bytes) -> WorkerStatus:
    try:
        return _decode_status(data)
    except msgspec.DecodeError:
        return WorkerStatus()
