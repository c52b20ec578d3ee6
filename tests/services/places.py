"""Places for stores on the shared servers: each folder of a test has a Redis prefix and a PostgreSQL schema.

Making a schema with all its tables and functions takes longer than most tests, so one that is left is emptied and goes
to the next folder.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
from itertools import count
from pathlib import Path

import psycopg
import redis as redis_client
from psycopg import sql

from tests.services.shared import postgres_url, redis_url

__all__ = ["leave", "leave_postgres", "leave_redis", "postgres", "redis"]

_let: dict[Path, str] = {}
"""The schemas of folders that are in use."""
_free: list[str] = []
"""Schemas that are empty."""
_numbers = count()


def leave(folder: Path) -> None:
    """For stores that live in their folder, and go with it."""


def redis(folder: Path) -> str:
    """The URL of the place that this folder has on the Redis server."""
    return f"{redis_url()}?prefix={_prefix(folder)}"


def leave_redis(folder: Path) -> None:
    """Remove all keys of this folder."""
    client = _redis()
    for key in client.scan_iter(f"*{_prefix(folder)}*", count=10_000):
        client.unlink(key)


def postgres(folder: Path) -> str:
    """The URL of the place that this folder has on the PostgreSQL server."""
    if folder not in _let:
        _let[folder] = _free.pop() if _free else f"test_{os.getpid()}_{next(_numbers)}"
    return f"{postgres_url()}?schema={_let[folder]}"


def leave_postgres(folder: Path) -> None:
    """Empty all tables of this folder."""
    if (schema := _let.pop(folder, None)) is None:
        return
    connection = _postgres()
    query = "SELECT tablename FROM pg_tables WHERE schemaname = %s AND tablename <> 'meta'"
    tables = [sql.Identifier(schema, name) for (name,) in connection.execute(query, (schema,))]
    # Not TRUNCATE: that makes and removes a file for each table and index, which takes longer than the test.
    connection.execute(sql.SQL(";").join(sql.SQL("DELETE FROM {}").format(table) for table in tables))
    _free.append(schema)


def _prefix(folder: Path) -> str:
    return f"test-{hashlib.sha256(bytes(folder)).hexdigest()[:12]}"


@functools.cache
def _redis() -> redis_client.Redis:
    client = redis_client.Redis.from_url(redis_url())
    atexit.register(client.close)
    return client


@functools.cache
def _postgres() -> psycopg.Connection[tuple[str, ...]]:
    # Whoever left a transaction open shall be found.
    connection = psycopg.connect(
        postgres_url(), autocommit=True, options="-c lock_timeout=10s -c synchronous_commit=off"
    )
    atexit.register(connection.close)
    return connection
