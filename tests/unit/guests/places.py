"""Databases that a store and a customer share."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg

from ferryman.store.open import open_store
from tests.services import places

from .customers import Place

__all__ = ["orders", "postgres_place", "sqlite_place"]


@contextlib.contextmanager
def sqlite_place(folder: Path) -> Iterator[Place]:
    """A file that was the customer's before it was the store's."""
    path = folder / "shop.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE orders (n INTEGER)")
        connection.commit()
    yield Place(f"sqlite:///{path}", "sqlite", str(path), "orders")


@contextlib.contextmanager
def postgres_place(folder: Path) -> Iterator[Place]:
    """A schema, which the store has made its tables in."""
    url = places.postgres(folder)
    store = open_store(url)
    try:
        store.runner().run(store.queues())
    finally:
        store.close()
    (schema,) = parse_qs(urlsplit(url).query)["schema"]
    address = url.partition("?")[0]
    with psycopg.connect(address, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE IF NOT EXISTS {schema}.orders (n integer)".encode())
    yield Place(url, "postgresql", address, f"{schema}.orders")
    places.leave_postgres(folder)


def orders(place: Place) -> int:
    """How many rows of the customer's are committed."""
    query = f"SELECT count(*) FROM {place.table}"
    if place.kind == "sqlite":
        with contextlib.closing(sqlite3.connect(place.address)) as connection:
            ((count,),) = connection.execute(query)
    else:
        with psycopg.connect(place.address) as connection_:
            ((count,),) = connection_.execute(query.encode())
    return int(count)
