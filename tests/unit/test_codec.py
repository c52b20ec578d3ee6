"""The codec: what goes in comes out as annotated, and bad bytes are refused with a reason."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
import enum
import os
import pathlib
import uuid
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.codec import Codec, Format, JsonFormat, MsgpackFormat, PickleFormat
from ferryman.errors import ConfigError, PayloadError


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.0


class Colour(enum.Enum):
    RED = "red"


class Order(msgspec.Struct):
    id: int
    lines: list[Point]


class Reversed:
    """A format of a user's own."""

    tag = 16

    def encoder(self) -> Callable[[Any], bytes]:
        return lambda value: str(value)[::-1].encode()

    def decoder(self, type: Any) -> Callable[[bytes], Any]:
        return lambda data: type(data.decode()[::-1])


TYPED = [
    (Point(1, 2.5), Point),
    (Order(7, [Point(1)]), Order),
    (datetime.datetime(2024, 2, 29, 12, tzinfo=datetime.UTC), datetime.datetime),
    (datetime.timedelta(seconds=90), datetime.timedelta),
    (uuid.UUID(int=5), uuid.UUID),
    (decimal.Decimal("1.10"), decimal.Decimal),
    (Colour.RED, Colour),
    (pathlib.PurePosixPath("/a/b"), pathlib.PurePosixPath),
    ({"a": {1, 2}}, dict[str, set[int]]),
    (None, None),
]


@pytest.mark.parametrize("format", [None, JsonFormat(), MsgpackFormat(), PickleFormat()])
@pytest.mark.parametrize(("value", "type"), TYPED, ids=lambda part: repr(part)[:30])
def test_a_value_comes_back_as_annotated(format: Format | None, value: Any, type: Any) -> None:
    codec = Codec(format)

    assert codec.decoder(type)(codec.encode(value)) == value


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@given(plain_values)
def test_any_plain_value_comes_back(value: Any) -> None:
    codec = Codec(compress_above=64)

    assert codec.decoder(Any)(codec.encode(value)) == value


@given(st.binary(max_size=200))
def test_any_bytes_are_a_value_or_a_payload_error(data: bytes) -> None:
    with contextlib.suppress(PayloadError):
        assert isinstance(Codec().decoder(int | str)(data), (int, str))


def test_large_payloads_are_compressed_if_that_helps() -> None:
    codec = Codec(compress_above=1_000)
    noise = os.urandom(5_000)

    assert len(codec.encode("x" * 5_000)) < 100
    assert len(codec.encode(noise)) > 5_000
    assert codec.decoder(str)(codec.encode("x" * 5_000)) == "x" * 5_000
    assert codec.decoder(bytes)(codec.encode(noise)) == noise


def test_compression_can_be_left_out() -> None:
    assert len(Codec(compress_above=None).encode("x" * 5_000)) > 5_000


def test_a_payload_that_is_too_large_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        PayloadError, match=r"5,003 bytes are more than the 4,000.*raise the setting max_payload"
    ):
        Codec(max_bytes=4_000, compress_above=100).encode("x" * 5_000)


def test_the_bound_holds_without_compression_too() -> None:
    with pytest.raises(PayloadError, match="more than the 1,000"):
        Codec(max_bytes=1_000).encode("x" * 1_500)


def test_a_payload_that_inflates_to_too_much_is_refused() -> None:
    bomb = Codec(max_bytes=10_000_000).encode("x" * 9_000_000)

    with pytest.raises(PayloadError, match="inflates to more than the 1,000,000"):
        Codec(max_bytes=1_000_000).decoder(str)(bomb)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"\x01", "cannot be decoded"),
        (b"\x01\xc1", "cannot be decoded"),
        (b"\x81garbage", "compressed payload is damaged"),
        (b"\x81" + b"\x78\x01", "damaged"),
        (b"\x03\x80\x04N.", "format pickle, which this app was not given"),
        (b"\x2a", "format number 42"),
    ],
)
def test_damaged_or_foreign_bytes_are_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(PayloadError, match=reason):
        Codec().decoder(Any)(data)


def test_a_value_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(PayloadError, match="Expected `int`, got `str`"):
        Codec().decoder(int)(Codec().encode("7"))


@pytest.mark.parametrize("value", [object(), lambda: 0, 2**70, "\ud800"])
def test_a_value_without_an_encoding_is_refused(value: object) -> None:
    with pytest.raises(PayloadError, match="cannot be encoded"):
        Codec().encode(value)


def test_what_one_format_wrote_another_app_reads() -> None:
    written = Codec(JsonFormat()).encode([1, "a"])

    assert Codec(MsgpackFormat()).decoder(list[int | str])(written) == [1, "a"]


def test_a_format_of_ones_own_is_used_and_foreign_to_others() -> None:
    mine = Codec(Reversed())

    written = mine.encode(123)

    assert mine.decoder(int)(written) == 123
    with pytest.raises(PayloadError, match="number 16"):
        Codec().decoder(int)(written)


@pytest.mark.parametrize("tag", [0, 4, 15, 128, 300])
def test_a_format_with_a_tag_out_of_bounds_is_refused(tag: int) -> None:
    format = Reversed()
    format.tag = tag

    with pytest.raises(ConfigError, match="between 16 and 127"):
        Codec(format)


def test_hooks_carry_types_of_the_users_own() -> None:
    hooked = MsgpackFormat(
        enc_hook=lambda value: [value.real, value.imag], dec_hook=lambda type, value: type(*value)
    )
    codec = Codec(hooked)

    assert codec.decoder(complex)(codec.encode(1 + 2j)) == 1 + 2j
