"""SQLite connections, and the two runners that perform a SQLite store's operations.

Writers take turns. Inside a process, whoever gets the writer's lock first commits the waiting operations
of all threads and coroutines in one transaction (group commit). Between processes, `turns.Turnstile` gives the
turn in the order of arrival, which SQLite's own busy handler does not. Readers wait for nobody (WAL).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

from ferryman.clock import Clock
from ferryman.errors import (
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
)
from ferryman.io.operation import Operation
from ferryman.io.turns import Turnstile

__all__ = [
    "AsyncSqliteRunner",
    "Conflict",
    "Database",
    "Many",
    "Query",
    "Ring",
    "SqliteRunner",
    "Sync",
]

T = TypeVar("T")

_GROUP = 256
"""Operations committed together at most, so that no one waits for a whole crowd."""

_BUSY_MS = 10_000
"""How long to wait for a foreign connection that holds the database, such as a user's open transaction."""


class Query(NamedTuple):
    """One statement; answered with the list of its rows."""

    sql: str
    params: Sequence[Any] = ()


class Many(NamedTuple):
    """One statement over several rows of parameters; answered with the number of rows changed."""

    sql: str
    rows: Sequence[Sequence[Any]]


class Ring(NamedTuple):
    """Ring these bells once the transaction is committed; answered with None."""

    bells: Sequence[str]


class Sync(NamedTuple):
    """Let this transaction survive a loss of power, though its operation is not durable; answered with None."""


class Conflict(StoreError):
    """A uniqueness constraint failed; the operation that asked knows what it means."""


class _Ticket:
    """One operation on its way through a group commit."""

    __slots__ = ("done", "error", "on_done", "operations", "results")

    def __init__(
        self, operations: Sequence[Operation[Any]], on_done: Callable[[], None] | None = None
    ) -> None:
        self.operations = operations
        self.on_done = on_done
        self.results: list[Any] = []
        self.error: BaseException | None = None
        self.done = False


class _Effects:
    """What operations of a transaction want done beside their statements."""

    __slots__ = ("bells", "sync")

    def __init__(self) -> None:
        self.bells: list[str] = []
        self.sync = False


