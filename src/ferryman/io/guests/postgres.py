"""A PostgreSQL store as a guest on a user's connection to the same database."""

from __future__ import annotations

import asyncio
import functools
import re
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NoReturn, Protocol, TypeVar

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ferryman.errors import ConfigError
from ferryman.io.guests.kinds import library_of, must_be_awaited, unfit
from ferryman.io.operation import Operation
from ferryman.io.postgres.address import Address
from ferryman.io.postgres.database import Database
from ferryman.io.postgres.failures import NEEDS_GATE, is_schema_missing, mapped
from ferryman.io.postgres.forms import form_of
from ferryman.io.postgres.performing import Asked, Rows
from ferryman.io.postgres.requests import Statement, filled

__all__ = ["ACCEPTED", "PostgresGuest", "PostgresLink", "numbered"]

T = TypeVar("T")

ACCEPTED = (
    "a connection of psycopg or asyncpg, a connection or session of SQLAlchemy, or Django's "
    'connections["default"], to the same PostgreSQL database'
)

SAVEPOINT, RELEASE, ROLLBACK = "SAVEPOINT ferryman", "RELEASE ferryman", "ROLLBACK TO ferryman"


class PostgresLink(Protocol):
    """A way to perform one statement on what the user gave, inside a savepoint if a transaction is open: else an error
    would spoil the user's transaction. Placeholders are ``%s``; answered with the rows."""

    def fetch(self, text: str, params: Sequence[Any]) -> Rows:
        """Raises what the driver raises, and ConfigError if the connection must be awaited."""
        ...

    async def afetch(self, text: str, params: Sequence[Any]) -> Rows:
        """`fetch`, awaited."""
        ...


class PostgresGuest:
    """See `ferryman.io.operation.GuestRunner`. As thread-safe as the connection. The server tells workers of new jobs
    when the user commits."""

    def __init__(self, connection: object, database: Database) -> None:
        self._link = _link(connection)
        self._database = database

    def run(self, operation: Operation[T]) -> T:
        asked = Asked([operation])
        if not self._database.is_prepared:
            # On a connection of the store's own, since the tables are not the user's business.
            self._database.prepare()
        try:
            answers = [self._fetch(statement) for statement in asked.statements]
        except Exception as error:
            _raise_mapped(error, self._database.address)
        result: T = asked.hear(answers)[0]
        return result

    async def arun(self, operation: Operation[T]) -> T:
        asked = Asked([operation])
        if not self._database.is_prepared:
            await asyncio.get_running_loop().run_in_executor(None, self._database.prepare)
        try:
            answers = [await self._afetch(statement) for statement in asked.statements]
        except Exception as error:
            _raise_mapped(error, self._database.address)
        result: T = asked.hear(answers)[0]
        return result

    # What changes jobs that others share, such as the end of one with children, asks for the gate, and so keeps others
    # from such changes until the user commits. An enqueue never does.

    def _fetch(self, statement: Statement) -> Rows:
        now = self._database.now()
        try:
            return self._link.fetch(statement.text, filled(statement, now))
        except Exception as error:
            if not _needs_gate(error):
                raise
            return self._link.fetch(statement.text, filled(statement, now, gate=True))

    async def _afetch(self, statement: Statement) -> Rows:
        now = self._database.now()
        try:
            return await self._link.afetch(statement.text, filled(statement, now))
        except Exception as error:
            if not _needs_gate(error):
                raise
            return await self._link.afetch(statement.text, filled(statement, now, gate=True))


# -- errors ------------------------------------------------------------------------------------------


class _Foreign(psycopg.Error):
    """What another driver's error says, as psycopg would say it."""

    def __init__(self, text: str, sqlstate: str, detail: str | None) -> None:
        super().__init__(text)
        self.sqlstate = sqlstate
        self._facts = SimpleNamespace(message_primary=text, message_detail=detail)

    @property
    def diag(self) -> Any:
        return self._facts


def _raise_mapped(error: Exception, address: Address) -> NoReturn:
    """The server's errors as ours; all others, which are about the use of the connection, as they are."""
    told = _as_psycopg(error)
    if told is None:
        raise error
    if is_schema_missing(told):
        # The store has made its tables, or has seen them: so this is another place.
        raise ConfigError(
            f"using= got a connection to a database that has no tables of Ferryman in the schema {address.schema!r} "
            f"({told.diag.message_primary}); this store is in {address.shown}: give it a connection to the same database"
        ) from error
    raise mapped(told, address) from error


def _needs_gate(error: Exception) -> bool:
    told = _as_psycopg(error)
    return told is not None and told.sqlstate == NEEDS_GATE


