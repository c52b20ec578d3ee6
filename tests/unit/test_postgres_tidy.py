"""Tables that hold many dead rows are vacuumed by a worker, since the server comes once a minute only."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from ferryman.store.open import open_store
from ferryman.store.port import Store
from tests.unit.postgres_bench import until


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    store = open_store(url)
    store.runner().run(store.lanes())
    yield store
    store.close()


def _leave_dead_rows(admin: psycopg.Connection[Any]) -> None:
    """In a table that no vacuum of the server's comes to before us, and that no test before has vacuumed."""
    admin.execute("SELECT pg_stat_reset_single_table_counters('stat_news'::regclass)")
    admin.execute("ALTER TABLE stat_news SET (autovacuum_enabled = off)")
    admin.execute("INSERT INTO stat_news SELECT n, 'q', 't', 0, 0, 1 FROM generate_series(1, 30000) n")
    admin.execute("DELETE FROM stat_news")
    until(lambda: _dead(admin) >= 30_000)


def _dead(admin: psycopg.Connection[Any]) -> int:
    return _ask(admin, "SELECT pg_stat_get_dead_tuples('stat_news'::regclass)")


def _vacuums(admin: psycopg.Connection[Any]) -> int:
    return _ask(admin, "SELECT pg_stat_get_vacuum_count('stat_news'::regclass)")


def _ask(admin: psycopg.Connection[Any], query: str) -> int:
    row = admin.execute(query).fetchone()
    assert row is not None
    return int(row[0])


def test_a_table_full_of_dead_rows_is_vacuumed_and_others_are_not(
    store: Store, admin: psycopg.Connection[Any]
) -> None:
    _leave_dead_rows(admin)

    store.tidy()

    until(lambda: _dead(admin) == 0)
    assert _vacuums(admin) == 1
    store.tidy()
    assert _vacuums(admin) == 1, "there is nothing left to do"


def test_a_table_that_cannot_be_cleared_just_now_is_not_vacuumed_again_and_again(
    store: Store, url: str, admin: psycopg.Connection[Any]
) -> None:
    with psycopg.connect(url.partition("?")[0]) as looker:
        looker.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        looker.execute("SELECT 1 FROM pg_class")
        _leave_dead_rows(admin)

        store.tidy()
        until(lambda: _vacuums(admin) == 1)
        store.tidy()

        assert (_vacuums(admin), _dead(admin) >= 30_000) == (1, True)


def test_who_does_not_own_the_tables_leaves_them_alone(
    store: Store, url: str, admin: psycopg.Connection[Any]
) -> None:
    server, _, schema = url.partition("?schema=")
    role = f"modest_{secrets.token_hex(4)}"
    name, place = sql.Identifier(role), sql.Identifier(schema)
    admin.execute(sql.SQL("CREATE ROLE {} LOGIN").format(name))
    admin.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(place, name))
    admin.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA {} TO {}").format(place, name))
    _leave_dead_rows(admin)
    modest = open_store(f"{server}?schema={schema}&user={role}")

    modest.tidy()

    assert _vacuums(admin) == 0
    modest.close()
    admin.execute(sql.SQL("DROP OWNED BY {0}; DROP ROLE {0}").format(name))
