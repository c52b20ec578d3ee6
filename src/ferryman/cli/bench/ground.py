"""Where the measuring is done: fresh, empty stores of one kind, one for each measurement."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from ferryman import Ferryman, Settings
from ferryman.cli.bench.floors import Floor, open_floor
from ferryman.cli.bench.floors.chain import Chain, open_chain
from ferryman.cli.bench.servers import SERVERS
from ferryman.cli.bench.tasks import NOOP, PAYLOAD, make_app
from ferryman.cli.target import sqlite_file
from ferryman.errors import StoreUnavailable
from ferryman.store.open import open_store

__all__ = ["Ground", "file_system", "open_ground"]

_IN_MEMORY = ("tmpfs", "ramfs")


class Ground(Protocol):
    """Makes stores to measure on."""

    url: str
    """How the store is called in the figures."""
    about: str
    """What it stands on, for people."""
    has_processes: bool
    """Whether a worker on such a store is a process of its own."""

    def fresh(self) -> contextlib.AbstractContextManager[str]:
        """The URL of a new, empty store, which is gone afterwards."""
        ...


@contextlib.contextmanager
def open_ground(url: str | None) -> Iterator[Ground]:
    """Where to measure stores of this URL's kind: by default SQLite files below the working directory.

    What a URL names is never touched: files are made, and removed, in the same folder; on a server the schema or the
    prefix is one of our own.
    Raises ConfigError for a URL that names no store, StoreUnavailable if its folder is not there.
    """
    if url is not None:
        open_store(url).close()
    scheme = "sqlite" if url is None else url.partition(":")[0]
    if url is not None and scheme in SERVERS:
        yield SERVERS[scheme](url)
        return
    if url is not None and scheme != "sqlite":
        yield _Memory()
        return
    folder = _usual_folder() if url is None else _folder_of(url)
    with tempfile.TemporaryDirectory(prefix="ferryman-bench-", dir=folder) as made:
        yield _Files(url or f"sqlite:///{folder / 'bench.db'}", Path(made).resolve())


class _Memory:
    url = "memory://"
    about = "the memory of this process"
    has_processes = False

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        yield self.url


class _Files:
    has_processes = True

    def __init__(self, url: str, folder: Path) -> None:
        kind = file_system(folder)
        self.url = url
        self.about = f"{folder.parent} ({kind})"
        if kind in _IN_MEMORY:
            self.about += ", which is no disk: syncs cost nothing there"
        self._folder = folder

    @contextlib.contextmanager
    def fresh(self) -> Iterator[str]:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            yield f"sqlite:///{folder / 'bench.db'}"
        finally:
            shutil.rmtree(folder)


def _usual_folder() -> Path:
    """The working directory, unless it cannot be written to or is no disk."""
    here = Path.cwd()
    for folder in (here, Path("/var/tmp"), Path.home()):  # noqa: S108
        if folder.is_dir() and os.access(folder, os.W_OK) and file_system(folder) not in _IN_MEMORY:
            return folder
    return here


def _folder_of(url: str) -> Path:
    path = sqlite_file(url)
    assert path is not None
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StoreUnavailable(
            f"the directory {str(folder)!r} does not exist; make it, or name another --store"
        )
    return folder


def file_system(folder: Path) -> str:
    """The kind of file system that a folder is on, such as ext4."""
    try:
        mounts = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return "a file system of a kind that cannot be told here"
    best, kind = Path(), "unknown"
    for line in mounts:
        _, point, found, *_ = line.split(" ")
        mount = Path(point.encode().decode("unicode_escape"))
        # Of two mounts on one point the later one covers the other.
        if folder.resolve().is_relative_to(mount) and len(mount.parts) >= len(best.parts):
            best, kind = mount, found
    return kind


@contextlib.contextmanager
def fresh_app(ground: Ground) -> Iterator[Ferryman]:
    """An app on a fresh store, with nothing but the default settings."""
    with ground.fresh() as url, fresh_app_on(url) as app:
        yield app


@contextlib.contextmanager
def fresh_app_on(url: str) -> Iterator[Ferryman]:
    """The same, on a store that is there and empty."""
    app = make_app(Settings(url=url))
    try:
        # The tables are made before anything is measured.
        app.store.runner().run(app.store.lanes())
        yield app
    finally:
        app.close()


@contextlib.contextmanager
def fresh_floor(ground: Ground) -> Iterator[Floor | None]:
    """The floor of this kind of store on a fresh one; None where there is no floor."""
    with ground.fresh() as url:
        app = make_app(Settings(url=url))
        floor = open_floor(url, app.tasks[NOOP].new_job((PAYLOAD,), {}))
        try:
            yield floor
        finally:
            if floor is not None:
                floor.close()
            app.close()


@contextlib.contextmanager
def fresh_chain(ground: Ground) -> Iterator[Chain | None]:
    """The floor of this kind of store's latencies on a fresh one; None where there is no floor."""
    with ground.fresh() as url, open_chain(url) as chain:
        yield chain
