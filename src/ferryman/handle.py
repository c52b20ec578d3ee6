"""A producer's hold on a job that it enqueued."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from ferryman.errors import (
    JobCancelled,
    JobDied,
    JobExpired,
    JobNotFound,
    ResultExpired,
    ResultTimeout,
    StoreUnavailable,
)
from ferryman.io.operation import Procedure, Wait
from ferryman.job import FINISHED, Job, JobId, State, as_job_id
from ferryman.payload import is_reference
from ferryman.store.records import Filter
from ferryman.values import SECONDS, reason_text, taken

if TYPE_CHECKING:
    import datetime

    from ferryman.app import App

__all__ = ["JobHandle"]

R = TypeVar("R")

_OUTAGE, _ASK_AGAIN = 60.0, 0.2
"""Seconds for which a store may be away while a result is waited for, and between the looks for it."""


class JobHandle(Generic[R]):
    """Knows a job by its id and asks the store about it. Thread-safe, cheap, and safe to throw away."""

    __slots__ = ("_app", "_decode", "duplicate", "id")

    def __init__(self, app: App, id: JobId, decode: Callable[[bytes], Any], duplicate: bool = False) -> None:
        self._app = app
        self._decode = decode
        self.id = id
        self.duplicate = duplicate
        """Whether the enqueue made no new job, since this one stands for it (see ``unique``)."""

    def __repr__(self) -> str:
        return f"JobHandle({self.id!r})"

    def result(self, timeout: float | datetime.timedelta | None = None) -> R:
        """Wait for the job to finish and return what the task returned, as its annotation says.

        Raises JobDied, JobCancelled or JobExpired if it ended so, ResultTimeout after `timeout` seconds,
        JobNotFound if the store does not know it (any more), ResultExpired if the result's time is over, BlobError
        if the result lies outside the store, in a place that does not answer. A store that goes away meanwhile is
        waited for, too; StoreUnavailable is raised if it stays away for a minute, or until the time is over.
        """
        return self._app.perform(self._result(timeout))

    async def aresult(self, timeout: float | datetime.timedelta | None = None) -> R:
        """`result`, awaited."""
        return await self._app.aperform(self._result(timeout))

    def status(self) -> State:
        """Where the job is in its life. Raises JobNotFound."""
        return self._app.perform(self._record()).state

    async def astatus(self) -> State:
        """`status`, awaited."""
        return (await self._app.aperform(self._record())).state

    def record(self) -> Job:
        """All that the store keeps with the job. Raises JobNotFound."""
        return self._app.perform(self._record())

    async def arecord(self) -> Job:
        """`record`, awaited."""
        return await self._app.aperform(self._record())

    def cancel(self, reason: str | None = None) -> bool:
        """Cancel the job, or ask its worker to if it runs. False if it has finished, or was asked already."""
        return self._app.perform(self._cancel(reason))

    async def acancel(self, reason: str | None = None) -> bool:
        """`cancel`, awaited."""
        return await self._app.aperform(self._cancel(reason))

    def replay(self) -> bool:
        """Let the job run again, with all its attempts, if it has finished. False if it has not, or if its unique
        key is taken by another. Raises JobNotFound."""
        return self._app.perform(self._replay())

    async def areplay(self) -> bool:
        """`replay`, awaited."""
        return await self._app.aperform(self._replay())

    def _record(self) -> Procedure[Job]:
        if as_job_id(self.id) is None:
            raise JobNotFound(f"{self.id!r} is no job's id, which is 32 hexadecimal digits")
        (job,) = yield self._app.store.get([self.id])
        if job is None:
            raise JobNotFound(
                f"{self._app.store.url} has no job {self.id}; it was never stored there, or its retention has passed"
            )
        return job  # type: ignore[no-any-return]

    def _cancel(self, reason: str | None) -> Procedure[bool]:
        yield from self._record()
        which = Filter(ids=(self.id,))
        changed: int = yield self._app.store.cancel(which, 1, reason_text(reason))
        return changed > 0

    def _replay(self) -> Procedure[bool]:
        yield from self._record()
        changed: int = yield self._app.store.replay(Filter(ids=(self.id,)), 1)
        return changed > 0

    def _result(self, timeout: float | datetime.timedelta | None) -> Procedure[R]:
        seconds = math.inf if timeout is None else taken("timeout", timeout, SECONDS)
        give_up = time.monotonic() + seconds
        job = yield from self._record()
        while job.state not in FINISHED:
            rest = give_up - time.monotonic()
            if rest <= 0:
                why = f" ({job.reason})" if job.reason else ""
                raise ResultTimeout(
                    f"job {self.id} is still {job.state.label}{why} after {seconds:g} s; it goes on"
                )
            yield Wait(min(rest, 1.0))
            job = yield from self._record_before(give_up)
        if is_reference(job.result):
            result = yield from self._app.payloads.fetch(cast("bytes", job.result))
            job = msgspec.structs.replace(job, result=result)
        return cast("R", self._unpack(job))

    def _record_before(self, give_up: float) -> Procedure[Job]:
        """`_record`, from a store that has answered before: if it does not now, it may be starting anew."""
        give_up = min(give_up, time.monotonic() + _OUTAGE)
        while True:
            try:
                return (yield from self._record())
            except StoreUnavailable:
                if time.monotonic() >= give_up:
                    raise
            yield Wait(_ASK_AGAIN)

    def _unpack(self, job: Job) -> Any:
        match job.state:
            case State.SUCCEEDED:
                if job.result is None:
                    if job.result_until is not None:
                        raise ResultExpired(
                            f"the result of job {self.id} was kept until its time to live passed"
                        )
                    return None
                return self._decode(job.result)
            case State.CANCELLED:
                raise JobCancelled(f"job {self.id} was cancelled: {job.reason or 'no reason given'}", self.id)
            case State.EXPIRED:
                raise JobExpired(f"job {self.id} was not started by its deadline", self.id)
            case _:
                cause = job.reason or "unknown"
                raise JobDied(f"job {self.id} ({job.task}) died: {cause}", self.id, cause)
