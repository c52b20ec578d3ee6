"""Standbys of PostgreSQL servers: each follows its primary by streaming replication, until it is promoted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.services.postgres import as_user, serving
from tests.services.programs import POSTGRES
from tests.services.server import Server

__all__ = ["promote", "standby_of"]


@contextlib.contextmanager
def standby_of(primary: Server, **options: str) -> Iterator[Server]:
    """A hot standby of a server that runs. Options are those of ``postgresql.conf``, for the standby alone."""
    program = POSTGRES.find().resolve().with_name("pg_basebackup")

    def copy(data: Path) -> None:
        as_user(
            [str(program), f"--dbname={primary.url}", f"--pgdata={data}", "--wal-method=stream",
             "--checkpoint=fast", "--write-recovery-conf", "--no-sync"],
            data.parent,
        )  # fmt: skip

    with serving("standby", copy, options) as standby:
        yield standby


def promote(standby: Server) -> None:
    """Make it a primary, and wait until it takes writes."""
    with psycopg.connect(standby.url, autocommit=True) as connection:
        # It waits for a minute at most.
        assert connection.execute("SELECT pg_promote()").fetchone() == (True,), standby.log[-3_000:]
