"""Redis servers that will not do are refused, with the remedy; others are told our functions."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Iterator

import pytest

from ferryman.errors import (
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    StoreVersionError,
)
from ferryman.io.redis import Library
from tests.services.redis import redis_server
from tests.services.server import Server, free_port

from .redis_trial import LIBRARY, Trial, add, ask, count, fill, with_user
from .redis_trial import ring as ring_bell


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own, to be mistreated."""
    with redis_server() as server:
        yield server


@pytest.fixture
def own(server: Server) -> Iterator[Trial]:
    trial = Trial(server.url)
    yield trial
    trial.close()


# -- servers that will not do


def test_a_server_that_would_evict_jobs_is_refused_with_the_remedy() -> None:
    with redis_server(maxmemory="100mb", maxmemory_policy="allkeys-lru") as server:
        trial = Trial(server.url)

        with pytest.raises(StoreError, match="CONFIG SET maxmemory-policy noeviction"):
            trial.run(count())
        ask(server.url, "CONFIG", "SET", "maxmemory-policy", "noeviction")

        assert trial.run(add()) == 1
        trial.close()


@pytest.mark.parametrize(
    "options",
    [{"maxmemory_policy": "allkeys-lru"}, {"maxmemory_policy": "volatile-lru", "maxmemory": "100mb"}],
)
def test_a_server_that_evicts_nothing_of_ours_will_do(options: dict[str, str]) -> None:
    with redis_server(**options) as server:
        trial = Trial(server.url)

        assert trial.run(add()) == 1
        trial.close()


def test_a_full_server_refuses_what_needs_memory_and_takes_what_does_not() -> None:
    with redis_server(maxmemory="5mb", maxmemory_policy="noeviction") as server:
        trial = Trial(server.url)

        trial.run(fill(6_000_000))
        with pytest.raises(StoreFull, match="Raise maxmemory"):
            trial.run(fill(1))

        assert trial.run(ring_bell()) == 0
        assert trial.run(count()) == 0
        trial.close()


def test_a_replica_is_refused_and_its_primary_named(server: Server) -> None:
    with redis_server(replicaof=f"127.0.0.1 {server.port}") as replica:
        trial = Trial(replica.url)

        with pytest.raises(StoreReadOnly, match=f"its primary, 127.0.0.1:{server.port}"):
            trial.run(count())


def test_a_primary_that_was_made_a_replica_and_comes_back_is_used_again(own: Trial, server: Server) -> None:
    own.run(add())
    ask(server.url, "REPLICAOF", "127.0.0.1", free_port())

    for _ in range(2):
        with pytest.raises(StoreError):
            own.run(add())
    ask(server.url, "REPLICAOF", "NO", "ONE")

    assert own.run(add()) == 2


def test_a_password_is_needed_and_must_be_right() -> None:
    with redis_server(requirepass="s3cret") as server:
        right = Trial(with_user(server.url, "default", "s3cret"))
        with pytest.raises(StoreUnavailable, match="asks for a password"):
            Trial(server.url).run(count())
        with pytest.raises(StoreUnavailable, match="refuses the user name or password") as refused:
            Trial(with_user(server.url, "default", "wr0ng")).run(count())

        assert right.run(add()) == 1
        assert "wr0ng" not in str(refused.value)
        right.close()


def test_a_password_that_the_server_does_not_ask_for_is_to_be_left_out(server: Server) -> None:
    with pytest.raises(
        StoreUnavailable, match="asks for no password, and the store URL has one; leave it out"
    ):
        Trial(server.url.replace("://", "://:s3cret@")).run(count())


def test_a_user_without_rights_is_told_which_ones_suffice(server: Server) -> None:
    ask(server.url, "ACL", "SETUSER", "ferry", "on", ">pw", "~other", "+@all")
    trial = Trial(with_user(server.url, "ferry", "pw"))
    with pytest.raises(StoreError, match="ACL SETUSER ferry") as refused:
        trial.run(add())
    remedy = str(refused.value).partition("ACL SETUSER ")[2].split()

    ask(server.url, "ACL", "SETUSER", "ferry", "reset", "on", ">pw")
    ask(server.url, "ACL", "SETUSER", *remedy)
    waker = trial.waker()

    assert trial.run(add()) == 1
    assert trial.run(ring_bell()) == 1
    waker.close()
    trial.close()


def test_an_old_server_is_named_with_its_version() -> None:
    info = b"# Server\r\nredis_version:6.2.14\r\nrole:master\r\n"
    said = [b"+OK\r\n", b"$%d\r\n%s\r\n-ERR unknown command `FCALL_RO`, with args\r\n" % (len(info), info)]

    with _saying(*said) as url, pytest.raises(StoreVersionError, match=r"is Redis 6\.2\.14; Ferryman needs"):
        Trial(url).run(count())


def test_something_that_is_no_redis_is_found_out() -> None:
    with _saying(b"SSH-2.0-OpenSSH_9.2\r\n") as url, pytest.raises(StoreUnavailable, match="no Redis server"):
        Trial(url).run(count())


@contextlib.contextmanager
def _saying(*answers: bytes) -> Iterator[str]:
    """Something that listens, and says this when it is spoken to."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer() -> None:
            connection, _ = listening.accept()
            with connection:
                for words in answers:
                    connection.recv(10_000)
                    connection.sendall(words)

        answering = threading.Thread(target=answer)
        answering.start()
        yield f"redis://127.0.0.1:{listening.getsockname()[1]}"
        answering.join()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"appendonly": "no"}, "forgets all jobs"),
        ({"appendonly": "no", "save": "3600 1"}, "since its last snapshot"),
        ({}, ""),
    ],
)
def test_a_server_that_forgets_is_warned_of_once(
    options: dict[str, str], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server(**options) as server, caplog.at_level(logging.WARNING):
        trial = Trial(server.url)
        trial.run(count())
        trial.runner.close()
        trial.run(count())
        trial.close()

    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == bool(said)
    assert all(said in warning for warning in warnings)


# -- the library


def test_a_newer_library_takes_the_place_of_an_older_one_and_never_the_other_way(server: Server) -> None:
    newer = LIBRARY._replace(revision=6, code=LIBRARY.code.replace("'INCRBY'", "'DECRBY'"))

    old = Trial(server.url)
    answers = [old.run(add())]
    new = Trial(server.url, prefix=old.prefix, library=newer)
    answers += [new.run(add()), old.run(add())]
    old.runner.close()
    answers.append(old.run(add()))

    assert answers == [1, 0, -1, -2]
    old.close()
    new.close()


def test_a_library_that_the_server_does_not_take_is_an_error_that_says_why(server: Server) -> None:
    with pytest.raises(StoreError, match="Error compiling function"):
        Trial(server.url, library=Library("broken", 1, "#!lua name=broken\nlocal local\n")).run(count())
