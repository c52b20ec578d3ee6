"""SQLite connections, and the two runners that perform a SQLite store's operations.

What a store may ask for is in `requests.py`; `database.py` holds the connections of a process and commits,
`runners.py` the two runners, `bell.py` how workers are woken. Nothing here knows what the statements mean.

Writers take turns. Inside a process, whoever gets the writer's lock first commits the waiting operations of all
threads and coroutines in one transaction (group commit). Between processes, `turns.Turnstile` keeps a busy process
from overtaking, which SQLite's own busy handler does not. Readers wait for nobody (WAL).
"""

from ferryman.io.sqlite.bell import SqliteWaker
from ferryman.io.sqlite.database import Database
from ferryman.io.sqlite.requests import Conflict, Many, Query, Ring, Sync
from ferryman.io.sqlite.runners import AsyncSqliteRunner, SqliteRunner

__all__ = [
    "AsyncSqliteRunner",
    "Conflict",
    "Database",
    "Many",
    "Query",
    "Ring",
    "SqliteRunner",
    "SqliteWaker",
    "Sync",
]
