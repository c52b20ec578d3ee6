"""Redis URLs: what they say, and what is said of those that say nothing."""

from __future__ import annotations

import pytest

from ferryman.errors import ConfigError
from ferryman.io.redis.address import Node, parse_url


def test_a_url_names_the_server_and_the_prefix_of_the_keys() -> None:
    address = parse_url("redis://ann:p%40ss@db.example:6380/3?prefix=mail&replicas=2")

    assert (address.node, address.db) == (Node("db.example", 6380), 3)
    assert (address.username, address.password) == ("ann", "p@ss")
    assert (address.key, address.replicas, address.tls) == ("{mail}", 2, None)


def test_what_a_url_leaves_out_is_usual() -> None:
    address = parse_url("redis://localhost")

    assert (address.node, address.db, address.key) == (Node("localhost", 6379), 0, "{ferryman}")
    assert (address.username, address.password, address.replicas) == (None, None, 0)


def test_a_socket_is_named_by_its_path() -> None:
    address = parse_url("unix:///run/redis.sock?db=2")

    assert (address.node, address.db) == (Node("/run/redis.sock", 0), 2)
    assert str(address.node) == "/run/redis.sock"


def test_tls_checks_the_certificate_unless_told_otherwise() -> None:
    checked = parse_url("rediss://db.example")
    unchecked = parse_url("rediss://db.example?ssl_cert_reqs=none")

    assert checked.tls is not None
    assert checked.tls.check_hostname
    assert unchecked.tls is not None
    assert not unchecked.tls.check_hostname


@pytest.mark.parametrize(
    "url", ["redis://:s3cret@db:1/2?prefix=a", "rediss://ann:s3cret@db", "unix://:s3cret@/run/redis.sock"]
)
def test_the_url_that_is_shown_has_no_password(url: str) -> None:
    assert "s3cret" not in parse_url(url).shown


def test_a_url_without_a_password_is_shown_as_it_is() -> None:
    for url in ("redis://db:6380/3?prefix=mail", "unix:///run/redis.sock?db=2", "redis://ann@db"):
        assert parse_url(url).shown == url


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://db/one", "database 'one'"),
        ("redis://db:port", "port"),
        ("redis://db:99999", "port"),
        ("redis://db:0", "a port that is no number from 1 to 65535"),
        ("redis://db/2?db=1", "names a database and has db=, too; leave one of them out"),
        ("redis://db?prefix=a{b}", "prefix 'a{b}'"),
        ("redis://db?prefix=", "prefix ''"),
        ("redis://db?replicas=all", "replicas 'all'"),
        ("redis://db/2?prefxi=a", "unknown option 'prefxi' (did you mean 'prefix'?); it may have prefix, replicas"),
        ("redis://db?colour=red", "unknown option 'colour'; it may have prefix, replicas, db"),
        ("redis://db?ssl_ca_certs=a", "unknown option 'ssl_ca_certs'"),
        ("rediss://db?ssl_ca_certs=/nowhere", "certificate"),
        ("rediss://db?ssl_cert_reqs=maybe", "ssl_cert_reqs"),
        ("unix://", "names no socket"),
        ("redis://:s3cret@db/one", "database 'one'"),
    ],
)  # fmt: skip
def test_a_url_that_says_nothing_is_an_error_that_names_the_part(url: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_url(url)

    assert said in str(refused.value)
    assert "s3cret" not in str(refused.value)
