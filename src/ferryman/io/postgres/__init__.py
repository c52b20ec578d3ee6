"""PostgreSQL connections, and the two runners that perform a PostgreSQL store's operations.

What a store may ask for is in `requests.py`; `database.py` holds the connections of a process, `runners.py` the two
runners, `bell.py` how workers are woken, `migrating.py` how tables get there. Nothing here knows what the statements mean.

An operation is one statement, which the server makes one transaction: one round trip. Those that arrive while a
transaction is under way are gathered and sent together as the next one (group commit), in one pipeline. No setting
outlives a transaction, so that a pooler may stand between; the one connection that listens for bells is told apart.
"""

from ferryman.io.postgres.address import Address, parse_url
from ferryman.io.postgres.bell import PostgresWaker
from ferryman.io.postgres.database import Database
from ferryman.io.postgres.requests import GATE, NOW, OWN, Gap, Statement, filled
from ferryman.io.postgres.runners import AsyncPostgresRunner, PostgresRunner

__all__ = [
    "GATE",
    "NOW",
    "OWN",
    "Address",
    "AsyncPostgresRunner",
    "Database",
    "Gap",
    "PostgresRunner",
    "PostgresWaker",
    "Statement",
    "filled",
    "parse_url",
]
