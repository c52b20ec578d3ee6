"""What is stored of a job once and for all: the parts of its record that are the same for a run of jobs.

The record itself is put together in `lua/enqueue.lua`, as `lua/cards.lua` says.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ferryman.job import NewJob

__all__ = ["KIND", "as_text", "same_for_all"]

_encode = msgspec.msgpack.Encoder().encode

_MOST = 2**53
"""Lua tells larger numbers from their neighbours no more, and takes those from 2**63 on for negative. Of a delay or a
number of places it means as much as any."""


class KIND:
    """Bits of a record's kind: what a job is beyond the common path. They must be those of `lua/book.lua`."""

    KEYED = 1
    ORDERED = 2
    CONTINUE = 4
    HOLD = 8
    UNIQUE = 16
    UNIQUE_START = 32
    UNIQUE_PERIOD = 64
    AFTER = 128
    TAGGED = 256


def same_for_all(job: NewJob) -> dict[str, Any]:
    """All of a job but its id and arguments, as the function ``enqueue`` takes it."""
    run: dict[str, Any] = {
        "names": as_text(_encode(job.task) + _encode(job.queue)),
        "queue": job.queue,
        "priority": job.priority,
        "max_attempts": min(job.max_attempts, _MOST),
        "kind": _kind(job),
        "tail": as_text(_encode(job.options) + _encode(job.key)),
        "rest": as_text(_rest(job)),
    }
    if job.at is not None:
        run["at"] = min(job.at, _MOST)
    elif job.delay:
        run["delay"] = min(job.delay, _MOST)
    if job.ttl is not None:
        run["ttl"] = min(job.ttl, _MOST)
    elif job.deadline is not None:
        run["deadline"] = min(job.deadline, _MOST)
    if job.key is not None:
        run["key"] = job.key
    if job.after:
        run["after"] = job.after
    return run


def as_text(value: bytes) -> msgspec.Raw:
    """Bytes within MessagePack that Redis' Lua can read: as str, since it knows no bin."""
    size = len(value)
    if size < 32:
        return msgspec.Raw(bytes((0xA0 | size,)) + value)
    if size < 0x100:
        return msgspec.Raw(bytes((0xD9, size)) + value)
    if size < 0x1_0000:
        return msgspec.Raw(b"\xda" + size.to_bytes(2) + value)
    return msgspec.Raw(b"\xdb" + size.to_bytes(4) + value)


def _kind(job: NewJob) -> int:
    kind = KIND.ORDERED if job.ordered else 0
    if job.key is not None:
        kind |= KIND.KEYED
    if job.after:
        kind |= KIND.AFTER
    if job.on_parent_failure == "continue":
        kind |= KIND.CONTINUE
    elif job.on_parent_failure == "hold":
        kind |= KIND.HOLD
    if job.unique is not None:
        if job.unique.period is not None:
            kind |= KIND.UNIQUE_PERIOD
        else:
            kind |= KIND.UNIQUE if job.unique.until == "finished" else KIND.UNIQUE_START
    return kind | (KIND.TAGGED if job.tags else 0)


def _rest(job: NewJob) -> bytes:
    """What is rare, and so need not be decoded for most jobs."""
    rest: dict[str, Any] = {}
    if job.key is not None:
        rest["room"] = min(job.room, _MOST)
    if job.tenant is not None:
        rest["tenant"] = job.tenant
    if job.tags:
        rest["tags"] = job.tags
    if job.unique is not None:
        rest["unique"] = job.unique.key
        if job.unique.period is not None:
            rest["period"] = min(job.unique.period, _MOST)
    return _encode(rest) if rest else b""
