"""Others at the same server: users with few rights, somebody who flushes, another version's functions, a replica that is
promoted."""

from __future__ import annotations

import contextlib
import select
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.clock import ManualClock
from ferryman.errors import StoreError, StoreUnavailable, WorkerGone
from ferryman.io.redis import listener
from ferryman.job import JobId, NewJob, Outcome, OutcomeKind, UniqueKey, WorkerId, new_id
from ferryman.store.records import Filter, JobNote, Order, Retention, Take, WorkerInfo, WorkerStatus
from ferryman.store.redis import store as redis_store
from ferryman.store.redis.library import LIBRARY, load_library
from ferryman.store.redis.store import RedisStore
from tests.services.redis import redis_server
from tests.services.server import Server

from .redis_trap import VERBS, Trap, trapped
from .redis_trial import ask, eventually, fact, with_user

ROOT = Path(__file__).parents[2]
W = WorkerId("w")
LEASE = 60_000


def job() -> NewJob:
    return NewJob(id=new_id(), task="t", args=b"[]")


def info() -> WorkerInfo:
    return WorkerInfo(id=W, host="h", place="p", pid=1, pid_birth=1, queues=None, tasks=("t",), concurrency=1)


@pytest.fixture
def server() -> Iterator[Server]:
    with redis_server() as server:
        yield server


def test_the_rights_that_are_advised_suffice_for_every_verb_and_for_undoing_it(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(server.url, "ACL", "SETUSER", "ferry", "on", ">pw", "~other", "+@all")
    poor = RedisStore(with_user(server.url, "ferry", "pw"))
    with pytest.raises(StoreError, match="ACL SETUSER ferry") as refused:
        poor.runner().run(poor.lanes())
    poor.close()
    remedy = str(refused.value).partition("ACL SETUSER ")[2].split()
    ask(server.url, "ACL", "SETUSER", "ferry", "reset", "on", ">pw")
    ask(server.url, "ACL", "SETUSER", *remedy, "~trap")
    monkeypatch.setattr(redis_store, "load_library", lambda: trapped(load_library()))
    trap = Trap(server.url)
    trap.store = RedisStore(with_user(server.url, "ferry", "pw"), trap.clock)
    trap.run = trap.store.runner().run

    for asked in VERBS.values():
        trap.client.flushdb()
        trap.fill()
        operation = asked(trap)
        operations = operation if isinstance(operation, list) else [operation]
        before = trap.all_there_is()
        assert trap.fails_at(1, operations)
        for command in (5, 20, 50):
            if not trap.fails_at(command, operations):
                break
            assert trap.all_there_is() == before
        trap.store.runner().run_all(operations)
    trap.store.close()
    trap.client.close()


def documented_user() -> list[str]:
    """The words of `ACL SETUSER` in the documentation."""
    lines = (ROOT / "docs" / "how-to" / "redis.md").read_text("utf-8").splitlines()
    (line,) = (line for line in lines if "ACL SETUSER" in line)
    return shlex.split(line.partition("ACL SETUSER ")[2])


def test_the_rights_that_are_advised_are_those_of_the_documentation(server: Server) -> None:
    name, on, password, *rights = documented_user()
    ask(server.url, "ACL", "SETUSER", name, on, password, "~other", "+@all")
    poor = RedisStore(with_user(server.url, name, password.removeprefix(">")))

    with pytest.raises(StoreError, match=f"ACL SETUSER {name}") as refused:
        poor.runner().run(poor.lanes())

    assert str(refused.value).partition("ACL SETUSER ")[2].split() == [name, *rights]
    poor.close()


def test_the_user_of_the_documentation_may_do_all_that_a_job_needs_in_its_life(server: Server) -> None:
    name, on, password, *rights = documented_user()
    ask(server.url, "ACL", "SETUSER", name, on, password, *rights)
    store = RedisStore(with_user(server.url, name, password.removeprefix(">")))
    run, waker = store.runner().run, store.waker()
    run(store.register(info(), LEASE))
    waker.drain()

    first = job()
    second = NewJob(
        id=new_id(), task="t", args=b"[]", after=(first.id,), key="k", unique=UniqueKey("u"), tags=("red",),
        max_attempts=2, delay=1,
    )  # fmt: skip
    run(store.enqueue([first, second]))
    assert select.select([waker], [], [], 5)[0]
    for kind in (OutcomeKind.SUCCEEDED, OutcomeKind.RETRY, OutcomeKind.DEAD):
        assert eventually(lambda: run(store.claim(W, [], 0)).lanes)
        (claim,) = run(store.claim(W, [Take("default", 0, 1)], 1)).jobs
        run(store.annotate(W, [JobNote(claim.id, claim.lease, 0.5, "half")]))
        assert run(store.settle(W, [Outcome(claim.id, claim.lease, kind)])) == [True]
    run(store.rescue([W]))
    everything = Retention(succeeded_count=0, dead_count=0)

    assert sum(run(store.prune(everything, 100)).jobs for _ in range(2)) == 2
    assert ask(server.url, "ACL", "LOG") == []
    waker.close()
    store.close()


def test_a_user_who_may_not_publish_is_told_which_rights_suffice(server: Server) -> None:
    ask(server.url, "ACL", "SETUSER", "mute", "on", ">pw", "~*", "resetchannels", "+@all")
    store = RedisStore(with_user(server.url, "mute", "pw"))
    store.runner().run(store.register(info(), LEASE))

    with pytest.raises(StoreError, match=r"lacks a right .*&\{ferryman\}\*"):
        store.runner().run(store.enqueue([job()]))

    assert store.runner().run(store.find(Filter(), 10)) == []
    store.close()


def test_a_worker_that_may_not_listen_does_not_besiege_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listener, "_REFUSED_SECONDS", 0.2)
    ask(server.url, "ACL", "SETUSER", "deaf", "on", ">pw", "~*", "resetchannels", "+@all")
    store = RedisStore(with_user(server.url, "deaf", "pw"))
    before = fact(server.url, "total_connections_received")

    waker = store.waker()
    assert not select.select([waker], [], [], 1.0)[0]

    assert fact(server.url, "total_connections_received") - before < 10
    ask(server.url, "ACL", "SETUSER", "deaf", "allchannels")
    assert select.select([waker], [], [], 5.0)[0]
    waker.close()
    store.close()


