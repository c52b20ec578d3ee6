"""What SQL says once more of what is said elsewhere: in Python, or by the other stores one job after the other."""

from __future__ import annotations

import random
from pathlib import Path

import psycopg

from ferryman.clock import ManualClock
from ferryman.job import State
from ferryman.policy.latency import bucket_of
from ferryman.store.open import open_store
from tests.conformance.driver import Ferry
from tests.services import places


def test_durations_go_into_the_same_buckets(tmp_path: Path) -> None:
    luck = random.Random(7)
    edges = [(1 << bit) + more for bit in range(62) for more in (-1, 0, 1)]
    durations = [-5, 0, *edges, *(luck.randrange(1 << luck.randrange(1, 62)) for _ in range(2_000))]
    url = places.postgres(tmp_path)
    store = open_store(url)
    store.runner().run(store.lanes())

    server, _, schema = url.partition("?schema=")
    with psycopg.connect(server) as connection:
        connection.execute(f"SET search_path = {schema}")
        rows = connection.execute(
            "SELECT us, bucket_of(us) FROM unnest(%s::bigint[]) AS d(us)", (durations,)
        ).fetchall()
    store.close()
    places.leave_postgres(tmp_path)

    assert rows == [(us, bucket_of(us)) for us in durations]


def test_jobs_that_are_late_at_once_expire_one_after_the_other(tmp_path: Path) -> None:
    clock = ManualClock()
    store = open_store(places.postgres(tmp_path), clock)
    ferry = Ferry(store, clock, lambda: store)
    holder = ferry.add(key="k", ordered=True, ttl=1_000)
    child = ferry.add(key="k", ordered=True, after=(holder,), on_parent_failure="continue")
    late_child = ferry.add(after=(holder,), ttl=1_000)
    parked = ferry.add(key="k", ordered=True, ttl=1_000)
    last = ferry.add(key="k", ordered=True)

    clock.advance(1_001)
    ferry.claim(0, plan=[])

    # The place of the key went to the one that was parked, and by its end to the first one of those that were left.
    expected = [State.EXPIRED, State.READY, State.CANCELLED, State.EXPIRED, State.PARKED]
    assert ferry.states([holder, child, late_child, parked, last]) == expected
    store.close()
    places.leave_postgres(tmp_path)
