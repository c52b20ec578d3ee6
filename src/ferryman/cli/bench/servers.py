"""Stores on servers, to be measured: each measurement gets a schema or a prefix of its own, which is removed."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from ferryman.cli.output import warn

if TYPE_CHECKING:
    import psycopg

__all__ = ["SERVERS", "Server", "Statements"]


class Statements(NamedTuple):
    """How to count the statements of a worker."""

    url: str
    """By which the worker must be told to reach its store."""
    asked: Callable[[], int]
    """How many there have been so far."""
    counts_others: bool
    """Whether those of other clients are among them."""


@runtime_checkable
class Server(Protocol):
    """A `Ground` on a server."""

    url: str
    about: str
    has_processes: bool

    def fresh(self) -> contextlib.AbstractContextManager[str]:
        """The URL of a new, empty store, which is gone afterwards."""
        ...

    def listen_in(self, url: str) -> contextlib.AbstractContextManager[Statements | None]:
        """Be ready to count what a worker on this store asks. None where that cannot be done here, which the user has
        been told."""
        ...

    def used_memory(self) -> int | None:
        """The bytes in which the server keeps jobs, if it keeps them in memory."""
        ...

    def disk_size(self, url: str) -> int | None:
        """The bytes of a store's tables and indexes, if it has any."""
        ...


class _Postgres:
    has_processes = True

    def __init__(self, url: str) -> None:
        from ferryman.io.postgres.address import parse_url

        self._url = url
        self.url = self.about = parse_url(url).shown

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        url = _with_option(self._url, "schema", f"ferryman_bench_{secrets.token_hex(4)}")
        try:
            yield url
        finally:
            self._drop(url)

    @contextlib.contextmanager
    def listen_in(self, url: str) -> Iterator[Statements | None]:
        from ferryman.cli.bench.relay import Refused, open_relay, through
        from ferryman.io.postgres.address import parse_url

        address = parse_url(url)
        with contextlib.ExitStack() as stack:
            try:
                relays = [stack.enter_context(open_relay(address.conninfo))]
                if address.listen not in (None, address.conninfo):
                    relays.append(stack.enter_context(open_relay(address.listen)))
            except Refused as why:
                warn(f"idle_statements: left out, since {why}")
                yield None
                return
            listen = "no" if address.listen is None else through(relays[-1], address.listen)
            by = through(relays[0], address.conninfo, schema=address.schema, listen=listen)
            yield Statements(by, lambda: sum(relay.asked() for relay in relays), counts_others=False)

    def used_memory(self) -> int | None:
        return None

    def disk_size(self, url: str) -> int | None:
        from ferryman.io.postgres.address import parse_url

        with self._connect(url) as connection:
            row = connection.execute(
                "SELECT sum(pg_total_relation_size(c.oid)) FROM pg_class c WHERE c.relkind = 'r'"
                " AND c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = %s)",
                [parse_url(url).schema],
            ).fetchone()
        assert row is not None
        return int(row[0])

    def _drop(self, url: str) -> None:
        from psycopg import sql

        from ferryman.io.postgres.address import parse_url

        schema = sql.Identifier(parse_url(url).schema)
        with self._connect(url) as connection:
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(schema))

    def _connect(self, url: str) -> psycopg.Connection[tuple[Any, ...]]:
        from ferryman.io.postgres.address import parse_url
        from ferryman.io.postgres.connections import connect

        return connect(parse_url(url))


class _Redis:
    has_processes = True

    def __init__(self, url: str) -> None:
        import redis

        from ferryman.io.redis.address import parse_url

        self._url = url
        address = parse_url(url)
        self.url = self.about = address.shown
        self._client = redis.Redis(
            host=address.node.host,
            port=address.node.port,
            db=address.db,
            username=address.username,
            password=address.password,
            ssl=address.tls is not None,
        )

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        prefix = f"ferryman_bench_{secrets.token_hex(4)}"
        try:
            yield _with_option(self._url, "prefix", prefix)
        finally:
            # Such a prefix holds nothing that a pattern would take for something else.
            for key in self._client.scan_iter(match=f"{{{prefix}}}*", count=1_000):
                self._client.unlink(key)

    @contextlib.contextmanager
    def listen_in(self, url: str) -> Iterator[Statements | None]:
        yield Statements(url, self._count_statements, counts_others=True)

    def _count_statements(self) -> int:
        # What functions call in their turn is counted as well, under its own name.
        asked = self._client.info("commandstats")
        return sum(int(asked[name]["calls"]) for name in _ASKED if name in asked)

    def used_memory(self) -> int | None:
        return int(self._client.info("memory")["used_memory"])

    def disk_size(self, url: str) -> int | None:  # noqa: ARG002
        return None


_ASKED = ("cmdstat_fcall", "cmdstat_fcall_ro", "cmdstat_ping")

SERVERS: dict[str, Callable[[str], Server]] = {
    "postgresql": _Postgres,
    "postgres": _Postgres,
    "redis": _Redis,
    "rediss": _Redis,
}
"""By the scheme of a URL, what makes a ground of it."""


def _with_option(url: str, name: str, value: str) -> str:
    parts = urlsplit(url)
    kept = [(each, given) for each, given in parse_qsl(parts.query) if each != name]
    return urlunsplit(parts._replace(query=urlencode([*kept, (name, value)])))
