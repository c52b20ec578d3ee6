"""URLs with passwords in them, however they are written: what is said of them holds no piece of one."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.blob.open import open_blobs
from ferryman.errors import ConfigError, FerrymanError
from ferryman.io.postgres.address import parse_url as parse_postgres
from ferryman.io.redis.address import parse_url as parse_redis
from ferryman.io.url import shown
from ferryman.outbox import Event, RedisStreams
from ferryman.store.open import open_store

_PIECE = 4
"""Characters of a password that give it away."""

_PLACES = (
    "redis://u:{}@h/0",
    "redis://:{}@h:6379/0?prefix=a",
    "redis://u:{}@h:port/0",
    "redis://u:{}@h/zero",
    "redis://u:{}@h/0?prefxi=a",
    "redis:/u:{}@h/0",
    "redis:u:{}@h/0",
    "Redis://u:{}@h/0",
    "rediss://u:{}@h?ssl_cert_reqs=maybe",
    "unix://u:{}@/run/redis.sock?db=one",
    "unix:///u:{}@h",
    "postgresql://u:{}@h/d",
    "postgresql://u:{}@h/d?schema=Port",
    "postgresql://u:{}@h:port/d",
    "postgresql://u:{}@h/d?colour=red",
    "postgresql://h/d?listen=postgresql://u:{}@h:port/d",
    "postgres:/u:{}@h/d",
    "postgresql+asyncpg://u:{}@h/d",
    "mysql://u:{}@h/d",
    "u:{}@h/d",
    ":{}@h/d",
    "sqlite://u:{}@h/d",
    "sqlite:/u:{}@h/d",
    "memory:u:{}@h/d",
    " redis://u:{}@h/0",
)

_PRINTABLE = st.characters(exclude_categories=("C", "Zl", "Zp"))

_AS_PEOPLE_MAKE_THEM = st.text("abcXYZ019+/=?#@:%&[]!$ ", min_size=_PIECE, max_size=24)


def _all_that_is_said(opens: Callable[[str], object], url: str) -> str:
    """Messages and tracebacks alike, since logs have both."""
    try:
        return str(getattr(opens(url), "url", ""))
    except FerrymanError as error:
        return "".join(traceback.format_exception(error, limit=0))


def _publish(url: str) -> object:
    RedisStreams(url).publish(Event("1", "topic", None, b""))
    return None


_INNOCENT = "".join(_all_that_is_said(open_store, place.format("")) for place in _PLACES) + "".join(_PLACES)
"""What is said without any password."""


@pytest.mark.parametrize("place", _PLACES)
@given(password=st.one_of(_AS_PEOPLE_MAKE_THEM, st.text(_PRINTABLE, min_size=_PIECE)))
def test_whatever_is_said_of_a_store_url_holds_no_piece_of_its_password(place: str, password: str) -> None:
    url = place.format(password)

    said = _all_that_is_said(open_store, url)

    pieces = {password[start : start + _PIECE] for start in range(len(password) - _PIECE + 1)}
    assert [piece for piece in pieces if piece in said and piece not in _INNOCENT] == []
    assert [piece for piece in pieces if repr(piece)[1:-1] in said and piece not in _INNOCENT] == []
    assert [piece for piece in pieces if piece in shown(url) and piece not in _INNOCENT] == []


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://u:pass@h:6379/2?prefix=a", "redis://u@h:6379/2"),
        ("redis://:pass@h", "redis://h"),
        ("unix://:pass@/run/redis.sock?db=2", "unix:///run/redis.sock"),
        ("postgresql://u:pass@h1:1,h2:2/d?password=pass", "postgresql://u@h1:1,h2:2/d"),
        ("postgresql://u:pass@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
        ("redis://u:pa/ss@h/0", "redis://u@h/0"),
        ("redis://u/pass@h/0", "redis://…@h/0"),
        ("redis://u:pass/0", "redis://u:…"),
        ("redis:/u:pass@h/0", "redis:/…@h/0"),
        ("u:pass@h/0", "u:…@h/0"),
        ("mysql://u:pass@h/0", "mysql://…@h/0"),
        ("sqlite:///jobs.db", "sqlite:///jobs.db"),
        ("jobs.db", "jobs.db"),
    ],
)
def test_of_a_url_is_shown_what_cannot_be_a_secret(url: str, said: str) -> None:
    assert shown(url) == said


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:S3C/RET@h:1/0",
        "redis://u:S3C?RET@h:1/0",
        "redis://u:S3C#RET@h:1/0",
        "redis://u:12/34RET@h:1/0",
        "postgresql://u:S3C/RET@h:1/d",
        "postgresql://u:12/34RET@h:1/d",
        "postgresql://u:S3C@RET@h:1/d",
        "postgresql://u:S3C/R?ET@h:1/d",
        "postgresql://h/d?listen=postgresql://u:S3C/RET@h:1/d",
    ],
)
def test_a_password_that_ends_too_early_is_said_to_need_percent_signs(url: str) -> None:
    with pytest.raises(ConfigError, match=r"special characters of the password as %XX, such as / as %2F"):
        open_store(url)


def test_what_libpq_takes_as_a_password_is_no_option() -> None:
    address = parse_postgres("postgresql://u:S3C?schema=a#b@h:1/d?schema=mine")

    assert (address.schema, address.shown) == ("mine", "postgresql://u@h:1/d?schema=mine")
    assert "S3C?schema=a#b" in address.conninfo


def test_options_of_redis_are_shown_only_when_they_are_known() -> None:
    with pytest.raises(ConfigError) as refused:
        parse_redis("redis://h/one?password=hush-hush")

    assert "hush" not in str(refused.value)


@pytest.mark.parametrize("url", ["redis://u:S3C/RET@h/0", "redis://u:S3C?RET@h/0", "redis://u:[S3CRET@h/0"])
def test_the_publisher_of_an_outbox_does_not_show_its_password(url: str) -> None:
    said = _all_that_is_said(_publish, url)

    assert "RedisStreams" in said
    assert "S3C" not in said


@pytest.mark.parametrize("secret", ["HU?SH@", "HU/SH@", "HU#SH@", "HUSH"])
def test_keys_of_blobs_are_refused_and_not_shown_wherever_they_end(secret: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_blobs(f"s3://KEY:{secret}bucket/prefix")

    assert "HU" not in str(refused.value)
    assert "SH" not in str(refused.value)
