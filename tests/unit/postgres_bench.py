"""A schema of its own on a server, with a table of numbers, and what tests of runners do to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from ferryman.clock import ManualClock
from ferryman.io.operation import Operation, Requests
from ferryman.io.postgres import AsyncPostgresRunner, Database, PostgresRunner, Statement, parse_url

__all__ = ["Bench", "in_a_loop", "until"]

LOCK = 7_700_000
"""An advisory lock by which a test holds up a statement."""

ROW = Statement("INSERT INTO number (n) VALUES (%s::integer) RETURNING n, pg_current_xact_id()::text::bigint")

TABLES = """
CREATE TABLE number (n int NOT NULL CHECK (n >= 0));
CREATE SEQUENCE tries;
CREATE FUNCTION refuse(code text, message text, detail text) RETURNS int LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message, DETAIL = detail;
END $$;
CREATE FUNCTION fail_at_first(code text, times int) RETURNS bigint LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE try bigint := nextval('tries');
BEGIN
    IF try <= times THEN RAISE EXCEPTION USING ERRCODE = code, MESSAGE = 'others were in the way'; END IF;
    RETURN try;
END $$;
CREATE FUNCTION at_the_gate(n int, gate boolean) RETURNS boolean LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO number (n) VALUES (n);
    IF NOT gate THEN RAISE EXCEPTION USING ERRCODE = 'FY001', MESSAGE = 'again, with the gate'; END IF;
    RETURN gate;
END $$;
"""


class Bench:
    """A schema of its own on a server, with a table of numbers, and what a test does to it."""

    def __init__(self, server: str, *, through: str | None = None) -> None:
        self.name = f"runner_{uuid.uuid4().hex[:12]}"
        self.admin = psycopg.connect(server, autocommit=True)
        self.admin.execute(f'CREATE SCHEMA "{self.name}"')
        self.admin.execute(f'SET search_path = "{self.name}"')
        self.admin.execute(TABLES)
        self.url = f"{through or server}?schema={self.name}&application_name={self.name}"
        self.address = parse_url(self.url)
        self.prepared = 0
        self.database = self.open()
        self.runner = PostgresRunner(self.database)

    def open(self, clock: ManualClock | None = None) -> Database:
        return Database(self.address, clock, self._prepare)

    def _prepare(self, connection: psycopg.Connection[Any]) -> None:
        self.prepared += 1
        assert connection.execute("SELECT 1").fetchone() == (1,)

    def close(self) -> None:
        self.database.close()
        self.admin.execute(f'DROP SCHEMA "{self.name}" CASCADE')
        self.admin.close()

    def text(self, text: str) -> str:
        """Statements name their schema."""
        for name in ("number", "refuse", "fail_at_first", "at_the_gate"):
            text = text.replace(f" {name}", f' "{self.name}".{name}')
        return text

    def ask(self, text: str, *params: Any, writes: bool = True) -> Operation[Any]:
        def body(_: int) -> Requests[Any]:
            return (yield Statement(self.text(text), params))

        return Operation(text.split()[0], body, writes=writes)

    def put(self, n: int) -> Operation[Any]:
        """Answers the number, and which transaction put it."""
        return self.ask(ROW.text, n)

    def numbers(self) -> list[int]:
        return [n for (n,) in self.admin.execute("SELECT n FROM number ORDER BY n").fetchall()]

    def sessions(self) -> list[int]:
        """The connections of the stores of this test."""
        rows = self.admin.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY pid", (self.name,)
        )
        return [pid for (pid,) in rows.fetchall()]

    def end_sessions(self) -> None:
        """As a restart of the server or an operator would."""
        pids = self.sessions()
        self.admin.execute("SELECT pg_terminate_backend(pid) FROM unnest(%s::int[]) AS pid", (pids,))
        until(lambda: not set(pids) & set(self.sessions()))

    @contextlib.contextmanager
    def held_up(self) -> Iterator[Callable[[], None]]:
        """While it lasts, `stuck` does not end, until it is told to."""
        self.admin.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        held = True

        def let_go() -> None:
            nonlocal held
            if held:
                held = False
                self.admin.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))

        try:
            yield let_go
        finally:
            let_go()

    def stuck(self, *, writes: bool = True) -> Operation[Any]:
        return self.ask("SELECT 'through' FROM pg_advisory_xact_lock_shared(%s::bigint)", LOCK, writes=writes)

    def waits(self) -> bool:
        """Whether somebody is held up."""
        row = self.admin.execute(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted AND objid = %s",
            (LOCK,),
        ).fetchone()
        return row is not None and row[0] > 0


def until(true: Callable[[], object]) -> None:
    give_up = time.monotonic() + 30
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.002)


def in_a_loop(bench: Bench, work: Callable[[AsyncPostgresRunner], Any]) -> Any:
    """Run a coroutine function with a runner of its own."""

    async def live() -> Any:
        runner = AsyncPostgresRunner(bench.database)
        try:
            return await work(runner)
        finally:
            await runner.close()

    return asyncio.run(live())
