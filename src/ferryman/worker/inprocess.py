"""A worker inside the program's own process, for scripts, notebooks, tests and the memory store.

It is the same supervisor and the same executor, in threads. What needs a process of its own cannot be had:
a task that computes shares the interpreter with the program, and a hard timeout cannot kill it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from types import TracebackType
from typing import Any, Self

import msgspec

from ferryman.app import App
from ferryman.errors import ConfigError
from ferryman.job import WorkerId
from ferryman.worker.executor import Executor
from ferryman.worker.member import Launched
from ferryman.worker.slots import SlotTable
from ferryman.worker.supervisor import Supervisor

__all__ = ["InProcessWorker"]

log = logging.getLogger("ferryman.worker")


class InProcessWorker:
    """Runs an app's jobs between ``with`` and its end, which waits for those that run."""

    def __init__(self, app: App, queues: tuple[str, ...] | None = None, **overrides: Any) -> None:
        """`overrides` are fields of `ferryman.config.WorkerSettings`.

        Raises ConfigError if one of them is none.
        """
        overrides = {"executors": 1, **overrides}
        try:
            settings = msgspec.structs.replace(app.settings.worker, **overrides)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"the worker's options: {error}") from error
        self._app = app
        self._ready = threading.Event()
        self._error: BaseException | None = None
        self._supervisor = Supervisor(
            lambda places: _launch_thread(app, places),
            lambda _: app.store,
            settings=settings,
            overrides=overrides,
            queues=queues,
            on_ready=self._ready.set,
        )
        self._thread = threading.Thread(target=self._serve, name="ferryman-supervisor", daemon=True)

    @property
    def id(self) -> WorkerId:
        """Its name on the register."""
        return self._supervisor.id

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and wait until it serves. Raises what keeps it from serving, such as StoreError."""
        # In a notebook, tasks are made while it runs.
        self._app.on_new_task.append(self._supervisor.reload)
        self._thread.start()
        self._ready.wait()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """Let running jobs finish, give back the rest, and end."""
        self._supervisor.stop()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _serve(self) -> None:
        try:
            self._supervisor.run()
        except BaseException as error:
            # Whoever started the worker has to learn of it, whatever it is.
            self._error = error
            log.error("the worker ended: %s", error)
        finally:
            self._app.on_new_task.remove(self._supervisor.reload)
            self._ready.set()


class _Thread:
    """An executor in a thread of this process."""

    can_kill = False

    def __init__(self, app: App, sock: socket.socket, theirs: socket.socket, table: SlotTable) -> None:
        self.sock = sock
        self.table = table
        self.pid = os.getpid()
        self._theirs = theirs
        self._executor = Executor(app, theirs, table)
        self._thread = threading.Thread(target=self._serve, name="ferryman-executor", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        try:
            self._executor.run()
        finally:
            with contextlib.suppress(OSError):
                self._theirs.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """It sees the end of its socket, and stops once what it runs allows."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)

    def has_ended(self) -> bool:
        return not self._thread.is_alive()

    def close(self) -> None:
        self.sock.close()
        # A task may run on that cannot be stopped. Then its table has to stay; the process's end frees it.
        if self._executor.is_at_rest.wait(timeout=1.0):
            self._thread.join()
            self._theirs.close()
            self.table.close()


def _launch_thread(app: App, places: int) -> Launched:
    with contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            undo.callback(each.close)
        theirs.settimeout(None)  # whatever the program has made the default
        table = SlotTable.create(places)
        undo.callback(table.close)
        launched = _Thread(app, ours, theirs, table)
        undo.pop_all()
    return launched
