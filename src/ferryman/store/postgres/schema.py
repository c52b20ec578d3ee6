"""The numbers that columns hold, and the SQL files that make the tables and functions.

`sql/` holds numbered steps, each of which is done once, and `sql/functions/` the functions, which are replaced as a
whole. A change of either goes with a larger `VERSION`; what a step does must leave the Ferryman before it working, so that old
and new workers run side by side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from importlib import resources
from typing import Any, TypeVar

import psycopg

from ferryman.io.postgres.address import parse_url
from ferryman.io.postgres.connections import connect, drop
from ferryman.io.postgres.failures import mapped
from ferryman.io.postgres.migrating import Act, Release, Source, acts
from ferryman.io.postgres.migrating import migrate as migrate_schema
from ferryman.io.postgres.migrating import prepare as prepare_schema

__all__ = ["VERSION", "migrate", "outstanding", "prepare", "release"]

T = TypeVar("T")

VERSION = 1
"""Of the tables and functions together."""

_OLDEST_OK = 1
"""The oldest `VERSION` of a Ferryman that can use tables and functions of this one."""

_OLDEST_STORE = 1
"""The oldest `VERSION` of tables and functions that this Ferryman can use."""


def prepare(connection: psycopg.Connection[Any], schema: str) -> None:
    """Make the tables if there are none. Raises StoreVersionError, StoreCorrupt if they are not for this Ferryman."""
    prepare_schema(connection, schema, release())


def migrate(url: str) -> list[str]:
    """Bring the store of a URL to this Ferryman's version. Answers the titles of what was done, if anything was."""
    return _on_store(url, migrate_schema)


def outstanding(url: str) -> list[Act]:
    """What `migrate` would do now."""
    return _on_store(url, acts)


def _on_store(url: str, do: Callable[[psycopg.Connection[Any], str, Release], list[T]]) -> list[T]:
    address = parse_url(url)
    connection = connect(address)
    try:
        return do(connection, address.schema, release())
    except psycopg.Error as error:
        raise mapped(error, address) from error
    finally:
        drop(connection)


@functools.cache
def release() -> Release:
    """What this Ferryman expects of a schema."""
    folder = resources.files("ferryman.store.postgres") / "sql"
    return Release(
        version=VERSION,
        oldest_ok=_OLDEST_OK,
        oldest_store=_OLDEST_STORE,
        steps=_sources(folder.iterdir()),
        functions=_sources((folder / "functions").iterdir()),
    )


def _sources(files: Iterable[Any]) -> tuple[Source, ...]:
    """SQL files by name, which is their order."""
    found = (file for file in files if file.name.endswith(".sql"))
    return tuple(
        Source(file.name.removesuffix(".sql"), file.read_text("utf-8"))
        for file in sorted(found, key=lambda file: str(file.name))
    )
