"""A customer is a program with a connection of its own, by the library of its choice: what it can do with it, in the
same words for all. The methods are coroutines; those of a library that blocks never wait."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Coroutine, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import aiosqlite
import asyncpg  # type: ignore[import-untyped]
import django  # type: ignore[import-untyped]
import psycopg
import sqlalchemy
from django.conf import settings  # type: ignore[import-untyped]
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy.ext import asyncio as sqlalchemy_async
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from ferryman.app import App
from ferryman.handle import JobHandle
from ferryman.task import Call, Task

T = TypeVar("T")

if not settings.configured:
    settings.configure(DATABASES={})
    django.setup()


class Place(NamedTuple):
    """A database that a store and its customer share."""

    url: str
    """The store's."""
    kind: str
    """``sqlite`` or ``postgresql``."""
    address: str
    """What drivers are told: a path, or libpq's words."""
    table: str
    """A table of the customer's own."""


class Customer(Protocol):
    """One connection, and the transaction on it."""

    awaits: bool
    """Whether its library must be awaited."""
    using: Any
    """What it gives to ``using=``."""

    async def open(self, place: Place) -> None: ...
    async def begin(self) -> None: ...
    async def execute(self, sql: str) -> None: ...
    async def savepoint(self) -> None: ...
    async def rollback_to_savepoint(self) -> None: ...
    async def release_savepoint(self) -> None: ...
    async def commit(self) -> None: ...
    async def rollback(self) -> None: ...
    async def close(self) -> None: ...


def run(customer: Customer, steps: Coroutine[Any, Any, T]) -> T:
    """Do the steps, in an event loop if the customer has one."""
    if customer.awaits:
        return asyncio.run(steps)
    try:
        steps.send(None)
    except StopIteration as stop:
        answer: T = stop.value
        return answer
    raise AssertionError("a library that blocks has waited")


async def enqueue(customer: Customer, task: Task[..., Any], *args: Any, **options: Any) -> JobHandle[Any]:
    """Enqueue in the customer's transaction, in its colour."""
    chosen = task.options(using=customer.using, **options)
    return await chosen.aenqueue(*args) if customer.awaits else chosen.enqueue(*args)


async def enqueue_many(customer: Customer, app: App, calls: Sequence[Call[Any]]) -> list[JobHandle[Any]]:
    """The same for a batch."""
    if customer.awaits:
        return await app.aenqueue_many(calls, using=customer.using)
    return app.enqueue_many(calls, using=customer.using)


class _Statements:
    """For those whose transactions are statements."""

    async def execute(self, sql: str) -> None:
        raise NotImplementedError

    async def begin(self) -> None:
        await self.execute("BEGIN")

    async def savepoint(self) -> None:
        await self.execute("SAVEPOINT mine")

    async def rollback_to_savepoint(self) -> None:
        await self.execute("ROLLBACK TO mine")

    async def release_savepoint(self) -> None:
        await self.execute("RELEASE mine")

    async def commit(self) -> None:
        await self.execute("COMMIT")

    async def rollback(self) -> None:
        await self.execute("ROLLBACK")


class Sqlite3(_Statements):
    """It begins by itself at the first statement that writes."""

    awaits = False

    async def open(self, place: Place) -> None:
        self.using = sqlite3.connect(place.address)

    async def begin(self) -> None:
        pass

    async def execute(self, sql: str) -> None:
        self.using.execute(sql)

    async def commit(self) -> None:
        self.using.commit()

    async def rollback(self) -> None:
        self.using.rollback()

    async def close(self) -> None:
        self.using.close()


class Sqlite3Explicit(Sqlite3):
    """It says BEGIN and COMMIT itself."""

    async def open(self, place: Place) -> None:
        self.using = sqlite3.connect(place.address, isolation_level=None)

    async def begin(self) -> None:
        await self.execute("BEGIN IMMEDIATE")

    async def commit(self) -> None:
        await self.execute("COMMIT")


class Aiosqlite(_Statements):
    awaits = True

    async def open(self, place: Place) -> None:
        self.using = await aiosqlite.connect(place.address)

    async def begin(self) -> None:
        pass

    async def execute(self, sql: str) -> None:
        await self.using.execute(sql)

    async def commit(self) -> None:
        await self.using.commit()

    async def rollback(self) -> None:
        await self.using.rollback()

    async def close(self) -> None:
        await self.using.close()


class Psycopg(_Statements):
    awaits = False

    async def open(self, place: Place) -> None:
        self.using = psycopg.connect(place.address)

    async def begin(self) -> None:
        pass

    async def execute(self, sql: str) -> None:
        self.using.execute(sql)

    async def close(self) -> None:
        self.using.close()


class PsycopgAsync(_Statements):
    awaits = True

    async def open(self, place: Place) -> None:
        self.using = await psycopg.AsyncConnection.connect(place.address, autocommit=True)

    async def execute(self, sql: str) -> None:
        await self.using.execute(sql)

    async def close(self) -> None:
        await self.using.close()


class Asyncpg(_Statements):
    awaits = True

    async def open(self, place: Place) -> None:
        self.using = await asyncpg.connect(**_for_asyncpg(place))

    async def execute(self, sql: str) -> None:
        await self.using.execute(sql)

    async def close(self) -> None:
        await self.using.close()


class AsyncpgPool(Asyncpg):
    """Its connection is lent by a pool, and its transaction asyncpg's own."""

    async def open(self, place: Place) -> None:
        self._pool = await asyncpg.create_pool(min_size=1, max_size=1, **_for_asyncpg(place))
        self.using = await self._pool.acquire()

    async def begin(self) -> None:
        self._transaction = self.using.transaction()
        await self._transaction.start()

    async def commit(self) -> None:
        await self._transaction.commit()

    async def rollback(self) -> None:
        await self._transaction.rollback()

    async def close(self) -> None:
        await self._pool.release(self.using)
        await self._pool.close()


