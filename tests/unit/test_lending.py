"""Connections that stores lend to tasks: each borrower gets a plain one, and leaves no lock behind."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.abc import Buffer
from psycopg.rows import dict_row
from psycopg.types.json import set_json_loads
from psycopg.types.string import TextLoader

from ferryman import Ferryman
from ferryman.errors import ConfigError
from tests.services import places


def test_a_borrower_does_not_find_what_the_last_one_has_changed(tmp_path: Path) -> None:
    app = Ferryman(places.postgres(tmp_path))
    with app.store.transaction() as connection:
        connection.row_factory = dict_row

    with app.store.transaction() as connection:
        assert connection.execute("SELECT 1").fetchall() == [(1,)]
    app.close()
    places.leave_postgres(tmp_path)


_LEFT_BEHIND = (
    "SET search_path = elsewhere",
    "SET app.tenant = 'acme'",
    "SET statement_timeout = 77",
    "CREATE TEMP TABLE scratch (n int)",
    "SELECT pg_advisory_lock(7105)",
    "LISTEN gossip",
)

_WHAT_IS_THERE = (
    "SELECT current_setting('search_path') = 'elsewhere', coalesce(current_setting('app.tenant', true), '') <> '',"
    " current_setting('statement_timeout') = '77ms', to_regclass('pg_temp.scratch') IS NOT NULL,"
    " EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 7105 AND pid = pg_backend_pid()),"
    " EXISTS (SELECT pg_listening_channels())"
)


def test_a_borrower_does_not_find_what_the_last_one_has_set_for_the_session(tmp_path: Path) -> None:
    app = Ferryman(places.postgres(tmp_path))
    with app.store.transaction() as connection:
        for statement in _LEFT_BEHIND:
            connection.execute(statement)
        first = connection.info.backend_pid

    with app.store.transaction() as connection:
        found = connection.execute(_WHAT_IS_THERE).fetchall()
        second = connection.info.backend_pid

    app.close()
    places.leave_postgres(tmp_path)
    assert first == second
    assert found == [(False,) * 6]


def test_a_coroutine_does_not_find_what_the_last_one_has_set_for_the_session(tmp_path: Path) -> None:
    app = Ferryman(places.postgres(tmp_path))

    async def borrow() -> tuple[int, int, object]:
        async with app.store.atransaction() as connection:
            for statement in _LEFT_BEHIND:
                await connection.execute(statement)
            first = connection.info.backend_pid
        async with app.store.atransaction() as connection:
            found = await (await connection.execute(_WHAT_IS_THERE)).fetchall()
            second = connection.info.backend_pid
        # While there is the loop that it is of.
        app.store.close()
        return first, second, found

    first, second, found = asyncio.run(borrow())

    app.close()
    places.leave_postgres(tmp_path)
    assert first == second
    assert found == [(False,) * 6]


class Shouting(TextLoader):
    def load(self, data: Buffer) -> str:
        return str(super().load(data)).upper()


_WHAT_IS_READ = """SELECT 'abc'::text, '{"a": 1}'::json"""

_SAY_SOMETHING = "DO $$ BEGIN RAISE NOTICE 'between us'; END $$"


def _settle_in(connection: Any, heard: list[object]) -> None:
    connection.adapters.register_loader("text", Shouting)
    set_json_loads(lambda _: "mine", connection)
    connection.add_notice_handler(heard.append)
    connection.prepare_threshold = 0
    connection.row_factory = dict_row


def test_a_borrower_does_not_find_what_the_last_one_has_set_on_this_side(tmp_path: Path) -> None:
    app = Ferryman(places.postgres(tmp_path))
    heard: list[object] = []
    with app.store.transaction() as connection:
        _settle_in(connection, heard)
        connection.execute(_WHAT_IS_READ)
        first, before = connection.info.backend_pid, connection

    with app.store.transaction() as connection:
        second, threshold = connection.info.backend_pid, connection.prepare_threshold
        read = connection.execute(_WHAT_IS_READ).fetchall()
        connection.execute(_SAY_SOMETHING)
        with pytest.raises(psycopg.OperationalError, match="closed"):
            before.execute("SELECT 'from an earlier life'")

    app.close()
    places.leave_postgres(tmp_path)
    assert first == second
    assert (read, threshold, heard) == ([("abc", {"a": 1})], None, [])


def test_a_coroutine_does_not_find_what_the_last_one_has_set_on_this_side(tmp_path: Path) -> None:
    app = Ferryman(places.postgres(tmp_path))
    heard: list[object] = []

    async def borrow() -> tuple[int, int, object]:
        async with app.store.atransaction() as connection:
            _settle_in(connection, heard)
            await connection.execute(_WHAT_IS_READ)
            first, before = connection.info.backend_pid, connection
        async with app.store.atransaction() as connection:
            second, threshold = connection.info.backend_pid, connection.prepare_threshold
            read = await (await connection.execute(_WHAT_IS_READ)).fetchall()
            await connection.execute(_SAY_SOMETHING)
            with pytest.raises(psycopg.OperationalError, match="closed"):
                await before.execute("SELECT 'from an earlier life'")
        app.store.close()
        return first, second, (read, threshold)

    first, second, found = asyncio.run(borrow())

    app.close()
    places.leave_postgres(tmp_path)
    assert first == second
    assert (found, heard) == (([("abc", {"a": 1})], None), [])


def test_a_connection_that_was_given_another_isolation_is_not_lent_again(tmp_path: Path) -> None:
    app = Ferryman(places.postgres(tmp_path))
    with app.store.transaction() as connection:
        first = connection.info.backend_pid
    with app.store.transaction() as connection:
        second = connection.info.backend_pid
        connection.execute("ROLLBACK")
        connection.isolation_level = psycopg.IsolationLevel.SERIALIZABLE
        connection.execute("BEGIN")

    with app.store.transaction() as connection:
        third = connection.isolation_level

    app.close()
    places.leave_postgres(tmp_path)
    assert first == second
    assert third is None


def test_a_transaction_that_is_rolled_back_in_silence_is_an_error(tmp_path: Path) -> None:
    app = Ferryman(places.postgres(tmp_path))

    async def roll_back() -> None:
        async with app.store.atransaction():
            raise psycopg.Rollback

    with pytest.raises(ConfigError, match="Rollback is not for"), app.store.transaction():
        raise psycopg.Rollback
    with pytest.raises(ConfigError, match="Rollback is not for"):
        asyncio.run(roll_back())

    app.close()
    places.leave_postgres(tmp_path)


def test_what_a_borrower_raises_is_heard_though_he_has_closed_the_connection(tmp_path: Path) -> None:
    app = Ferryman(f"sqlite:///{tmp_path}/jobs.db")

    async def borrow() -> None:
        async with app.store.atransaction() as connection:
            connection.close()
            raise KeyError("his own")

    def borrow_here() -> None:
        with app.store.transaction() as connection:
            connection.close()
            raise KeyError("his own")

    with pytest.raises(KeyError):
        borrow_here()
    with pytest.raises(KeyError):
        asyncio.run(borrow())

    app.close()


def test_a_with_block_of_a_borrower_is_told_of_what_it_tried_first(tmp_path: Path) -> None:
    app = Ferryman(f"sqlite:///{tmp_path}/jobs.db")

    with (
        pytest.raises(ConfigError, match=r"^COMMIT is not for"),
        app.store.transaction() as connection,
        connection,
    ):
        connection.execute("SELECT 1")
    with (
        pytest.raises(ConfigError, match=r"^ROLLBACK is not for"),
        app.store.transaction() as connection,
        connection,
    ):
        raise KeyError("his own")

    app.close()


def test_a_cancel_while_the_lock_is_waited_for_leaves_no_lock_behind(tmp_path: Path) -> None:
    app = Ferryman(f"sqlite:///{tmp_path}/jobs.db")
    app.enqueue("nobody.has.it")

    async def borrow() -> None:
        async with app.store.atransaction():
            raise AssertionError("it was not cancelled")

    async def live() -> None:
        with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            before = threading.active_count()
            waiting = asyncio.create_task(borrow())
            while threading.active_count() == before:
                await asyncio.sleep(0)
            waiting.cancel()
            other.execute("COMMIT")
            with pytest.raises(asyncio.CancelledError):
                await waiting
            # At once, since the other has a timeout of none.
            other.execute("PRAGMA busy_timeout=0")
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")

    asyncio.run(live())
    app.close()
