"""What a running task can ask and say about its own job."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload

import msgspec

from ferryman.errors import ConfigError, JobDied, LeaseLost, PayloadError
from ferryman.io.operation import Inside, Procedure, inside
from ferryman.job import Claim, Fail, JobId, Outcome, OutcomeKind, Signal, State
from ferryman.payload import fits, is_reference
from ferryman.store.port import Guest
from ferryman.store.records import JobNote, ParentResult

if TYPE_CHECKING:
    from ferryman.app import App

__all__ = ["Cancelled", "Context", "NoteSink", "SoftTimeout", "Stopped", "Transaction"]

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

    __slots__ = ("_app", "_began", "_cancelled", "_claim", "_judge", "_sink", "completed")

    def __init__(
        self,
        claim: Claim,
        app: App,
        sink: NoteSink,
        cancelled: threading.Event,
        judge: Callable[[Any, int], Outcome],
    ) -> None:
        """`judge` makes an outcome of a value and the µs that it took."""
        self._claim = claim
        self._app = app
        self._sink = sink
        self._cancelled = cancelled
        self._judge = judge
        self._began = time.monotonic_ns()
        self.completed = False
        """Whether `complete` has been called."""

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
        # In this order, so that what is no number is no progress.
        done = min(1.0, max(0.0, float(fraction)))
        self._sink(JobNote(self._claim.id, self._claim.lease, done, text))

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

    # -- effects exactly once ----------------------------------------------------------------------

    def complete(self, result: Any = None, *, using: object) -> None:
        """End the job, as succeeded, inside a transaction of yours: its commit makes your writes and the job's end
        true together, and a rollback neither.

        `using` is a connection or session to the store's own database, as for `Task.options`. Call it last, just
        before the commit: until then the job is locked, and PostgreSQL ends a session that lets 10 s pass. If the transaction is not committed after all, the attempt counts as failed. What the task
        returns afterwards is not looked at.

        Raises LeaseLost if the job is not this attempt's any more: let it pass, so that the transaction is rolled
        back. Raises Unsupported if the store is no database that your transaction could include.
        """
        self._app.perform(self._complete(result, using))

    async def acomplete(self, result: Any = None, *, using: object) -> None:
        """`complete`, awaited."""
        await self._app.aperform(self._complete(result, using))

    def _complete(self, result: Any, using: object) -> Procedure[None]:
        store, id_ = self._app.store, self._claim.id
        guest = store.using(using)
        outcome = self._judge(result, (time.monotonic_ns() - self._began) // 1000)
        if outcome.kind is not OutcomeKind.SUCCEEDED:
            raise PayloadError(
                f"the job cannot be completed with {result!r}: {outcome.error and outcome.error.message}"
            )
        if outcome.result is not None:
            result = yield from self._stow(outcome.result, f"result-{outcome.lease}", guest)
            outcome = msgspec.structs.replace(outcome, result=result)
        self.completed = True
        # No lease is numbered like another one of the same job, so whoever holds this number is who runs it.
        (job,) = yield Inside(guest.runner, store.get([id_]))
        accepted = job is not None and job.worker is not None and (
            yield Inside(guest.runner, store.settle(job.worker, [outcome]))
        )  # fmt: skip
        if not accepted or not accepted[0]:
            raise LeaseLost(
                f"job {id_} is not run by this attempt any more: its worker was taken for dead, or it was cancelled"
            )

    def _stow(self, result: bytes, name: str, guest: Guest) -> Procedure[bytes]:
        """What the store shall hold of a result: the result itself while the place for large ones fails, and while nobody
        else can write; unless it is too large for that."""
        is_small = fits(len(result), self._app.settings.max_payload)
        if guest.exclusive and is_small:
            return result
        stow = self._app.payloads.stow(self._claim.id, name, result, tentative=guest.exclusive)
        try:
            return (yield from inside(guest.runner, stow) if guest.exclusive else stow)
        except Exception:
            if not is_small:
                raise
            return result

    def _parents(self) -> Procedure[list[ParentResult]]:
        found: list[ParentResult] = []
        while True:
            page: list[ParentResult] = yield self._app.store.parent_results(self._claim.id, len(found), _PAGE)
            for parent in page:
                if parent.result is not None and is_reference(parent.result):
                    result = yield from self._app.payloads.fetch(parent.result)
                    parent = msgspec.structs.replace(parent, result=result)
                found.append(parent)
            if len(page) < _PAGE:
                return found


class Transaction(Context):
    """Handed to a task whose first parameter is annotated with it: a context with a transaction that is open on the
    store's own database. What the task writes there and the end of its job are committed together; an exception, or
    the loss of the worker at any moment, undoes both.

    ```python
    @app.task
    def pay(tx: Transaction, order: int, amount: int) -> None:
        tx.connection.execute("UPDATE account SET balance = balance - %s WHERE id = ...", [amount])
    ```

    Only PostgreSQL and SQLite can do this: the tables must be in the store's database. Do what takes long before the
    first write, in SQLite above all: nobody else can write meanwhile.
    """

    __slots__ = ("connection",)

    connection: Any
    """psycopg's ``Connection`` (``AsyncConnection`` in an ``async def`` task) or ``sqlite3.Connection``, in a
    transaction. Do not commit or roll back."""

    def complete(self, result: Any = None, *, using: object) -> NoReturn:  # noqa: ARG002
        """Not for tasks with a transaction: these end by returning. Raises ConfigError."""
        raise ConfigError(
            "a task with a Transaction ends its job by returning its result, which is committed together with what it "
            "wrote; to call complete(), ask for a Context"
        )

    async def acomplete(self, result: Any = None, *, using: object) -> NoReturn:
        """`complete`, awaited."""
        self.complete(result, using=using)

    def run(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call a ``def`` task. For executors."""
        with self._app.store.transaction() as connection:
            self.connection = connection
            value = function(*args, **kwargs)
            if isinstance(value, Signal):
                raise value
            self._check_open()
            self._app.perform(self._complete(value, connection))
        return value

    async def arun(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call an ``async def`` task. For executors."""
        async with self._app.store.atransaction() as connection:
            self.connection = connection
            value = await function(*args, **kwargs)
            if isinstance(value, Signal):
                raise value
            self._check_open()
            await self._app.aperform(self._complete(value, connection))
        return value

    def _check_open(self) -> None:
        """What was committed by hand stands without the job's end, and another attempt would write it twice."""
        if not self.connection.in_transaction:
            raise Fail(
                "its transaction was ended by a statement of the task, such as COMMIT or ROLLBACK, or by an error that "
                "rolls all back; what the task committed stands, so it is not tried again"
            )


def _value(parent: ParentResult, decode: Callable[[bytes], Any]) -> Any:
    if parent.state is not State.SUCCEEDED:
        cause = parent.error.cause if parent.error else parent.state.label
        raise JobDied(f"parent {parent.id} ({parent.task}) did not succeed: {cause}", parent.id, cause)
    return None if parent.result is None else decode(parent.result)
