"""Named locks with fencing tokens, and a small key-value table with compare-and-set."""

from __future__ import annotations

from ferryman.io.operation import Requests
from ferryman.io.redis.requests import Call
from ferryman.store.records import Entry

__all__ = ["kv_delete", "kv_get", "kv_put", "lock", "unlock"]


def lock(name: str, owner: str, ttl: int) -> Requests[int | None]:
    token: int | None = yield Call("lock", (name, owner, ttl))
    return token


def unlock(name: str, owner: str) -> Requests[bool]:
    return bool((yield Call("unlock", (name, owner))))


def kv_get(key: str) -> Requests[Entry | None]:
    found = yield Call("kv_get", (key,), writes=False)
    return None if found is None else Entry(value=found[1], version=found[0])


def kv_put(key: str, value: bytes, expected: int | None, ttl: int | None) -> Requests[int | None]:
    args = (key, value, "" if expected is None else expected, "" if ttl is None else ttl)
    version: int | None = yield Call("kv_put", args)
    return version


def kv_delete(key: str) -> Requests[bool]:
    return bool((yield Call("kv_delete", (key,))))
