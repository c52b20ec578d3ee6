"""``ferryman worker``: a supervisor in this process, its executors in children."""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
import threading
from typing import Any

import msgspec

from ferryman.config import WorkerSettings, load_settings
from ferryman.errors import ConfigError, MissingExtra
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.worker.member import launch_process
from ferryman.worker.supervisor import Supervisor

__all__ = ["WorkerStart", "run_worker"]

log = logging.getLogger("ferryman.worker")

_LONG_TO_LOAD = 2.0
"""Seconds after which people are told what a worker that is not ready yet is at."""

_LEAVE_TAKING = 10.0
"""Seconds that a worker may take, beyond its shutdown timeout, to tell the store that it leaves."""


class WorkerStart(msgspec.Struct, frozen=True, kw_only=True):
    """What the command line says of a worker."""

    target: str
    """``module:attribute`` of the app."""
    url: str | None = None
    """The store, whatever the app says."""
    queues: tuple[str, ...] | None = None
    overrides: dict[str, Any] = {}
    """Fields of `WorkerSettings`."""
    reload: bool = False
    log_level: str = "INFO"


def run_worker(start: WorkerStart) -> int:
    """Run a worker until it is told to stop. Answers the process's exit code.

    Raises ConfigError if the app cannot be loaded, StoreError if its store cannot be used.
    """
    logging.basicConfig(
        level=start.log_level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    loading = threading.Timer(
        _LONG_TO_LOAD, log.info, ("still loading %s, or opening its store", start.target)
    )
    loading.daemon = True
    supervisor = Supervisor(
        functools.partial(launch_process, start.target, url=start.url),
        _open_shared_store,
        settings=_settings(start.overrides),
        overrides=start.overrides,
        queues=start.queues,
        on_ready=loading.cancel,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: _stop(supervisor))
    if start.reload:
        _reload_on_change(supervisor)
    loading.start()
    try:
        supervisor.run()
    finally:
        loading.cancel()
    return 0


def _stop(supervisor: Supervisor) -> None:
    """Tell it to stop; if it hangs in a store that does not answer, end without it. What it leaves is as after a kill:
    others take its jobs over when its lease has ended."""
    supervisor.stop()
    patience = supervisor.settings.shutdown_timeout + _LEAVE_TAKING
    watch = threading.Timer(patience, _end_at_once, (patience,))
    watch.daemon = True
    try:
        watch.start()
    except RuntimeError as error:
        # Raised here, in a signal's handler, it would end the supervisor wherever that is.
        log.warning("it is not watched whether the worker stops in time: %s", error)


def _end_at_once(patience: float) -> None:
    log.critical("could not stop within %g s, since the store does not answer; ending without it", patience)
    os._exit(1)


def _open_shared_store(url: str) -> Store:
    store = open_store(url)
    if not store.capabilities.shared:
        raise ConfigError(
            f"the store {store.url} lives inside one program, so a worker beside it would never see a job; "
            "name a store of a file, sqlite:///jobs.db, or run the jobs in the program: with app.worker(): …"
        )
    return store


def _settings(overrides: dict[str, Any]) -> WorkerSettings:
    try:
        return msgspec.convert(
            {**msgspec.structs.asdict(load_settings().worker), **overrides}, WorkerSettings, strict=False
        )
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"the worker's options: {error}") from error


def _reload_on_change(supervisor: Supervisor) -> None:
    """Replace the executors whenever a Python file below the working directory changes."""
    try:
        import watchfiles
    except ImportError as error:
        raise MissingExtra('--reload needs a package: pip install "ferryman[reload]"') from error

    def watch() -> None:
        for _ in watchfiles.watch(".", watch_filter=watchfiles.PythonFilter(), raise_interrupt=False):
            supervisor.reload()

    threading.Thread(target=watch, name="ferryman-reload", daemon=True).start()
