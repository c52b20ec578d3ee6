"""Claim: promote what is due, expire what is late, lease what the plan asks for. And peek: is it worth it?"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from ferryman.io.operation import Requests
from ferryman.io.redis import Call
from ferryman.job import Claim, WorkerId
from ferryman.store.records import Claimed, LaneState, Signs, Take

__all__ = ["claim", "peek"]

_Lane = tuple[str, int, int, int]

_encode = msgspec.msgpack.Encoder().encode
_decode_claimed = msgspec.msgpack.Decoder(tuple[list[Claim], list[_Lane], int | None, int]).decode
_decode_signs = msgspec.msgpack.Decoder(tuple[bool, int | None, bool, int]).decode


def claim(worker: WorkerId, plan: Sequence[Take], limit: int) -> Requests[Claimed]:
    takes = [(take.queue, take.priority, take.count) for take in plan]
    answer = yield Call("claim", (worker, limit, _encode(takes)))
    jobs, lanes, next_due, now = _decode_claimed(answer)
    return Claimed(jobs, [LaneState(*lane) for lane in lanes], next_due, now)


def peek(worker: WorkerId) -> Requests[Signs]:
    answer = yield Call("peek", (worker,), writes=False)
    return Signs(*_decode_signs(answer))
