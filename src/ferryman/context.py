"""What a running task can ask and say about its own job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ferryman.errors import JobDied
from ferryman.io.operation import Procedure
from ferryman.job import Claim, JobId, State
from ferryman.store.port import JobNote, ParentResult

if TYPE_CHECKING:
    from ferryman.app import App

__all__ = ["Cancelled", "Context", "NoteSink", "SoftTimeout", "Stopped"]

T = TypeVar("T")

NoteSink = Callable[[JobNote], None]

_PAGE = 500


class Stopped(BaseException):
    """Raised inside a running ``def`` task, wherever it is, to stop it. Clean up and raise it again.

    It derives from BaseException, as asyncio's CancelledError does, so that ``except Exception`` in a task does
    not swallow it. It is raised between two steps of Python code: a call that blocks in C, such as
    ``time.sleep``, ends first, or is ended by a kill `grace` seconds later. A task that returns in spite of it
    has succeeded. An ``async def`` task is cancelled in asyncio's way instead.
    """


class SoftTimeout(Stopped):
    """The task's `timeout` has passed. The attempt counts as failed."""


class Cancelled(Stopped):
    """Somebody cancelled the job, or its worker must let go of it."""


class Context:
    """Handed to a task whose first parameter is annotated with it.

    ```python
    @app.task
    def resize(ctx: Context, paths: list[str]) -> None:
        for done, path in enumerate(paths, 1):
            ...
            ctx.progress(done / len(paths), f"resized {path}")
    ```

    Thread-safe.
    """

    __slots__ = ("_app", "_cancelled", "_claim", "_sink")

    def __init__(self, claim: Claim, app: App, sink: NoteSink, cancelled: threading.Event) -> None:
        self._claim = claim
        self._app = app
        self._sink = sink
        self._cancelled = cancelled

    @property
    def job(self) -> Claim:
        """The job that is running: its id, task, queue, attempt, times and key."""
        return self._claim

    @property
    def id(self) -> JobId:
        """The job's id: a natural idempotency key, the same in every attempt."""
        return self._claim.id

    @property
    def attempt(self) -> int:
        """1 for the first attempt."""
        return self._claim.attempt

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked to cancel the job, or its soft timeout has passed."""
        return self._cancelled.is_set()

    def progress(self, fraction: float, text: str | None = None) -> None:
        """Report how much is done, from 0 to 1; people see it live. Cheap: reports are sent in batches."""
        self._sink(JobNote(self._claim.id, self._claim.lease, min(max(fraction, 0.0), 1.0), text))

    def note(self, text: str) -> None:
        """Keep a line with the job, for whoever looks at it later."""
        self._sink(JobNote(self._claim.id, self._claim.lease, None, text))

    @overload
    def results(self) -> list[Any]: ...
    @overload
    def results(self, type: type[T]) -> list[T]: ...
    def results(self, type: Any = Any) -> list[Any]:
        """The results of the jobs that this one waited for, in the order of ``after``, each as a `type`.

        Raises JobDied if one of them failed (which only ``on_parent_failure="continue"`` lets happen): use
        `parents` to look at each.
        """
        decode = self._app.codec.decoder(type)
        return [_value(parent, decode) for parent in self.parents()]

    async def aresults(self, type: Any = Any) -> list[Any]:
        """`results`, for ``async def`` tasks."""
        decode = self._app.codec.decoder(type)
        return [_value(parent, decode) for parent in await self._app.aperform(self._parents())]

    def parents(self) -> list[ParentResult]:
        """How each job that this one waited for ended, in the order of ``after``."""
        return self._app.perform(self._parents())

    def _parents(self) -> Procedure[list[ParentResult]]:
        found: list[ParentResult] = []
        while True:
            page = yield self._app.store.parent_results(self._claim.id, len(found), _PAGE)
            found += page
            if len(page) < _PAGE:
                return found


def _value(parent: ParentResult, decode: Callable[[bytes], Any]) -> Any:
    if parent.state is not State.SUCCEEDED:
        cause = parent.error.cause if parent.error else parent.state.label
        raise JobDied(f"parent {parent.id} ({parent.task}) did not succeed: {cause}", parent.id, cause)
    return None if parent.result is None else decode(parent.result)
