"""One SQLite file as one process sees it: connections, commits, and what a fork asks for."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from ferryman.clock import Clock
from ferryman.errors import StoreCorrupt, StoreUnavailable
from ferryman.io.operation import Operation
from ferryman.io.sqlite.failures import BUSY_MS, raise_mapped
from ferryman.io.sqlite.performing import Effects, Ticket, perform_apart, perform_one, perform_ticket, undo
from ferryman.io.sqlite.turns import Turnstile

__all__ = ["Database"]

T = TypeVar("T")

_GROUP = 256
"""Operations committed together at most, so that no one waits for a whole crowd."""


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
        self._tickets: deque[Ticket] = deque()
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

    def now(self) -> int:
        """The time (ms) that operations are to go by."""
        return self._clock.now()

    # -- writing -----------------------------------------------------------------------------------

    def write(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        """Perform operations in one transaction, together with those of other threads that wait."""
        ticket = Ticket(operations)
        self._tickets.append(ticket)
        with self._write_lock:
            # More than one group may wait before it.
            while not ticket.done:
                self._commit_waiting(ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.results

    def submit(self, ticket: Ticket) -> None:
        """Queue a ticket; somebody must call `drain` afterwards."""
        self._tickets.append(ticket)

    def drain(self) -> None:
        """Commit all tickets that wait."""
        while self._tickets:
            with self._write_lock:
                if self._tickets:
                    self._commit_waiting()

    def _commit_waiting(self, own: Ticket | None = None) -> None:
        """Commit a group of those that wait. `own` is the ticket of the thread that does it, if it has one."""
        group = [self._tickets.popleft() for _ in range(min(len(self._tickets), _GROUP))]
        effects = Effects()
        try:
            with self._turnstile.turn():
                self._commit(group, effects)
        except Exception as error:
            for ticket in group:
                ticket.error = ticket.error or error
        except BaseException:
            # This thread is interrupted; the others' operations have nothing to do with that.
            others = [ticket for ticket in group if ticket is not own]
            if effects.committed:
                _tell(others)
            else:
                for ticket in others:
                    ticket.error = None
                self._tickets.extendleft(reversed(others))
            while self._tickets:
                self._commit_waiting()
            raise
        _tell(group)
        if effects.bells:
            self.ring(effects.bells)

    def _commit(self, group: Sequence[Ticket], effects: Effects) -> None:
        connection = self._open_writer()
        durable = any(operation.durable for ticket in group for operation in ticket.operations)
        try:
            if durable != self._synced:
                connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._synced = durable
            connection.execute("BEGIN IMMEDIATE")
            now = self.now()
            if len(group) == 1:
                perform_ticket(connection, group[0], now, effects)
            else:
                for ticket in group:
                    perform_apart(connection, ticket, now, effects)
            # Opened first, since after the commit nothing may fail any more.
            log = self._open_log() if effects.sync and not durable else None
            connection.execute("COMMIT")
            effects.committed = True
            if log is not None:
                _sync(log)
        except sqlite3.Error as error:
            undo(connection)
            raise_mapped(error, self.path)
        except BaseException:
            undo(connection)
            raise

    def _open_log(self) -> int:
        try:
            return os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise StoreUnavailable(
                f"the log of the database {self.path!r} cannot be opened: {error}"
            ) from error

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
                result: T = perform_one(connection, operation, self._clock.now(), Effects())
            except sqlite3.Error as error:
                raise_mapped(error, self.path)
            finally:
                undo(connection)
            return result

    def version(self) -> int:
        """Changes when any other connection, of this process or another, has committed."""
        with self._read_lock:
            try:
                row = self._open_reader().execute("PRAGMA data_version").fetchone()
            except sqlite3.Error as error:
                raise_mapped(error, self.path)
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
                timeout=BUSY_MS / 1000,
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
            raise_mapped(error, self.path)
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

    def ring(self, bells: Sequence[str]) -> None:
        """Send a datagram to each bell. One that is full is being rung already; one that is gone needs none."""
        # What was committed is not to fail for want of a descriptor; the workers look by themselves soon.
        with contextlib.suppress(OSError):
            if self._bell is None:
                self._bell = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
                self._bell.setblocking(False)
            for bell in dict.fromkeys(bells):
                with contextlib.suppress(OSError):
                    self._bell.sendto(b"!", bell)


def _tell(tickets: Sequence[Ticket]) -> None:
    for ticket in tickets:
        ticket.done = True
        if ticket.on_done is not None:
            ticket.on_done()


def _sync(log: int) -> None:
    # The commit is done and stands: a disk that cannot sync will be told of by the next one.
    with contextlib.suppress(OSError):
        os.fsync(log)
    os.close(log)


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
