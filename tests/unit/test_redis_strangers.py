"""Others at the same server: users with few rights, somebody who flushes, another version's functions, a replica that is
promoted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from ferryman.errors import StoreError, StoreUnavailable, WorkerGone
from ferryman.job import JobId, NewJob, Outcome, OutcomeKind, WorkerId, new_id
from ferryman.store.port import Take, WorkerInfo, WorkerStatus
from ferryman.store.redis import store as redis_store
from ferryman.store.redis.library import LIBRARY, load_library
from ferryman.store.redis.store import RedisStore
from tests.services.redis import redis_server
from tests.services.server import Server

from .redis_trap import VERBS, Trap, trapped
from .redis_trial import ask, eventually, with_user

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


def test_without_one_a_failover_loses_what_the_replica_had_not_got_yet_and_no_more(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with replica_of(server) as replica:
        before, after, there = fail_over(server, replica, monkeypatch, confirmed=0)

    assert len(after) == 3
    assert there[: len(before)] == before
