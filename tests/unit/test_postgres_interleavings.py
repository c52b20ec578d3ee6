"""Whatever two transactions do at the same time on PostgreSQL, nothing is lost, stuck or counted wrong, and nobody waits in a
circle: each verb is begun while each other one is under way, in both orders, and the first one commits or not."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ferryman.errors import QueueFull, StoreBusy
from ferryman.io.postgres import performing
from ferryman.job import JobId, State, UniqueKey, WorkerId
from ferryman.store.records import Enqueued, Entry, Filter, Order, Orders, Pruned, Retention, WorkerStatus
from tests.services import places
from tests.unit.postgres_scene import PLAN, VERBS, Scene, Session, check


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder: Path = tmp_path_factory.mktemp("interleavings")
    scene = Scene(places.postgres(folder))
    yield scene
    scene.close()
    places.leave_postgres(folder)


@pytest.fixture
def sessions(scene: Scene) -> Iterator[tuple[Session, Session]]:
    scene.tidy()
    first, second = Session(scene), Session(scene)
    yield first, second
    first.close()
    second.close()


@pytest.mark.parametrize("how", ["COMMIT", "ROLLBACK"])
@pytest.mark.parametrize("first", VERBS, ids=lambda name: name.replace(" ", "-"))
def test_two_transactions_at_once_leave_nothing_broken(
    scene: Scene, sessions: tuple[Session, Session], first: str, how: str
) -> None:
    one, other = sessions
    broken: dict[str, object] = {}
    for second in _seconds(first, how):
        scene.again()
        scene.clock.advance(1)

        one.begin(VERBS[first](scene))
        other.start(VERBS[second](scene))
        other.come_to_rest()
        one.end(how)
        try:
            other.finish()
            check(scene)
            scene.drain()
            check(scene)
        except Exception as error:
            broken[second] = error

    assert broken == {}
    assert one.trouble + other.trouble == []


def _seconds(first: str, how: str) -> list[str]:
    """Half of the verbs, those that a chessboard has on white; all of them for HYPOTHESIS_PROFILE=wander."""
    if os.environ.get("HYPOTHESIS_PROFILE") == "wander":
        return list(VERBS)
    row = list(VERBS).index(first)
    return list(VERBS)[row % 2 :: 2] if how == "COMMIT" else list(VERBS)[row % 8 :: 8]


def test_a_turn_of_a_worker_stands_whatever_comes_between_its_parts(
    scene: Scene, sessions: tuple[Session, Session]
) -> None:
    one, other = sessions
    broken: dict[str, object] = {}
    for second in VERBS:
        for before in (1, 2):
            scene.again()
            scene.clock.advance(1)
            parts = VERBS["turn"](scene)

            one.begin(parts[:before])
            other.start(VERBS[second](scene))
            other.come_to_rest()
            one.go_on(parts[before:])
            one.end()
            try:
                other.finish()
                check(scene)
                scene.drain()
                check(scene)
            except Exception as error:
                broken[f"{second} after {before}"] = error

    assert broken == {}
    assert one.trouble + other.trouble == []


def test_a_child_whose_parent_is_pruned_before_its_commit_runs_all_the_same(scene: Scene) -> None:
    scene.again()
    guest = scene.store.using(scene.admin)
    child = scene.put(after=(scene.ids["over 0"],))

    with scene.admin.transaction():
        guest.runner.run(guest.enqueue([child]))
        assert scene.run(scene.store.prune(Retention(succeeded=0), 1)).jobs == 1
    scene.drain()

    (found,) = scene.run(scene.store.get([child.id]))
    assert found.state is State.SUCCEEDED


def test_a_prune_beside_another_leaves_the_work_to_that_one(
    scene: Scene, sessions: tuple[Session, Session]
) -> None:
    scene.again()
    one, _ = sessions
    prune = scene.store.prune(Retention(succeeded=0, dead=0, other=0), 1)
    one.begin([prune])

    beside = scene.run(prune)

    one.end()
    assert beside == Pruned(0, more=False)
    assert scene.run(prune) == Pruned(1, more=True)


def test_a_key_that_a_prune_takes_away_just_as_it_is_put_anew_is_free(scene: Scene) -> None:
    scene.again()
    assert scene.run(scene.store.kv_put("old", b"then", expected=None, ttl=1)) is not None
    scene.clock.advance(120)
    # Fires when the insert has met the row that is over, and before anything else is tried.
    scene.admin.execute(
        "CREATE FUNCTION prune_now() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN DELETE FROM kv WHERE key = 'old' AND value = 'then'; RETURN NULL; END $$;"
        "CREATE TRIGGER prune_now AFTER INSERT ON kv FOR EACH STATEMENT EXECUTE FUNCTION prune_now()"
    )

    version = scene.run(scene.store.kv_put("old", b"now", expected=None, ttl=60_000))

    scene.admin.execute("DROP FUNCTION prune_now CASCADE")
    assert version is not None
    assert scene.run(scene.store.kv_get("old")) == Entry(b"now", version)


def test_jobs_that_come_to_life_or_get_children_while_a_prune_waits_for_the_gate_stay(
    scene: Scene, sessions: tuple[Session, Session]
) -> None:
    scene.again()
    scene.clock.advance(1)
    one, other = sessions
    replayed, parent = scene.ids["over 1"], scene.ids["over 0"]

    one.begin([
        scene.store.replay(Filter(ids=(replayed,)), 1),
        scene.store.enqueue([scene.put(after=(parent, scene.ids["plain"]))]),
    ])  # fmt: skip
    other.start(VERBS["prune"](scene))
    other.come_to_rest()
    one.end()
    other.finish()

    found = scene.run(scene.store.get([replayed, parent, scene.ids["over keyed"]]))
    assert [job and job.state for job in found] == [State.READY, State.SUCCEEDED, None]
    check(scene)


def test_a_replay_whose_jobs_are_deleted_under_it_time_and_again_keeps_no_unique_key(
    scene: Scene, sessions: tuple[Session, Session]
) -> None:
    scene.again()
    one, other = sessions
    plain, unique = scene.ids["over 1"], scene.ids["over unique"]
    third = Session(scene)

    one.begin([scene.store.delete(Filter(ids=(plain,)), 1)])
    other.start([scene.store.replay(Filter(ids=(plain, unique)), 1)])
    other.come_to_rest()
    third.start([scene.store.delete(Filter(ids=(unique,)), 1)], commit=False)
    third.come_to_rest()
    one.end()
    third.finish()
    other.come_to_rest()
    third.end()
    other.finish()

    check(scene)
    third.close()


def test_claims_find_what_there_is_while_producers_hand_the_gate_on(scene: Scene) -> None:
    scene.again()
    guest = scene.store.using(scene.admin)
    due, left = scene.put(key="due", delay=1_000), scene.put(key="left")
    late = scene.put(queue="nobody's", ttl=1_000)
    scene.run(scene.store.enqueue([due, late]))
    scene.clock.advance(2)
    with scene.admin.transaction():
        guest.runner.run(guest.enqueue([left]))
    jobs = [scene.put(key=f"of its own {turn}") for turn in range(10)]
    producers = [Session(scene), Session(scene)]
    claimed: set[JobId] = set()

    producers[0].begin([scene.store.enqueue(jobs[:1])])
    for turn in range(1, 10):
        holder, waiter = producers[(turn - 1) % 2], producers[turn % 2]
        waiter.start([scene.store.enqueue([jobs[turn]])], commit=False)
        waiter.come_to_rest()
        claimed |= {claim.id for claim in scene.run(scene.store.claim(WorkerId("them"), PLAN, 50)).jobs}
        holder.end()
        waiter.finish()
    producers[1].end()

    # All but those of the last two turns, of whom one had not committed and the other was waiting.
    assert claimed >= {due.id, left.id, *(job.id for job in jobs[:8])}
    assert scene.run(scene.store.get([late.id]))[0].state is State.EXPIRED
    check(scene)
    scene.drain()
    check(scene)
    for producer in producers:
        producer.close()


def test_an_enqueue_that_lets_in_what_was_left_keeps_the_bound_of_its_queue(scene: Scene) -> None:
    scene.again()
    guest = scene.store.using(scene.admin)
    left = scene.put(queue="full")
    with scene.admin.transaction():
        guest.runner.run(guest.enqueue([left]))

    scene.run(scene.store.enqueue([scene.put(key="of its own")]))

    pending = scene.run(scene.store.find(Filter(queues=("full",), states=(State.READY,)), 50))
    assert len(pending) == 3
    assert left.id in {job.id for job in pending}
    check(scene)


def test_a_batch_too_large_for_its_queue_is_refused_whole_although_some_was_left_before(scene: Scene) -> None:
    scene.again()
    guest = scene.store.using(scene.admin)
    with scene.admin.transaction():
        guest.runner.run(guest.enqueue([scene.put(queue="full")]))

    with pytest.raises(QueueFull):
        scene.run(scene.store.enqueue([scene.put(queue="full") for _ in range(4)]))

    check(scene)


def test_an_order_that_takes_its_time_to_commit_is_heard_although_a_later_one_was_heard_before(
    scene: Scene, sessions: tuple[Session, Session]
) -> None:
    scene.again()
    one, other = sessions
    us, job = WorkerId("us"), scene.ids["plain"]

    def heartbeat(heard: int) -> Orders:
        return scene.run(scene.store.heartbeat(us, WorkerStatus(), 60_000, heard))  # type: ignore[no-any-return]

    one.begin([scene.store.cancel(Filter(ids=(job,)), 1)])
    other.start([scene.store.order([us], Order("pause"))])
    other.come_to_rest()
    first = heartbeat(0)
    one.end()
    other.finish()
    second = heartbeat(first.last)

    assert {*first.orders, *second.orders} == {Order("cancel", job), Order("pause")}


def test_an_enqueue_that_waits_for_a_unique_key_of_a_long_transaction_gives_up(
    scene: Scene, sessions: tuple[Session, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sooner than it would by itself.
    monkeypatch.setattr(performing, "_PATIENCE", 0.1)
    scene.again()
    one, _ = sessions
    one.begin(VERBS["deferred unique"](scene))

    with pytest.raises(StoreBusy, match="some program holds open"):
        scene.store.runner().run(scene.store.enqueue([scene.put(unique=UniqueKey("new"))]))

    one.end()


def test_a_job_that_is_given_back_does_not_wait_for_its_unique_key(
    scene: Scene, sessions: tuple[Session, Session]
) -> None:
    scene.again()
    one, other = sessions
    one.begin(VERBS["deferred unique again"](scene))

    other.begin(VERBS["settle released"](scene))

    other.end()
    one.end()
    job = scene.ids["started unique"]
    (again,) = scene.run(scene.store.enqueue([scene.put(unique=UniqueKey("s"))]))
    assert scene.run(scene.store.get([job]))[0].state is State.READY
    assert again.duplicate
    assert again.id != job
    check(scene)


@pytest.mark.parametrize(
    "more", ["", "over 0", "plain"], ids=["plain", "child-of-finished", "child-of-running"]
)
def test_of_one_job_that_is_enqueued_twice_at_the_same_time_one_is_a_duplicate(
    scene: Scene, sessions: tuple[Session, Session], more: str
) -> None:
    scene.again()
    one, other = sessions
    job = scene.put(after=(scene.ids[more],) if more else ())
    # The second stands before its insert when the first one draws its number.
    one.lock_jobs()
    other.start([scene.store.enqueue([scene.put(), job])], commit=False)
    other.come_to_rest()

    one.go_on([scene.store.enqueue([job])])
    one.end()
    other.finish()

    assert other.answers == [[(2, job.id)]]
    other.end()
    check(scene)


def test_jobs_of_many_coroutines_that_are_alike_go_out_as_one(scene: Scene) -> None:
    scene.again()
    known = scene.put()
    jobs = [scene.put() for _ in range(200)]

    async def enqueue() -> list[list[Enqueued]]:
        runner = scene.store.async_runner()
        await runner.run(scene.store.enqueue([known]))
        scene.admin.execute("DELETE FROM stat_news")
        answers = await asyncio.gather(*(runner.run(scene.store.enqueue([job])) for job in [*jobs, known]))
        await runner.close()
        return answers

    answers = asyncio.run(enqueue())

    assert answers == [*([Enqueued(job.id)] for job in jobs), [Enqueued(known.id, duplicate=True)]]
    # One line of statistics for each statement.
    assert scene.admin.execute("SELECT n FROM stat_news").fetchall() == [(200,)]
