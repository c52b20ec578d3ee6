"""Named locks with fencing tokens, and a small key-value table with compare-and-set."""

from __future__ import annotations

from ferryman.store.memory.book import Book, Fading
from ferryman.store.records import Entry

__all__ = ["kv_delete", "kv_get", "kv_put", "lock", "unlock"]


def lock(book: Book, now: int, name: str, owner: str, ttl: int) -> int | None:
    held = _lasting(book.locks, name, now)
    if held is not None and held.holder != owner:
        return None
    token = book.next_number() if held is None else held.number
    book.put_fading(book.locks, name, Fading(owner, token, now + ttl))
    return token


def unlock(book: Book, now: int, name: str, owner: str) -> bool:
    held = _lasting(book.locks, name, now)
    if held is None or held.holder != owner:
        return False
    book.drop(book.locks, name)
    return True


def kv_get(book: Book, now: int, key: str) -> Entry | None:
    found = _lasting(book.values, key, now)
    return None if found is None else Entry(found.holder, found.number)


def kv_put(book: Book, now: int, key: str, value: bytes, expected: int | None, ttl: int | None) -> int | None:
    found = _lasting(book.values, key, now)
    if (None if found is None else found.number) != expected:
        return None
    version = book.next_number()
    until = None if ttl is None else now + ttl
    book.put_fading(book.values, key, Fading(value, version, until))
    return version


def kv_delete(book: Book, now: int, key: str) -> bool:
    if _lasting(book.values, key, now) is None:
        return False
    book.drop(book.values, key)
    return True


def _lasting(mapping: dict[str, Fading], key: str, now: int) -> Fading | None:
    """An entry whose time is not over."""
    entry = mapping.get(key)
    return entry if entry is not None and (entry.until is None or entry.until > now) else None
