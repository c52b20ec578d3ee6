"""Which library a connection comes from, and what is said of one that will not do."""

from __future__ import annotations

from ferryman.errors import ConfigError

__all__ = ["library_of", "must_be_awaited", "unfit"]

_LIBRARIES = frozenset({"sqlite3", "aiosqlite", "psycopg", "asyncpg", "sqlalchemy", "django"})


def library_of(connection: object) -> str | None:
    """By where its type or one of its bases was defined: so the library need not be imported to be recognised."""
    for base in type(connection).__mro__:
        library = base.__module__.partition(".")[0]
        if library in _LIBRARIES:
            return library
    return None


def unfit(connection: object, database: str, accepted: str) -> ConfigError:
    """The error for an object that is no connection, or one to another kind of database."""
    kind = type(connection)
    return ConfigError(
        f"using= got {kind.__module__}.{kind.__qualname__}, and this store is in {database}: give it {accepted}"
    )


def must_be_awaited(connection: object) -> ConfigError:
    """The error for an asynchronous connection in a blocking call."""
    kind = type(connection)
    return ConfigError(
        f"using= got {kind.__module__}.{kind.__qualname__}, which is asynchronous: "
        "await task.options(using=…).aenqueue(…), or app.aenqueue_many(…, using=…)"
    )
