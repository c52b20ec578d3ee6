"""What a worker says of itself when it registers."""

from __future__ import annotations

import os
import socket
from importlib.metadata import PackageNotFoundError, version

from ferryman.job import WorkerId
from ferryman.store.records import WorkerInfo
from ferryman.worker.identity import place, process_birth

__all__ = ["worker_info"]


def worker_info(
    id_: WorkerId,
    queues: tuple[str, ...] | None,
    tasks: tuple[str, ...],
    concurrency: int,
    bell: str | None,
) -> WorkerInfo:
    """The record of this process as a worker."""
    return WorkerInfo(
        id=id_,
        host=socket.gethostname(),
        place=place(),
        pid=os.getpid(),
        pid_birth=process_birth(os.getpid()),
        queues=queues,
        tasks=tasks,
        concurrency=concurrency,
        bell=bell,
        version=_version(),
    )


def _version() -> str:
    try:
        return version("ferryman")
    except PackageNotFoundError:
        return ""