class Database:
    """One SQLite file as one process sees it: a connection that writes and one that reads.

    Thread-safe. None is open while the process forks, see `hold`; afterwards parent and child open their own.
    """

    def __init__(self, path: str, clock: Clock, prepare: Callable[[sqlite3.Connection], None]) -> None:
        self.path = os.path.abspath(path)
        self._clock = clock
        self._prepare = prepare
        self._opened = 0
        self._reset()
        _databases.add(self)

    def _reset(self) -> None:
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._inode = 0
        self._synced = True
        """Whether the writer's commits are synced, as it is set now."""
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._tickets: deque[_Ticket] = deque()
        self._turnstile = Turnstile(self.path)
        self._bell: socket.socket | None = None

    def hold(self) -> None:
        """Before a fork: let nobody in, and close all.

        SQLite keeps a book of the locks that its process has on a file. A fork copies the book, but not the locks.
        A child beside whose new connection an inherited one were still in that book would believe to hold locks that
        it does not: then others may delete the log that it writes to, and what it was told is stored would be lost.
        """
        self._read_lock.acquire()
        self._write_lock.acquire()
        self._close_connections()

    def let_go(self) -> None:
        """After a fork, in the parent."""
        self._write_lock.release()
        self._read_lock.release()

    def start_anew(self) -> None:
        """After a fork, in the child: what waits is the parent's, as are its threads."""
        self._turnstile.abandon()
        if self._bell is not None:
            self._bell.close()
        self._reset()

    # -- writing -----------------------------------------------------------------------------------

    def write(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Perform operations in one transaction, together with those of other threads that wait."""
        ticket = _Ticket(operations)
        self._tickets.append(ticket)
        with self._write_lock:
            # More than one group may wait before it.
            while not ticket.done:
                self._commit_waiting()
        if ticket.error is not None:
            raise ticket.error
        return ticket.results

    def submit(self, ticket: _Ticket) -> None:
        """Queue a ticket; somebody must call `drain` afterwards."""
        self._tickets.append(ticket)

    def drain(self) -> None:
        """Commit all tickets that wait."""
        while self._tickets:
            with self._write_lock:
                if self._tickets:
                    self._commit_waiting()

    def _commit_waiting(self) -> None:
        group = [self._tickets.popleft() for _ in range(min(len(self._tickets), _GROUP))]
        effects = _Effects()
        try:
            with self._turnstile.turn():
                self._commit(group, effects)
        except BaseException as error:
            for ticket in group:
                ticket.error = ticket.error or error
            if not isinstance(error, Exception):
                raise
        finally:
            for ticket in group:
                ticket.done = True
                if ticket.on_done is not None:
                    ticket.on_done()
        if effects.bells:
            self._ring(effects.bells)

    def _commit(self, group: Sequence[_Ticket], effects: _Effects) -> None:
        connection = self._open_writer()
        durable = any(operation.durable for ticket in group for operation in ticket.operations)
        try:
            if durable != self._synced:
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._synced = durable
            connection.execute("BEGIN IMMEDIATE")
            now = self._clock.now()
            if len(group) == 1:
                _perform_ticket(connection, group[0], now, effects)
            else:
                for ticket in group:
                    _perform_apart(connection, ticket, now, effects)
            connection.execute("COMMIT")
            if effects.sync and not durable:
                self._sync_log()
        except sqlite3.Error as error:
            _undo(connection)
            _raise_mapped(error, self.path)
        except BaseException:
            _undo(connection)
            raise

    def _sync_log(self) -> None:
        log = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(log)
        finally:
            os.close(log)

    def _open_writer(self) -> sqlite3.Connection:
        if self._writer is None:
            self._writer = self._connect()
            self._synced = True
            self._inode = os.stat(self.path).st_ino
        elif not self._is_same_file():
            self._writer = self._reader = None
            raise StoreCorrupt(
                f"the database file {self.path!r} was removed or replaced while it was in use; "
                "restart the program, and restore the file if it held jobs"
            )
        return self._writer

    def _is_same_file(self) -> bool:
        try:
            return os.stat(self.path).st_ino == self._inode
        except FileNotFoundError:
            return False

    # -- reading -------------------------------------------------------------------------------------

    def read(self, operation: Operation[T]) -> T:
        """Perform an operation that writes nothing, on one snapshot."""
        with self._read_lock:
            connection = self._open_reader()
            try:
                connection.execute("BEGIN")
                result: T = _perform_one(connection, operation, self._clock.now(), _Effects())
            except sqlite3.Error as error:
                _raise_mapped(error, self.path)
            finally:
                _undo(connection)
            return result

    def version(self) -> int:
        """Changes when any other connection, of this process or another, has committed."""
        with self._read_lock:
            try:
                row = self._open_reader().execute("PRAGMA data_version").fetchone()
            except sqlite3.Error as error:
                _raise_mapped(error, self.path)
            # Each connection counts for itself.
            return self._opened << 32 | int(row[0])

    def _open_reader(self) -> sqlite3.Connection:
        if self._reader is None:
            # The writer makes the file and its tables, if they are not there yet.
            with self._write_lock, self._turnstile.turn():
                self._open_writer()
            self._reader = self._connect()
            self._reader.execute("PRAGMA query_only=1")
            self._opened += 1
        return self._reader

    # -- connecting ------------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            raise StoreUnavailable(
                f"the directory {directory!r} of the database does not exist; make it, or mend the store URL"
            )
        try:
            connection = sqlite3.connect(
                self.path,
                timeout=_BUSY_MS / 1000,
                isolation_level=None,
                check_same_thread=False,
                cached_statements=256,
            )
            try:
                self._set_up(connection)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            _raise_mapped(error, self.path)
        return connection

    def _set_up(self, connection: sqlite3.Connection) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        # Commits are synced, so that what was acknowledged survives a loss of power; see `Operation.durable`.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA cache_size=-8192")
        connection.execute("PRAGMA temp_store=MEMORY")
        # Fewer, larger checkpoints: each is a pause for whoever commits then.
        connection.execute("PRAGMA wal_autocheckpoint=10000")
        connection.execute("PRAGMA journal_size_limit=67108864")
        self._prepare(connection)

    def close(self) -> None:
        """Close the connections of this process."""
        with self._read_lock, self._write_lock:  # In the order in which `_open_reader` takes them.
            self._close_connections()
            self._turnstile.close()
            if self._bell is not None:
                self._bell.close()
                self._bell = None

    def _close_connections(self) -> None:
        for connection in (self._reader, self._writer):
            if connection is not None:
                connection.close()
        self._writer = self._reader = None

    # -- ringing -----------------------------------------------------------------------------------------

    def _ring(self, bells: Sequence[str]) -> None:
        """Send a datagram to each bell. One that is full is being rung already; one that is gone needs none."""
        if self._bell is None:
            self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._bell.setblocking(False)
        for bell in dict.fromkeys(bells):
            with contextlib.suppress(OSError):
                self._bell.sendto(b"!", bell)


class SqliteRunner:
    """The blocking runner. Thread-safe."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def run(self, operation: Operation[T]) -> T:
        if operation.writes:
            result: T = self._database.write([operation])[0]
            return result
        return self._database.read(operation)

    def run_all(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        return self._database.write(operations)

    def wait(self, seconds: float) -> None:
        """Sleeps grow from a half to 20 ms, so that short waits end soon and long ones cost little."""
        version = self._database.version()
        end = time.monotonic() + seconds
        nap = 0.0005
        while (rest := end - time.monotonic()) > 0:
            time.sleep(min(nap, rest))
            if self._database.version() != version:
                return
            nap = min(nap * 1.5, 0.02)

    def close(self) -> None:
        self._database.close()


class AsyncSqliteRunner:
    """The asyncio runner: one thread commits for all coroutines, as many operations at once as are waiting.

    Reads are done in the loop's own thread: they wait for nobody, and take less time than a change of
    thread would.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._wake = threading.Semaphore(0)
        self._thread: threading.Thread | None = None
        self._pid = 0
        self.closed = False

    async def run(self, operation: Operation[T]) -> T:
        if not operation.writes:
            return self._database.read(operation)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        ticket = _Ticket([operation], lambda: _resolve_soon(loop, future))
        self._ensure_thread()
        self._database.submit(ticket)
        self._wake.release()
        # The transaction cannot be called back: a cancelled caller must not make it half.
        await asyncio.shield(future)
        if ticket.error is not None:
            raise ticket.error
        result: T = ticket.results[0]
        return result

    async def wait(self, seconds: float) -> None:
        version = self._database.version()
        end = time.monotonic() + seconds
        nap = 0.0005
        while (rest := end - time.monotonic()) > 0:
            await asyncio.sleep(min(nap, rest))
            if self._database.version() != version:
                return
            nap = min(nap * 1.5, 0.02)

    async def close(self) -> None:
        self.closed = True
        self._wake.release()

    def _ensure_thread(self) -> None:
        if self._thread is None or self._pid != os.getpid():
            self._pid = os.getpid()
            self._wake = threading.Semaphore(0)
            self._thread = threading.Thread(
                target=_commit_when_woken,
                args=(weakref.ref(self), self._database, self._wake),
                name="ferryman-writer",
                daemon=True,
            )
            self._thread.start()


def _commit_when_woken(
    owner: weakref.ref[AsyncSqliteRunner], database: Database, wake: threading.Semaphore
) -> None:
    while True:
        # The thread ends with its runner, which it must not keep alive.
        if not wake.acquire(timeout=5.0):
            runner = owner()
            if runner is None or runner.closed:
                return
            continue
        while wake.acquire(blocking=False):
            pass
        database.drain()
        runner = owner()
        if runner is not None and runner.closed:
            return
        del runner


def _resolve_soon(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile: nobody waits any more
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


# -- performing --------------------------------------------------------------------------------------


def _perform_ticket(connection: sqlite3.Connection, ticket: _Ticket, now: int, effects: _Effects) -> None:
    ticket.results = [_perform_one(connection, operation, now, effects) for operation in ticket.operations]


def _perform_apart(connection: sqlite3.Connection, ticket: _Ticket, now: int, effects: _Effects) -> None:
    """Perform a ticket so that its failure undoes only itself, not its neighbours in the group."""
    connection.execute("SAVEPOINT ticket")
    try:
        _perform_ticket(connection, ticket, now, effects)
    except sqlite3.Error:
        # The disk is full, or worse: that concerns all.
        raise
    except Exception as error:
        connection.execute("ROLLBACK TO ticket")
        ticket.error = error
    connection.execute("RELEASE ticket")


def _perform_one(connection: sqlite3.Connection, operation: Operation[T], now: int, effects: _Effects) -> T:
    requests = operation.body(now)
    answer: Any = None
    failure: BaseException | None = None
    while True:
        try:
            request = requests.send(answer) if failure is None else requests.throw(failure)
        except StopIteration as stop:
            result: T = stop.value
            return result
        failure = None
        try:
            if type(request) is Query:
                answer = connection.execute(request.sql, request.params).fetchall()
            elif type(request) is Many:
                answer = connection.executemany(request.sql, request.rows).rowcount
            elif type(request) is Ring:
                effects.bells += request.bells
                answer = None
            else:
                effects.sync = True
                answer = None
        except sqlite3.IntegrityError as error:
            failure = Conflict(str(error))
            failure.__cause__ = error


def _undo(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")


def _raise_mapped(error: sqlite3.Error, path: str) -> NoReturn:
    """SQLite's error as ours, with the remedy."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    match code:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            raise StoreUnavailable(
                f"the database {path!r} has been locked by another connection for {_BUSY_MS // 1000} s; "
                "end the transaction that some program holds open on it"
            ) from error
        case sqlite3.SQLITE_FULL:
            raise StoreFull(
                f"the disk of the database {path!r} is full; nothing was stored. Make room on it"
            ) from error
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            raise StoreReadOnly(
                f"the database {path!r} cannot be written to; give this user the right to write "
                f"the file and its directory {str(Path(path).parent)!r}"
            ) from error
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            raise StoreCorrupt(
                f"the file {path!r} is damaged or no SQLite database ({error}); restore it from a backup, "
                "or move it away to begin with an empty one"
            ) from error
        case sqlite3.SQLITE_CANTOPEN:
            raise StoreUnavailable(
                f"the database {path!r} cannot be opened ({error}); check the path and the rights on it"
            ) from error
        case sqlite3.SQLITE_IOERR:
            raise StoreUnavailable(
                f"reading or writing the database {path!r} failed ({error}); nothing was stored. Check its disk"
            ) from error
        case _:
            raise StoreError(f"the database {path!r} answered: {error}") from error


# -- forks -------------------------------------------------------------------------------------------

_databases: weakref.WeakSet[Database] = weakref.WeakSet()

_forking = threading.Lock()
_held: list[Database] = []
"""Between the beginning and the end of a fork, under the lock."""


def _before_fork() -> None:
    _forking.acquire()
    for database in list(_databases):
        database.hold()
        _held.append(database)


def _after_fork_in_parent() -> None:
    while _held:
        _held.pop().let_go()
    _forking.release()


def _after_fork_in_child() -> None:
    while _held:
        _held.pop().start_anew()
    _forking.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
