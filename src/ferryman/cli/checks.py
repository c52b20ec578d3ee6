"""What ``ferryman doctor`` looks at: each check says what it found, and what to change if that is not well."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from ferryman.cli.target import Target, sqlite_file
from ferryman.cli.workers import alive, state_of
from ferryman.clock import SystemClock
from ferryman.errors import AppNotFound, FerrymanError
from ferryman.job import Job, State
from ferryman.policy.why import span
from ferryman.store.records import Filter, LaneCounts, WorkerRecord
from ferryman.values import counted

__all__ = ["Check", "examine", "file_system_of"]

Level = Literal["ok", "warning", "problem"]

_NEEDED = ("ferryman", "msgspec", "click", "rich")
_NETWORK = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "fuse.sshfs"}
"""File systems on which SQLite's shared memory or locks are not to be trusted."""

_SCARCE_BYTES, _LOW_BYTES = 50 * 1024**2, 500 * 1024**2
_AHEAD_MS = 5_000
"""How far into the future a moment in the store may lie before a clock must have been moved."""

_SAMPLE = 500
"""Ready jobs of which the task is looked at."""


class Check(NamedTuple):
    """One line of the doctor's."""

    level: Level
    name: str
    finding: str
    remedy: str = ""


def examine(target: Target) -> Iterator[Check]:
    """All checks, in the order in which one would mend things. Ends early if the store cannot be used."""
    yield from _python()
    try:
        url, shown = target.app.settings.url, target.app.store.url
    except AppNotFound as error:
        yield Check("problem", "app", str(error), "mend the module, or name another with --app")
        return
    except FerrymanError as error:
        yield Check("problem", "settings", str(error), "mend the setting that the message names")
        return
    yield Check("ok", "settings", f"the store is {shown}")
    path = sqlite_file(url)
    if path is not None:
        yield from _file(path)
        if not path.exists():
            return
    try:
        target.run(target.store.lanes())
    except FerrymanError as error:
        yield Check("problem", "store", str(error), "until this is mended, nothing can be enqueued or run")
        return
    yield from _writing(target)
    yield from _life(target)


def _python() -> Iterator[Check]:
    yield Check("ok", "python", f"{platform.python_implementation()} {platform.python_version()}")
    versions = []
    for name in _NEEDED:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            yield Check("problem", "packages", f"{name} is not installed", 'pip install "ferryman[cli]"')
    yield Check("ok", "packages", ", ".join([*versions, f"SQLite {sqlite3.sqlite_version}"]))


# -- where the file lies -----------------------------------------------------------------------------------


def _file(path: Path) -> Iterator[Check]:
    folder = path.absolute().parent
    if not folder.is_dir():
        yield Check("problem", "file", f"the directory {folder} does not exist", f"mkdir -p {folder}")
        return
    if not path.exists():
        yield Check("warning", "file", f"{path} does not exist yet", "the first enqueue or worker makes it")
    elif not os.access(path, os.R_OK | os.W_OK):
        yield Check(
            "problem", "file", f"{path} may not be read and written by this user", f"chown or chmod {path}"
        )
    else:
        yield Check("ok", "file", f"{path}, {_size(_bytes_of(path))}")
    if not os.access(folder, os.W_OK | os.X_OK):
        # SQLite makes its journal beside the file.
        yield Check(
            "problem", "directory", f"{folder} may not be written by this user", f"chown or chmod {folder}"
        )
    yield _disk(folder)
    yield _file_system(folder)


def _bytes_of(path: Path) -> int:
    """What the store takes: what was written last lies beside the file for a while."""
    log = path.with_name(f"{path.name}-wal")
    return path.stat().st_size + (log.stat().st_size if log.exists() else 0)


def _disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free
    if free < _SCARCE_BYTES:
        return Check(
            "problem", "disk", f"{_size(free)} free", "make room: enqueues fail when the disk is full"
        )
    if free < _LOW_BYTES:
        return Check(
            "warning", "disk", f"{_size(free)} free", "make room, or shorten [retention] in ferryman.toml"
        )
    return Check("ok", "disk", f"{_size(free)} free")


def _file_system(folder: Path) -> Check:
    kind = file_system_of(folder, _mounts())
    if kind is None:
        return Check("ok", "file system", "unknown here; it must be a local one")
    if kind in _NETWORK or kind.startswith("nfs"):
        remedy = "move the file to a local disk: over a network its locks fail, and with them the data"
        return Check("problem", "file system", f"{kind} is a network file system", remedy)
    if kind in ("tmpfs", "ramfs"):
        return Check(
            "warning", "file system", f"{kind} is lost when the machine stops", "move the file to a disk"
        )
    return Check("ok", "file system", kind)


def _mounts() -> str:
    mounts = Path("/proc/self/mounts")
    return mounts.read_text(errors="replace") if mounts.exists() else ""


def file_system_of(folder: Path, mounts: str) -> str | None:
    """The type of the file system that holds a directory, by the kernel's table of mounts."""
    best, kind = Path(), None
    for line in mounts.splitlines():
        _, point, type_, *_ = line.split(" ")
        place = Path(point.replace("\\040", " "))
        # The last of several mounts on one place is the one that is seen.
        if folder.resolve().is_relative_to(place) and len(place.parts) >= len(best.parts):
            best, kind = place, type_
    return kind


