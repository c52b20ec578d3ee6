"""The register of workers: leases, orders, and rescuing the jobs of those that died."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis import Call
from ferryman.job import JobId, WorkerId
from ferryman.store.records import Held, Order, OrderKind, Orders, Rescued, WorkerInfo, WorkerStatus

__all__ = ["heartbeat", "holding", "leave", "order", "register", "rescue"]

_encode = msgspec.msgpack.Encoder().encode
_decode_order = msgspec.msgpack.Decoder(tuple[OrderKind, JobId | None, str | None, int, int]).decode
_decode_held = msgspec.msgpack.Decoder(list[tuple[JobId, int]]).decode
_decode_rescued = msgspec.msgpack.Decoder(list[tuple[WorkerId, int, int]]).decode


def register(info: WorkerInfo, lease: int) -> Requests[None]:
    queues = b"" if info.queues is None else _encode(info.queues)
    yield Call("register", (info.id, lease, _encode(info), _encode(WorkerStatus()), queues))


def heartbeat(worker: WorkerId, status: WorkerStatus, lease: int, heard: int) -> Requests[Orders]:
    last, *orders = yield Call("heartbeat", (worker, lease, _encode(status), heard))
    return Orders(
        [Order(kind, job, reason) for kind, job, reason, _, _ in map(_decode_order, orders)], int(last)
    )


def holding(worker: WorkerId) -> Requests[list[Held]]:
    answer = yield Call("holding", (worker,), writes=False)
    return [Held(id_, lease) for id_, lease in _decode_held(answer)]


def leave(worker: WorkerId) -> Requests[None]:
    yield Call("leave", (worker,))


def rescue(dead: Sequence[WorkerId], late: bool) -> Requests[list[Rescued]]:
    answer = yield Call("rescue", (_encode(dead), int(late)))
    return [Rescued(worker, again, died) for worker, again, died in _decode_rescued(answer)]


def order(workers: Sequence[WorkerId], order: Order) -> Requests[int]:
    args = (_encode(workers), _encode((order.kind, order.job, order.reason)))
    count: int = yield Call("order", args)
    return count
