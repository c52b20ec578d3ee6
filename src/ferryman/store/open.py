"""From a URL to a store. Each store's module is imported only when its URL is used."""

from __future__ import annotations

from urllib.parse import unquote, urlsplit

from ferryman.clock import Clock, SystemClock
from ferryman.errors import ConfigError
from ferryman.store.port import Store

__all__ = ["open_store"]


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
        case _:
            raise ConfigError(
                f"the store URL {url!r} is none that Ferryman knows; write sqlite:///jobs.db "
                "(relative), sqlite:////var/lib/jobs.db (absolute) or memory://"
            )


def _sqlite_path(url: str) -> str:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or len(path) < 2 or parts.query or parts.fragment:
        raise ConfigError(
            f"the store URL {url!r} names no file; write sqlite:///jobs.db for one in the working directory "
            "or sqlite:////var/lib/jobs.db for an absolute path"
        )
    return path[1:]