def _size(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.0f} TiB"


# -- what is in the store ------------------------------------------------------------------------------------


def _writing(target: Target) -> Iterator[Check]:
    owner = f"doctor-{os.getpid()}"
    try:
        target.run(target.store.lock("doctor", owner, 10_000))
        target.run(target.store.unlock("doctor", owner))
    except FerrymanError as error:
        yield Check("problem", "store", str(error), "until this is mended, nothing can be enqueued or run")
    else:
        yield Check("ok", "store", "opens, reads and writes")


def _life(target: Target) -> Iterator[Check]:
    now = target.now()
    store = target.store
    workers = target.run(store.workers())
    lanes = target.run(store.lanes())
    paused = {record.settings.name for record in target.run(store.queues()) if record.paused}
    living = [worker for worker in workers if alive(worker, now)]
    ready = _per_queue(lanes, State.READY)
    yield _clock(target, workers, now)
    yield from _workers(workers, living, sum(ready.values()), now)
    yield from _queues(ready, paused, living)
    yield from _tasks(target.run(store.find(Filter(states=(State.READY,)), _SAMPLE)), living)
    yield _dead(target, sum(_per_queue(lanes, State.DEAD).values()))


def _per_queue(lanes: list[LaneCounts], state: State) -> dict[str, int]:
    counts: dict[str, int] = {}
    for lane in lanes:
        counts[lane.queue] = counts.get(lane.queue, 0) + lane.counts.get(state, 0)
    return {queue: count for queue, count in counts.items() if count}


def _clock(target: Target, workers: list[WorkerRecord], now: int) -> Check:
    ahead = [worker.seen_at - now for worker in workers]
    ahead += [
        job.enqueued_at - now for job in target.run(target.store.find(Filter(since=now + _AHEAD_MS), 1))
    ]
    if max(ahead, default=0) > _AHEAD_MS:
        finding = f"the store holds moments {span(max(ahead))} in the future: the clock was set back"
        return Check("warning", "clock", finding, "set the clock right: leases and delays go by it")
    apart = SystemClock().now() - now
    if abs(apart) > _AHEAD_MS:
        side = "ahead of" if apart > 0 else "behind"
        finding = f"this machine's clock is {span(abs(apart))} {side} the store's"
        return Check("warning", "clock", finding, "set it right: moments that programs here name go by it")
    return Check("ok", "clock", "no moment in the store lies in the future")


def _workers(
    workers: list[WorkerRecord], living: list[WorkerRecord], ready: int, now: int
) -> Iterator[Check]:
    if living:
        places = sum(worker.info.concurrency for worker in living)
        yield Check("ok", "workers", f"{len(living)} alive, with {counted(places, 'place')}")
    elif ready:
        start = "ferryman worker app:app"
        waiting = f"{counted(ready)} {'is' if ready == 1 else 'are'} ready"
        yield Check("problem", "workers", f"none is alive, and {waiting}", f"start one: {start}")
    else:
        yield Check("warning", "workers", "none is alive", "start one: ferryman worker app:app")
    lost = [worker.info.id for worker in workers if worker.gone is None and worker not in living]
    if lost:
        remedy = "any living worker takes over their jobs within seconds"
        yield Check("warning", "workers", f"the lease of {', '.join(lost[:3])} ran out", remedy)
    still = [worker.info.id for worker in living if state_of(worker, now) == "paused"]
    if still:
        yield Check("warning", "workers", f"{', '.join(still[:3])} paused", "ferryman workers resume ID")
    versions = sorted({worker.info.version for worker in living if worker.info.version})
    if len(versions) > 1:
        finding = f"different versions of Ferryman: {', '.join(versions)}"
        yield Check("warning", "workers", finding, "finish the upgrade")


def _queues(ready: dict[str, int], paused: set[str], living: list[WorkerRecord]) -> Iterator[Check]:
    served = 0
    for queue, count in ready.items():
        if queue in paused:
            finding = f"{queue!r} is paused, with {counted(count)} ready"
            yield Check("warning", "queues", finding, f"ferryman resume {queue}")
        elif living and not any(w.info.queues is None or queue in w.info.queues for w in living):
            finding = f"no worker serves {queue!r}, which has {counted(count)} ready"
            yield Check("problem", "queues", finding, f"ferryman worker app:app --queues {queue}")
        else:
            served += 1
    if served and living:
        yield Check("ok", "queues", f"{served} with jobs that workers will take")


def _tasks(sample: list[Job], living: list[WorkerRecord]) -> Iterator[Check]:
    if not living:
        return
    known = {task for worker in living for task in worker.info.tasks}
    unknown = sorted({job.task for job in sample} - known)
    if unknown:
        finding = f"jobs are ready whose task no worker knows: {', '.join(unknown[:5])}"
        yield Check(
            "problem", "tasks", finding, "start a worker with an app that has them, or mend the names"
        )


def _dead(target: Target, count: int) -> Check:
    if not count:
        return Check("ok", "dead letters", "none")
    worst = target.run(target.store.causes(Filter(states=(State.DEAD,))))[:1]
    most = f", most often {worst[0].task}: {worst[0].cause}" if worst else ""
    return Check("warning", "dead letters", f"{count:,}{most}", "see: ferryman dead causes")
