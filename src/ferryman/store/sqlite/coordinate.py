"""Named locks with fencing tokens, and a small key-value table with compare-and-set."""

from __future__ import annotations

from ferryman.io.operation import Requests
from ferryman.io.sqlite import Query
from ferryman.store.records import Entry

__all__ = ["kv_delete", "kv_get", "kv_put", "lock", "unlock"]


def lock(now: int, name: str, owner: str, ttl: int) -> Requests[int | None]:
    held = yield Query("SELECT owner, token FROM ferryman_lock WHERE name = ? AND until > ?", (name, now))
    if held and held[0][0] == owner:
        token = int(held[0][1])
    elif held:
        return None
    else:
        token = yield from _next_number("token")
    yield Query(
        "INSERT OR REPLACE INTO ferryman_lock (name, owner, token, until) VALUES (?, ?, ?, ?)",
        (name, owner, token, now + ttl),
    )
    return token


def unlock(now: int, name: str, owner: str) -> Requests[bool]:
    gone = yield Query(
        "DELETE FROM ferryman_lock WHERE name = ? AND owner = ? RETURNING until", (name, owner)
    )
    return bool(gone) and gone[0][0] > now


def kv_get(now: int, key: str) -> Requests[Entry | None]:
    found = yield Query(
        "SELECT value, version FROM ferryman_kv WHERE key = ? AND (until IS NULL OR until > ?)", (key, now)
    )
    return Entry(*found[0]) if found else None


def kv_put(now: int, key: str, value: bytes, expected: int | None, ttl: int | None) -> Requests[int | None]:
    entry = yield from kv_get(now, key)
    if (None if entry is None else entry.version) != expected:
        return None
    version = yield from _next_number("version")
    until = None if ttl is None else now + ttl
    yield Query(
        "INSERT OR REPLACE INTO ferryman_kv (key, value, version, until) VALUES (?, ?, ?, ?)",
        (key, value, version, until),
    )
    return version


def kv_delete(now: int, key: str) -> Requests[bool]:
    gone = yield Query("DELETE FROM ferryman_kv WHERE key = ? RETURNING until", (key,))
    return bool(gone) and (gone[0][0] is None or gone[0][0] > now)


def _next_number(name: str) -> Requests[int]:
    """Numbers that only grow, for all locks or all values together."""
    ((number,),) = yield Query(
        "INSERT INTO ferryman_counter (name, value) VALUES (?, 1)"
        " ON CONFLICT DO UPDATE SET value = value + 1 RETURNING value",
        (name,),
    )
    return int(number)
