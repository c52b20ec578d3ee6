"""Lists as PostgreSQL arrays in binary, many times as fast as psycopg's own way of one element after another.

A batch is sent as a few arrays of one length, one for each column, so this is where most of the time of a large enqueue would go.
"""

from __future__ import annotations

import struct
import sys
import uuid
from array import array
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import psycopg
from psycopg.abc import Buffer
from psycopg.adapt import Dumper, PyFormat
from psycopg.pq import Format
from psycopg.types.array import ListBinaryDumper

__all__ = ["ListDumper"]

_NULL = b"\xff\xff\xff\xff"
_length = struct.Struct(">i").pack
_head = struct.Struct(">iiIii").pack


class ListDumper(Dumper):
    """Takes flat lists of one type and None; leaves all others to psycopg."""

    format = Format.BINARY

    def get_key(self, obj: Any, format: PyFormat) -> Any:
        kind = _kind(obj)
        return (list, kind) if kind in _KINDS else ListBinaryDumper(list, self.context).get_key(obj, format)

    def upgrade(self, obj: Any, format: PyFormat) -> Dumper:
        kind = _kind(obj)
        if kind in _KINDS:
            return _FlatDumper(kind, self.context)
        return ListBinaryDumper(list, self.context).upgrade(obj, format)

    def __init__(self, cls: type, context: Any = None) -> None:
        super().__init__(cls, context)
        self.context = context

    def dump(self, obj: Any) -> Buffer | None:  # noqa: ARG002
        raise AssertionError("a list is dumped by what `upgrade` answers")


class _FlatDumper(Dumper):
    """For lists of one kind of element."""

    format = Format.BINARY

    def __init__(self, kind: type, context: Any = None) -> None:
        super().__init__(list, context)
        self._element, self.oid, self._join = _KINDS[kind]

    def get_key(self, obj: Any, format: PyFormat) -> Any:  # noqa: ARG002
        return list

    def dump(self, obj: Any) -> Buffer | None:
        if not obj:
            return _head(0, 0, self._element, 0, 1)[:12]
        try:
            hasnull, data = self._join(obj)
        except (OverflowError, struct.error) as error:
            raise psycopg.DataError(f"a number of a list is too large: {error}") from error
        return _head(1, hasnull, self._element, len(obj), 1) + data


def _kind(items: Sequence[Any]) -> Any:
    kinds = set(map(type, items))
    kinds.discard(NoneType)
    return kinds.pop() if len(kinds) == 1 else None


def _join(values: Sequence[bytes | None]) -> tuple[int, bytes]:
    """The elements, each after its length. And whether one of them is NULL."""
    filled = [value for value in values if value is not None]
    if len(filled) < len(values):
        return 1, b"".join([_NULL if value is None else _length(len(value)) + value for value in values])
    lengths = set(map(len, filled))
    if len(lengths) == 1:
        prefix = _length(lengths.pop())
        return 0, prefix + prefix.join(filled)
    return 0, b"".join([_length(len(value)) + value for value in filled])


def _join_texts(items: Sequence[Any]) -> tuple[int, bytes]:
    if "\0" in "".join(item for item in items if item is not None):
        raise psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes")
    if items.count(items[0]) == len(items) and items[0] is not None:
        value = items[0].encode()
        return 0, (_length(len(value)) + value) * len(items)
    return _join([None if item is None else item.encode() for item in items])


def _join_each(encode: Callable[[Any], bytes]) -> Callable[[Sequence[Any]], tuple[int, bytes]]:
    def join(items: Sequence[Any]) -> tuple[int, bytes]:
        return _join([None if item is None else encode(item) for item in items])

    return join


def _join_numbers(code: str) -> Callable[[Sequence[Any]], tuple[int, bytes]]:
    pack = struct.Struct(f">{code}").pack

    def join(items: Sequence[Any]) -> tuple[int, bytes]:
        if None in items:
            return _join([None if item is None else pack(item) for item in items])
        numbers = array(code, items)
        if sys.byteorder == "little":
            numbers.byteswap()
        data = numbers.tobytes()
        # Twelve bytes for each: the length, which is 8, and the number; laid in place byte by byte of all at once.
        joined = bytearray(12 * len(items))
        joined[3::12] = b"\x08" * len(items)
        for place in range(8):
            joined[4 + place :: 12] = data[place::8]
        return 0, bytes(joined)

    return join


def _encode_uuid(item: uuid.UUID) -> bytes:
    return item.bytes


def _encode_bool(item: bool) -> bytes:
    return b"\1" if item else b"\0"


# Type -> the type numbers of the element and of the array, and how elements are joined. Numbers are sent as the widest
# of their kind; the statement casts them.
_KINDS: dict[Any, tuple[int, int, Callable[[Sequence[Any]], tuple[int, bytes]]]] = {
    bytes: (17, 1001, _join),
    str: (25, 1009, _join_texts),
    int: (20, 1016, _join_numbers("q")),
    float: (701, 1022, _join_numbers("d")),
    bool: (16, 1000, _join_each(_encode_bool)),
    uuid.UUID: (2950, 2951, _join_each(_encode_uuid)),
}
