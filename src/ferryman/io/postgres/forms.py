"""Statements and their parameters as they go over the wire.

The casts that stand in a statement's text say how its parameters are encoded: in binary, each as its own type. A batch is
sent as a few arrays of one length, one for each column, so the encoding of arrays is where most of the time of a large
enqueue would go: they are put together as a whole, many times as fast as psycopg's own way of one element after another.
"""

from __future__ import annotations

import functools
import re
import struct
import sys
import uuid
from array import array
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import psycopg

__all__ = ["Form", "form_of"]

_FORMS = 512
"""Texts that are remembered."""

_PARAM = re.compile(r"%s(?:::(double precision|[a-z]+)(\[\])?)?")

_NULL = b"\xff\xff\xff\xff"
_length = struct.Struct(">i").pack
_head = struct.Struct(">iiIii").pack

_Encoder = Callable[[Any], bytes]


class Form(NamedTuple):
    """A statement without its values."""

    text: bytes
    """With ``$1`` and so on."""
    types: tuple[int, ...]
    """Of the parameters, by PostgreSQL's numbers."""
    encoders: tuple[_Encoder, ...]

    def encode(self, params: Sequence[Any]) -> list[bytes | None]:
        """Values as they are sent, in binary. Raises psycopg.DataError for one that its type cannot hold."""
        try:
            return [
                None if param is None else encode(param)
                for param, encode in zip(params, self.encoders, strict=True)
            ]
        except (AttributeError, OverflowError, TypeError, ValueError, struct.error) as error:
            raise psycopg.DataError(f"a value cannot be sent: {error}") from error


@functools.lru_cache(_FORMS)
def form_of(text: str) -> Form:
    """The form of a `ferryman.io.postgres.requests.Statement` with this text. Raises KeyError for an unknown cast."""
    types: list[int] = []
    encoders: list[_Encoder] = []

    def number(param: re.Match[str]) -> str:
        name, is_array = param.groups()
        kind = _KINDS[name]
        types.append(kind.array if is_array else kind.type)
        encoders.append(functools.partial(_encode_array, kind) if is_array else kind.encode)
        return f"${len(types)}{param[0][2:]}"

    numbered = _PARAM.sub(number, text)
    return Form(numbered.encode(), tuple(types), tuple(encoders))


# -- arrays ------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    type: int
    array: int
    encode: _Encoder
    code: str | None = None
    """Of numbers: what `array` and `struct` call them."""


def _encode_array(kind: _Kind, items: Sequence[Any]) -> bytes:
    if not items:
        return _head(0, 0, kind.type, 0, 1)[:12]
    if None in items:
        data = b"".join([_NULL if item is None else _with_length(kind.encode(item)) for item in items])
        return _head(1, 1, kind.type, len(items), 1) + data
    data = (
        _join([kind.encode(item) for item in items]) if kind.code is None else _join_numbers(kind.code, items)
    )
    return _head(1, 0, kind.type, len(items), 1) + data


def _with_length(value: bytes) -> bytes:
    return _length(len(value)) + value


def _join(values: Sequence[bytes]) -> bytes:
    """The elements, each after its length."""
    lengths = set(map(len, values))
    if len(lengths) == 1:
        prefix = _length(lengths.pop())
        return prefix + prefix.join(values)
    return b"".join(map(_with_length, values))


def _join_numbers(code: str, items: Sequence[Any]) -> bytes:
    numbers = array(code, items)
    if sys.byteorder == "little":
        numbers.byteswap()
    data, size = numbers.tobytes(), numbers.itemsize
    # For each its length, which is below 256, and the number; laid in place byte by byte of all at once.
    step = 4 + size
    joined = bytearray(step * len(items))
    joined[3::step] = bytes([size]) * len(items)
    for place in range(size):
        joined[4 + place :: step] = data[place::size]
    return bytes(joined)


# -- types -------------------------------------------------------------------------------------------


def _encode_text(item: str | float) -> bytes:
    if isinstance(item, str):
        return item.encode()
    # Such as a tenant's number: whoever means a text by it shall not need to say so.
    if isinstance(item, (int, float)):
        return str(item).encode()
    raise TypeError(f"{type(item).__name__} is no text")


def _encode_bytea(item: bytes | bytearray | memoryview) -> bytes:
    if isinstance(item, (bytes, bytearray, memoryview)):
        return bytes(item)
    raise TypeError(f"{type(item).__name__} is no bytes")


def _encode_uuid(item: str) -> bytes:
    # As ids are written; what else is a UUID is one all the same. Blanks do not count in either, so the length does.
    value = bytes.fromhex(item) if len(item) == 32 else uuid.UUID(item).bytes
    if len(value) != 16:
        raise ValueError(f"{item!r} is no UUID")
    return value


def _encode_bool(item: bool) -> bytes:
    return b"\1" if item else b"\0"


def _encode_jsonb(item: str) -> bytes:
    return b"\1" + item.encode()


_KINDS = {
    "bigint": _Kind(20, 1016, struct.Struct(">q").pack, "q"),
    "boolean": _Kind(16, 1000, _encode_bool),
    "bytea": _Kind(17, 1001, _encode_bytea),
    "double precision": _Kind(701, 1022, struct.Struct(">d").pack, "d"),
    "integer": _Kind(23, 1007, struct.Struct(">i").pack, "i"),
    "jsonb": _Kind(3802, 3807, _encode_jsonb),
    "smallint": _Kind(21, 1005, struct.Struct(">h").pack, "h"),
    "text": _Kind(25, 1009, _encode_text),
    "uuid": _Kind(2950, 2951, _encode_uuid),
}
