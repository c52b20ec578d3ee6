"""Vacuuming tables, which PostgreSQL does outside of any transaction."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from ferryman.io.postgres.address import Address
from ferryman.io.postgres.connections import connect, drop
from ferryman.io.postgres.failures import mapped

__all__ = ["vacuum"]

# Whoever is at it already is left to it. No other core is taken, and nobody is kept waiting while a table is cut short.
_VACUUM = sql.SQL("VACUUM (SKIP_LOCKED, PARALLEL 0, TRUNCATE off) {}")


def vacuum(address: Address, tables: Sequence[str]) -> None:
    """Vacuum these tables of the address's schema, on a connection of its own. Blocks for as long as it takes.

    Raises StoreError.
    """
    connection = connect(address)
    try:
        for table in tables:
            connection.execute(_VACUUM.format(sql.Identifier(address.schema, table)))
    except psycopg.Error as error:
        raise mapped(error, address) from error
    finally:
        drop(connection)