def _as_psycopg(error: Exception) -> psycopg.Error | None:
    # SQLAlchemy has the driver's error as `orig`, Django as the cause; psycopg2 calls the SQLSTATE `pgcode`.
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, psycopg.Error):
            return found
        found = getattr(found, "orig", None) or found.__cause__
    found = error
    while found is not None:
        deeper = getattr(found, "orig", None) or found.__cause__
        sqlstate = getattr(found, "sqlstate", None) or getattr(found, "pgcode", None)
        if deeper is None and isinstance(sqlstate, str):
            diag = getattr(found, "diag", None)
            text = getattr(diag, "message_primary", None) or getattr(found, "message", None) or str(found)
            detail = getattr(diag, "message_detail", None) or getattr(found, "detail", None)
            return _Foreign(text, sqlstate, detail)
        found = deeper
    return None


# -- the connections themselves ----------------------------------------------------------------------


def _link(connection: Any) -> PostgresLink:
    link: PostgresLink | None = None
    match library_of(connection):
        case "psycopg":
            if isinstance(connection, psycopg.Connection):
                link = _Psycopg(connection)
            elif isinstance(connection, psycopg.AsyncConnection):
                link = _AsyncPsycopg(connection)
        case "asyncpg":
            import asyncpg  # type: ignore[import-untyped]

            if isinstance(connection, (asyncpg.Connection, asyncpg.pool.PoolConnectionProxy)):
                link = _Asyncpg(connection)
        case "sqlalchemy":
            from ferryman.io.guests.sqlalchemy import postgres_link

            link = postgres_link(connection)
        case "django":
            from ferryman.io.guests.django import postgres_link

            link = postgres_link(connection)
        case _:
            pass
    if link is None:
        raise unfit(connection, "PostgreSQL", ACCEPTED)
    return link


def _commits_itself(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return connection.autocommit and connection.info.transaction_status == TransactionStatus.IDLE


class _Psycopg:
    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection

    def fetch(self, text: str, params: Sequence[Any]) -> Rows:
        # Made here, so that it has no row factory and no placeholders of the user's choice.
        with psycopg.Cursor(self._connection, row_factory=tuple_row) as cursor:
            if _commits_itself(self._connection):
                return cursor.execute(text, params).fetchall()
            cursor.execute(SAVEPOINT)
            try:
                rows = cursor.execute(text, params).fetchall()
            except BaseException:
                if not self._connection.closed:
                    cursor.execute(ROLLBACK)
                    cursor.execute(RELEASE)
                raise
            cursor.execute(RELEASE)
            return rows

    async def afetch(self, text: str, params: Sequence[Any]) -> Rows:
        return self.fetch(text, params)


class _AsyncPsycopg:
    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection

    def fetch(self, text: str, params: Sequence[Any]) -> Rows:  # noqa: ARG002
        raise must_be_awaited(self._connection)

    async def afetch(self, text: str, params: Sequence[Any]) -> Rows:
        async with psycopg.AsyncCursor(self._connection, row_factory=tuple_row) as cursor:
            if _commits_itself(self._connection):
                await cursor.execute(text, params)
                return await cursor.fetchall()
            await cursor.execute(SAVEPOINT)
            try:
                await cursor.execute(text, params)
                rows = await cursor.fetchall()
            except BaseException:
                if not self._connection.closed:
                    await cursor.execute(ROLLBACK)
                    await cursor.execute(RELEASE)
                raise
            await cursor.execute(RELEASE)
            return rows


class _Asyncpg:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def fetch(self, text: str, params: Sequence[Any]) -> Rows:  # noqa: ARG002
        raise must_be_awaited(self._connection)

    async def afetch(self, text: str, params: Sequence[Any]) -> Rows:
        connection = self._connection
        text = numbered(text)
        if not connection.is_in_transaction():
            return [tuple(row) for row in await connection.fetch(text, *params)]
        await connection.execute(SAVEPOINT)
        try:
            rows = [tuple(row) for row in await connection.fetch(text, *params)]
        except BaseException:
            if not connection.is_closed():
                await connection.execute(f"{ROLLBACK}; {RELEASE}")
            raise
        await connection.execute(RELEASE)
        return rows


@functools.lru_cache
def numbered(text: str) -> str:
    """The same statement with the placeholders of asyncpg."""
    # Sent as text, since a program may have set a codec of its own for JSON, as asyncpg's documentation shows.
    return re.sub(r"(\$\d+)::(jsonb?)\b", r"\1::text::\2", form_of(text).text.decode())
