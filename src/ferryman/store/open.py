"""From a URL to a store. Each store's module is imported only when its URL is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from ferryman.clock import Clock, SystemClock
from ferryman.errors import ConfigError, MissingExtra
from ferryman.io.url import shown
from ferryman.store.port import Store

__all__ = ["Migrations", "find_migrations", "open_store"]


def open_store(url: str, clock: Clock | None = None) -> Store:
    """The store that a URL names. Nothing is connected to before the first operation.

    Raises ConfigError for a URL that names none.
    """
    scheme, _, _ = url.partition("://")
    match scheme:
        case "sqlite":
            from ferryman.store.sqlite.store import SqliteStore

            return SqliteStore(_sqlite_path(url), clock or SystemClock())
        case "memory":
            from ferryman.store.memory.store import MemoryStore

            return MemoryStore(clock or SystemClock())
        case "postgresql" | "postgres":
            _need("psycopg", "postgres", url)
            from ferryman.store.postgres.store import PostgresStore

            return PostgresStore(url, clock)
        case "redis" | "rediss" | "unix":
            _need("redis", "redis", url)
            from ferryman.store.redis.store import RedisStore

            return RedisStore(url, clock)
        case _:
            raise ConfigError(f"the store URL {shown(url)!r} is none that Ferryman knows; {_advice(scheme)}")


class Migrations(NamedTuple):
    """How a store's tables are brought to the version of this Ferryman."""

    script: Callable[[], Sequence[tuple[str, str]]]
    """What would be done now: for each part a title, which may be empty, and the SQL."""
    apply: Callable[[], list[str]]
    """Does it, and answers the titles of what was done."""


def find_migrations(url: str) -> Migrations | None:
    """The migrations of a store; None for a store that needs none, since it makes what it needs by itself."""
    if url.partition("://")[0] not in ("postgresql", "postgres"):
        return None
    _need("psycopg", "postgres", url)
    from ferryman.store.postgres.schema import migrate, outstanding

    return Migrations(lambda: outstanding(url), lambda: migrate(url))


def _need(package: str, extra: str, url: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError as error:
        raise MissingExtra(
            f"the store URL {shown(url)!r} needs the package {package}, which cannot be imported ({error}); "
            f"run: pip install 'ferryman[{extra}]'"
        ) from error


def _advice(scheme: str) -> str:
    if scheme.startswith(("postgresql+", "postgres+", "psycopg")):
        return "write postgresql://user:password@host:5432/database; the driver is always psycopg"
    return (
        "write sqlite:///jobs.db (relative), sqlite:////var/lib/jobs.db (absolute), "
        "postgresql://user:password@host:5432/database, redis://host:6379/0 or memory://"
    )


def _sqlite_path(url: str) -> str:
    # Not by urllib, whose errors repeat what they are about.
    place = url.removeprefix("sqlite://")
    path = unquote(place)
    if not place.startswith("/") or len(path) < 2 or "?" in place or "#" in place:
        raise ConfigError(
            f"the store URL {shown(url)!r} does not name just a file; write sqlite:///jobs.db for one in the working "
            "directory or sqlite:////var/lib/jobs.db for an absolute path, with ? and # as %3F and %23"
        )
    return path[1:]
