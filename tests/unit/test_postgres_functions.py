"""What SQL says once more of what is said in Python."""

from __future__ import annotations

import random
from pathlib import Path

import psycopg

from ferryman.policy.latency import bucket_of
from ferryman.store.open import open_store
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