def test_after_somebody_has_flushed_the_database_workers_are_told_and_jobs_can_be_enqueued(
    server: Server,
) -> None:
    store = RedisStore(server.url)
    run = store.runner().run
    run(store.register(info(), LEASE))
    run(store.enqueue([job()]))
    (claim,) = run(store.claim(W, [Take("default", 0, 1)], 1)).jobs

    ask(server.url, "FLUSHALL")

    assert run(store.settle(W, [Outcome(claim.id, claim.lease, OutcomeKind.SUCCEEDED)])) == [False]
    with pytest.raises(WorkerGone):
        run(store.heartbeat(W, WorkerStatus(), LEASE))
    with pytest.raises(WorkerGone):
        run(store.claim(W, [Take("default", 0, 1)], 1))
    run(store.register(info(), LEASE))
    new = run(store.enqueue([job()]))[0].id
    assert [each.id for each in run(store.claim(W, [Take("default", 0, 1)], 1)).jobs] == [new]
    store.close()


def test_another_version_has_functions_of_its_own_beside_ours(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = load_library()
    other = library._replace(name="ferryman_2", code=library.code.replace(LIBRARY, "ferryman_2"))
    ours = RedisStore(server.url)
    ours.runner().run(ours.enqueue([job()]))
    monkeypatch.setattr(redis_store, "load_library", lambda: other)
    theirs = RedisStore(f"{server.url}?prefix=theirs")
    theirs.runner().run(theirs.enqueue([job()]))

    names = {bytes(each[1]).decode() for each in ask(server.url, "FUNCTION", "LIST")}

    assert names == {LIBRARY, "ferryman_2"}
    assert ours.runner().run(ours.enqueue([job()]))[0].duplicate is False
    ours.close()
    theirs.close()


@contextlib.contextmanager
def replica_of(server: Server) -> Iterator[Server]:
    ask(server.url, "CONFIG", "SET", "repl-diskless-sync-delay", 0)
    with redis_server(replicaof=f"127.0.0.1 {server.port}") as replica:
        assert eventually(lambda: b"master_link_status:up" in ask(replica.url, "INFO", "replication"))
        yield replica


def fail_over(
    server: Server, replica: Server, monkeypatch: pytest.MonkeyPatch, *, confirmed: int
) -> tuple[list[JobId], list[JobId], list[JobId]]:
    """Enqueue, then cut the replica off, enqueue more, kill the primary and promote the replica.

    Answers the jobs that were acknowledged before the cut, those after it, and those that are there in the end.
    """
    store = RedisStore(f"{server.url}?replicas={confirmed}")
    run = store.runner().run
    before = [run(store.enqueue([job()]))[0].id for _ in range(20)]
    if not confirmed:
        assert ask(server.url, "WAIT", 1, 5_000) is not None
        assert eventually(
            lambda: _offset(server, "master_repl_offset") == _offset(replica, "slave_repl_offset")
        )
    replica.pause()
    monkeypatch.setattr("ferryman.io.redis.talk._CONFIRM_MS", 50)
    after: list[JobId] = []
    for _ in range(3):
        with contextlib.suppress(StoreUnavailable):
            after.append(run(store.enqueue([job()]))[0].id)
    store.close()
    server.kill()
    replica.resume()
    ask(replica.url, "REPLICAOF", "NO", "ONE")
    heir = RedisStore(replica.url)
    there = [each.id for each in heir.runner().run(heir.get([*before, *after])) if each is not None]
    heir.runner().run(heir.enqueue([job()]))
    heir.close()
    return before, after, there


def _offset(server: Server, name: str) -> int:
    lines = ask(server.url, "INFO", "replication").decode().splitlines()
    return int(dict(line.partition(":")[::2] for line in lines)[name])


def test_with_a_confirming_replica_no_acknowledged_job_is_lost_in_a_failover(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica_of(server) as replica:
        before, after, there = fail_over(server, replica, monkeypatch, confirmed=1)

    assert after == []
    assert there == before


def test_orders_that_are_given_after_a_failover_are_heard_though_it_lost_the_last_ones(
    server: Server,
) -> None:
    with replica_of(server) as replica:
        store = RedisStore(server.url)
        run = store.runner().run
        run(store.register(info(), LEASE))
        assert ask(server.url, "WAIT", 1, 5_000) is not None
        assert eventually(
            lambda: _offset(server, "master_repl_offset") == _offset(replica, "slave_repl_offset")
        )
        # What the primary is told from now on gets lost with it.
        ask(replica.url, "REPLICAOF", "NO", "ONE")
        run(store.enqueue([job() for _ in range(50)]))
        run(store.order([W], Order("pause")))
        heard = run(store.heartbeat(W, WorkerStatus(), LEASE)).last
        store.close()
        server.kill()
        heir = RedisStore(replica.url)

        heir.runner().run(heir.order([W], Order("resume")))

        answer = heir.runner().run(heir.heartbeat(W, WorkerStatus(), LEASE, heard))
        assert [order.kind for order in answer.orders] == ["resume"]
        heir.close()


def test_orders_that_are_given_after_the_clock_was_set_back_are_heard(server: Server) -> None:
    clock = ManualClock()
    store = RedisStore(server.url, clock)
    run = store.runner().run
    run(store.register(info(), LEASE * 100))
    run(store.order([W], Order("pause")))
    run(store.order([W], Order("resume")))
    first = run(store.heartbeat(W, WorkerStatus(), LEASE * 100))
    clock.advance(-60)
    run(store.heartbeat(W, WorkerStatus(), LEASE * 100, first.last))

    run(store.order([W], Order("drain")))

    second = run(store.heartbeat(W, WorkerStatus(), LEASE * 100, first.last))
    assert [order.kind for order in first.orders] == ["pause", "resume"]
    assert [order.kind for order in second.orders] == ["drain"]
    store.close()


def test_without_one_a_failover_loses_what_the_replica_had_not_got_yet_and_no_more(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica_of(server) as replica:
        before, after, there = fail_over(server, replica, monkeypatch, confirmed=0)

    assert len(after) == 3
    assert there[: len(before)] == before