class SqlalchemyConnection:
    awaits = False

    async def open(self, place: Place) -> None:
        self._engine = sqlalchemy.create_engine(_for_sqlalchemy(place, "sqlite", "postgresql+psycopg"))
        self._bind()

    def _bind(self) -> None:
        self.using: Any = self._engine.connect()

    async def begin(self) -> None:
        pass

    async def execute(self, sql: str) -> None:
        self.using.execute(sqlalchemy.text(sql))

    async def savepoint(self) -> None:
        self._nested = self.using.begin_nested()

    async def rollback_to_savepoint(self) -> None:
        self._nested.rollback()

    async def release_savepoint(self) -> None:
        pass

    async def commit(self) -> None:
        self.using.commit()

    async def rollback(self) -> None:
        self.using.rollback()

    async def close(self) -> None:
        self.using.close()
        self._engine.dispose()


class SqlalchemySession(SqlalchemyConnection):
    def _bind(self) -> None:
        self.using = Session(self._engine)


class SqlalchemyScopedSession(SqlalchemyConnection):
    def _bind(self) -> None:
        self.using = scoped_session(sessionmaker(self._engine))


class SqlalchemyAsyncConnection:
    awaits = True

    async def open(self, place: Place) -> None:
        url = _for_sqlalchemy(place, "sqlite+aiosqlite", "postgresql+asyncpg")
        self._engine = sqlalchemy_async.create_async_engine(url)
        await self._bind()

    async def _bind(self) -> None:
        self.using: Any = await self._engine.connect()

    async def begin(self) -> None:
        pass

    async def execute(self, sql: str) -> None:
        await self.using.execute(sqlalchemy.text(sql))

    async def savepoint(self) -> None:
        self._nested = await self.using.begin_nested()

    async def rollback_to_savepoint(self) -> None:
        await self._nested.rollback()

    async def release_savepoint(self) -> None:
        pass

    async def commit(self) -> None:
        await self.using.commit()

    async def rollback(self) -> None:
        await self.using.rollback()

    async def close(self) -> None:
        await self.using.close()
        await self._engine.dispose()


class SqlalchemyAsyncSession(SqlalchemyAsyncConnection):
    async def _bind(self) -> None:
        self.using = sqlalchemy_async.AsyncSession(self._engine)


class Django:
    """A connection out of ``connections``, with ``atomic`` for the transaction."""

    awaits = False

    async def open(self, place: Place) -> None:
        from django.db import connections, transaction  # type: ignore[import-untyped]

        if place.kind == "sqlite":
            database = {"ENGINE": "django.db.backends.sqlite3", "NAME": place.address}
        else:
            words = conninfo_to_dict(place.address)
            database = {"ENGINE": "django.db.backends.postgresql", "NAME": _word(words, "dbname") or ""}
            for key in ("host", "port", "user", "password"):
                database[key.upper()] = _word(words, key) or ""
        self._transaction = transaction
        with contextlib.suppress(AttributeError):
            del connections["default"]  # one that a test which failed has left open
        connections.settings = connections.configure_settings({"default": database})
        self.using: Any = connections["default"]

    async def begin(self) -> None:
        self._atomic = self._transaction.atomic()
        self._atomic.__enter__()

    async def execute(self, sql: str) -> None:
        with self.using.cursor() as cursor:
            cursor.execute(sql)

    async def savepoint(self) -> None:
        # Its name since Django 6.
        create = getattr(self._transaction, "savepoint_create", None) or self._transaction.savepoint
        self._savepoint = create()

    async def rollback_to_savepoint(self) -> None:
        self._transaction.savepoint_rollback(self._savepoint)

    async def release_savepoint(self) -> None:
        self._transaction.savepoint_commit(self._savepoint)

    async def commit(self) -> None:
        self._atomic.__exit__(None, None, None)

    async def rollback(self) -> None:
        error = RuntimeError("rolled back")
        self._atomic.__exit__(type(error), error, None)

    async def close(self) -> None:
        from django.db import connections

        self.using.close()
        del connections["default"]


SQLITE: tuple[type[Any], ...] = (
    Sqlite3, Sqlite3Explicit, Aiosqlite, SqlalchemyConnection, SqlalchemySession, SqlalchemyScopedSession,
    SqlalchemyAsyncConnection, SqlalchemyAsyncSession, Django,
)  # fmt: skip

POSTGRES: tuple[type[Any], ...] = (
    Psycopg, PsycopgAsync, Asyncpg, AsyncpgPool, SqlalchemyConnection, SqlalchemySession, SqlalchemyAsyncConnection,
    SqlalchemyAsyncSession, Django,
)  # fmt: skip


def _for_sqlalchemy(place: Place, sqlite: str, postgres: str) -> str:
    if place.kind == "sqlite":
        return f"{sqlite}:///{place.address}"
    words = conninfo_to_dict(place.address)
    url = sqlalchemy.URL.create(
        postgres,
        username=_word(words, "user"),
        password=_word(words, "password"),
        host=_word(words, "host"),
        port=int(words["port"] or 0),
        database=_word(words, "dbname"),
    )
    return url.render_as_string(hide_password=False)


def _for_asyncpg(place: Place) -> dict[str, Any]:
    words = conninfo_to_dict(place.address)
    names = {"dbname": "database"}
    return {
        names.get(k, k): v for k, v in words.items() if k in ("host", "port", "user", "password", "dbname")
    }


def _word(words: Any, name: str) -> str | None:
    value = words.get(name)
    return None if value is None else str(value)
