"""The app: where tasks are registered and jobs are enqueued, on one store.

`ferryman.Ferryman` is this class with the worker added; frameworks that only enqueue need no more than this.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack, overload

import msgspec

from ferryman.binding import bind_by_name
from ferryman.clock import Clock
from ferryman.codec import Codec
from ferryman.config import Settings, load_settings
from ferryman.context import Transaction
from ferryman.errors import BadArguments, ConfigError, InvalidValue, QueueFull, UnknownTask
from ferryman.handle import JobHandle
from ferryman.intake import fields_of, queue_of
from ferryman.io.operation import AsyncRunner, Inside, Procedure, Wait, aperform, inside, perform
from ferryman.job import FINISHED, JobId, NewJob, as_job_id, new_id
from ferryman.once import Once, OnceKey, Window
from ferryman.options import Options, new_job_template
from ferryman.payload import Payloads
from ferryman.store.open import open_store
from ferryman.store.port import Guest, Store
from ferryman.store.records import Enqueued, Filter, LaneCounts, Overflow, QueueRecord, QueueSettings
from ferryman.task import Call, Task, TaskOptions
from ferryman.values import reason_text, shown

if TYPE_CHECKING:
    import uuid

__all__ = ["App", "TaskDecorator"]

_AT_ONCE = 1_000
"""Jobs that one transaction changes, so that it does not hold up others."""

_STOW_ANEW = 3_600.0
"""Seconds after which large arguments are written anew, if their jobs still wait for room in a full queue: what lies there
for hours, and belongs to no job, is swept."""

_TASK_OPTIONS = {**TaskOptions.__annotations__, "name": str}

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class TaskDecorator(Protocol):
    """Makes a task of a function; a first parameter of type `Context` or `Transaction` is the worker's to give."""

    @overload
    def __call__(self, function: Callable[Concatenate[Transaction, P], Awaitable[R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[Transaction, P], R]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R]]) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R]) -> Task[P, R]: ...


class App:
    """Tasks, queue settings and a store. Thread-safe; survives a fork."""

    def __init__(
        self,
        url: str | None = None,
        *,
        settings: Settings | None = None,
        codec: Codec | None = None,
        clock: Clock | None = None,
        store: Store | None = None,
    ) -> None:
        """`url` names the store: ``sqlite:///jobs.db`` (a path relative to the working directory;
        ``sqlite:////var/lib/jobs.db`` is absolute), ``redis://host:6379/0``, ``postgresql://user@host/database`` or
        ``memory://``. Without, the environment, the file ``ferryman.toml`` and the default ``sqlite:///ferryman.db``
        are asked in this order."""
        if settings is not None and not isinstance(settings, Settings):
            raise ConfigError(f"settings must be a Settings, not {shown(settings)}")
        if codec is not None and not isinstance(codec, Codec):
            raise ConfigError(f"codec must be a Codec, such as Codec(JsonFormat()), not {shown(codec)}")
        self.settings = settings or load_settings(url=url)
        self.codec = codec or Codec(
            max_bytes=self.settings.most_bytes, compress_above=self.settings.compress_above
        )
        self.payloads = Payloads(self.settings.blobs, lambda: self.store)
        self.tasks: dict[str, Task[..., Any]] = {}
        self.on_new_task: list[Callable[[], None]] = []
        """Called after each registration: workers of this program have started without that task."""
        self.queue_settings: dict[str, QueueSettings] = {}
        self._clock = clock
        self._store = store
        self._opening = threading.Lock()
        self._undeclared = False
        self._async_runners: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncRunner] = (
            weakref.WeakKeyDictionary()
        )

    def __repr__(self) -> str:
        return f"<app on {self.store.url}, {len(self.tasks)} tasks>"

    @property
    def store(self) -> Store:
        """Where the jobs live; opened when first needed."""
        store = self._store
        if store is None:
            with self._opening:
                store = self._store
                if store is None:
                    store = self._store = open_store(self.settings.url, self._clock)
        return store

    # -- registering -----------------------------------------------------------------------------------

    @overload
    def task(self, function: Callable[Concatenate[Transaction, P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[Concatenate[Transaction, P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, function: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(self, /, *, name: str | None = None, **options: Unpack[TaskOptions]) -> TaskDecorator: ...
    def task(self, function: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
        """Register a function, ``def`` or ``async def``, as a task; with or without options in brackets.

        The options are the fields of `ferryman.options.Options`. The name under which workers know the task is
        ``module.function`` unless `name` is given.
        """
        if function is None:
            return lambda function: self._register(function, name, options)
        if isinstance(function, str):
            raise ConfigError(f"a task's name is given as name=…: @app.task(name={function!r})")
        return self._register(function, name, options)

    def queue(
        self,
        name: str,
        *,
        fair: bool = False,
        weights: Mapping[str, float] | None = None,
        max_size: int | None = None,
        overflow: Overflow = "reject",
    ) -> QueueSettings:
        """Say how a queue behaves; see `ferryman.store.records.QueueSettings`."""
        settings = queue_of(name, fair, weights or {}, max_size, overflow)
        self.queue_settings[name] = settings
        self._undeclared = True
        return settings

    # -- enqueueing ------------------------------------------------------------------------------------

    def enqueue(self, task: str, /, *args: Any, **kwargs: Any) -> JobHandle[Any]:
        """Store a job by its task's name, which this program need not have: then arguments are given by name.

        Raises as `Task.enqueue` does.
        """
        return self.enqueue_jobs([self._job_by_name(task, args, kwargs)])[0]

    async def aenqueue(self, task: str, /, *args: Any, **kwargs: Any) -> JobHandle[Any]:
        """`enqueue`, awaited."""
        return (await self.aenqueue_jobs([self._job_by_name(task, args, kwargs)]))[0]

    def enqueue_many(self, calls: Iterable[Call[Any]], *, using: object = None) -> list[JobHandle[Any]]:
        """Store a job for each call (`Task.call`), of any tasks, all or none; `using` is that of `Task.options`."""
        calls = list(calls)
        return self.enqueue_jobs(_jobs_of(calls), using=_common_using(calls, using))

    async def aenqueue_many(
        self, calls: Iterable[Call[Any]], *, using: object = None
    ) -> list[JobHandle[Any]]:
        """`enqueue_many`, awaited."""
        calls = list(calls)
        return await self.aenqueue_jobs(_jobs_of(calls), using=_common_using(calls, using))

    def enqueue_jobs(
        self,
        jobs: Sequence[NewJob],
        decode_result: Callable[[bytes], Any] | None = None,
        *,
        using: object = None,
    ) -> list[JobHandle[Any]]:
        """Store jobs as they are, all or none; `using` is that of `Task.options`."""
        return self._handles(self.perform(self._enqueue(jobs, using)), jobs, decode_result)

    async def aenqueue_jobs(
        self,
        jobs: Sequence[NewJob],
        decode_result: Callable[[bytes], Any] | None = None,
        *,
        using: object = None,
    ) -> list[JobHandle[Any]]:
        """`enqueue_jobs`, awaited."""
        return self._handles(await self.aperform(self._enqueue(jobs, using)), jobs, decode_result)

    # -- many at once ----------------------------------------------------------------------------------

    def replay(self, which: Filter) -> int:
        """Let finished jobs run again, with all their attempts; name states in the filter, such as
        ``Filter(states=(State.DEAD,))``. Answers how many."""
        return self.perform(self._replay(_filter(which)))

    async def areplay(self, which: Filter) -> int:
        """`replay`, awaited."""
        return await self.aperform(self._replay(_filter(which)))

    def cancel(self, which: Filter, reason: str | None = None) -> int:
        """Cancel pending and running jobs. Answers how many."""
        return self.perform(self._cancel(_filter(which), reason))

    async def acancel(self, which: Filter, reason: str | None = None) -> int:
        """`cancel`, awaited."""
        return await self.aperform(self._cancel(_filter(which), reason))

    def job(self, id: str | uuid.UUID) -> JobHandle[Any]:
        """A handle on a job that was enqueued elsewhere, or long ago. Whether there is one, its methods tell."""
        # What can be no id is found on no store, which whoever asks is told.
        return JobHandle(self, as_job_id(id) or JobId(str(id)), self.codec.decoder(Any))

    # -- effects outside the store -----------------------------------------------------------------

    def once(
        self,
        key: str,
        call: Callable[[], R],
        *,
        ttl: float = 86_400.0,
        lease: float = 60.0,
        using: object = None,
    ) -> Once[R]:
        """Make a call once for a key, however often the job that makes it runs: later calls get the first one's
        result, for `ttl` seconds.

        While one program makes the call, others wait for its result; after `lease` seconds they take it for dead,
        so it must be longer than the call takes. A call that raises is not remembered. If its program is killed
        between the call and the note of its result, the call is made again: give the key to the other side as
        well, if that knows idempotency keys. A key has 1,000 bytes at most.

        With `using`, a connection as for `Task.options`, the key is kept inside the transaction that is open there:
        then the effects of the call in that database and the key are committed together, and no kill can part them.
        """
        return OnceKey(self, key, ttl, lease, using).run(call)

    async def aonce(
        self,
        key: str,
        call: Callable[[], Awaitable[R]],
        *,
        ttl: float = 86_400.0,
        lease: float = 60.0,
        using: object = None,
    ) -> Once[R]:
        """`once`, awaited."""
        return await OnceKey(self, key, ttl, lease, using).arun(call)

    def window(self, name: str, *, seconds: float = 86_400.0) -> Window:
        """What a consumer of messages has seen of late, so that it leaves out what comes twice: exactly once inside
        its transaction, else at most once; see `Window.first`."""
        return Window(self, name, seconds)

    # -- performing ------------------------------------------------------------------------------------

    def perform(self, procedure: Procedure[T]) -> T:
        """Carry out a procedure on this app's store, in this thread."""
        return perform(self.store.runner(), procedure)

    async def aperform(self, procedure: Procedure[T]) -> T:
        """Carry out a procedure on this app's store, in the running event loop."""
        loop = asyncio.get_running_loop()
        runner = self._async_runners.get(loop)
        if runner is None:
            runner = self._async_runners[loop] = self.store.async_runner()
        return await aperform(runner, procedure)

    def close(self) -> None:
        """Let go of the store; it is opened again when needed."""
        if self._store is not None:
            self._store.close()
            self._store = None
            self._async_runners.clear()

    def _register(self, function: Callable[..., Any], name: str | None, options: dict[str, Any]) -> Any:
        label = _label(function, name)
        if label in self.tasks:
            raise ConfigError(
                f"a task named {label!r} is registered already; give one of them another name=…"
            )
        settings = Options(**fields_of(label, options, _TASK_OPTIONS))
        if settings.at_most_once and "retry" in options:
            raise ConfigError(f"the options of {label}: at_most_once leaves no room for retry")
        task: Task[..., Any] = Task(self, function, label, settings)
        if self.on_new_task:
            # A worker is about to take it up. Else this is looked at later: annotations may name what comes later.
            task.bind()
        self.tasks[label] = task
        for tell in self.on_new_task:
            tell()
        return task

    def _job_by_name(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NewJob:
        if isinstance(name, Task):
            raise UnknownTask(
                f"enqueue takes the name of a task; for {name.name} itself, call its own enqueue(…)"
            )
        if not isinstance(name, str) or not name:
            raise UnknownTask(
                f"enqueue takes the name of a task, such as 'shop.send_receipt', not {shown(name)}"
            )
        task = self.tasks.get(name)
        if task is not None:
            return task.new_job(args, kwargs)
        if args and self.tasks:
            known = ", ".join(sorted(self.tasks))
            raise UnknownTask(
                f"no task {name!r} is registered here, which has {known}; if another program has it, "
                "name the arguments: enqueue(name, parameter=value)"
            )
        template = new_job_template(name, Options(), {})
        return msgspec.structs.replace(
            template, id=new_id(), args=bind_by_name(self.codec, name, args, kwargs)
        )

    def _enqueue(self, jobs: Sequence[NewJob], using: object) -> Procedure[list[Enqueued]]:
        if using is not None:
            return (yield from self._enqueue_inside(self.store.using(using), jobs))
        if self._undeclared:
            yield self.store.declare(list(self.queue_settings.values()))
            self._undeclared = False
        stowed, stowed_at = (yield from self.payloads.stow_args(jobs)), time.monotonic()
        while True:
            try:
                answers: list[Enqueued] = yield self.store.enqueue(stowed)
            except QueueFull as full:
                settings = self.queue_settings.get(full.queue)
                arriving = sum(job.queue == full.queue for job in jobs)
                if settings is None or settings.overflow != "block" or arriving > full.max_size:
                    raise
                yield Wait(0.05)
                if time.monotonic() - stowed_at > _STOW_ANEW:
                    stowed, stowed_at = (yield from self.payloads.stow_args(jobs)), time.monotonic()
            else:
                return answers

    def _enqueue_inside(self, guest: Guest, jobs: Sequence[NewJob]) -> Procedure[list[Enqueued]]:
        before = self._prepare_inside(jobs, guest.exclusive)
        jobs = yield from inside(guest.runner, before) if guest.exclusive else before
        # A full queue is not waited for: nobody could empty it, as seen from inside this transaction.
        answers: list[Enqueued] = yield Inside(guest.runner, guest.enqueue(jobs))
        return answers

    def _prepare_inside(self, jobs: Sequence[NewJob], tentative: bool) -> Procedure[Sequence[NewJob]]:
        if self._undeclared:
            # What is declared inside may be rolled back, so this goes on until somebody has declared for good.
            records: list[QueueRecord] = yield self.store.queues()
            declared = [record.settings for record in records]
            missing = [settings for settings in self.queue_settings.values() if settings not in declared]
            if missing:
                yield self.store.declare(missing)
        return (yield from self.payloads.stow_args(jobs, tentative=tentative))

    def _replay(self, which: Filter) -> Procedure[int]:
        lanes: list[LaneCounts] = yield self.store.lanes()
        # Those that finish meanwhile, since they failed once more, are not meant.
        most = sum(lane.counts[state] for lane in lanes for state in FINISHED)
        total = 0
        while count := (yield self.store.replay(which, min(_AT_ONCE, most - total))):
            total += count
        return total

    def _cancel(self, which: Filter, reason: str | None) -> Procedure[int]:
        total = 0
        while count := (yield self.store.cancel(which, _AT_ONCE, reason_text(reason))):
            total += count
        return total

    def _handles(
        self,
        answers: Sequence[Enqueued],
        jobs: Sequence[NewJob],
        decode_result: Callable[[bytes], Any] | None,
    ) -> list[JobHandle[Any]]:
        if decode_result is not None:
            return [JobHandle(self, answer.id, decode_result, answer.duplicate) for answer in answers]
        return [
            JobHandle(self, answer.id, self._result_decoder(job.task), answer.duplicate)
            for answer, job in zip(answers, jobs, strict=True)
        ]

    def _result_decoder(self, name: str) -> Callable[[bytes], Any]:
        task = self.tasks.get(name)
        return task.binding.decode_result if task else self.codec.decoder(Any)


def _filter(which: Filter) -> Filter:
    if not isinstance(which, Filter):
        raise InvalidValue(
            f"which jobs are meant is said by a Filter, such as Filter(queues=('reports',)), not by {shown(which)}; "
            "for a single one there is app.job(id)"
        )
    return which


def _jobs_of(calls: Sequence[Call[Any]]) -> list[NewJob]:
    try:
        return [call.job for call in calls]
    except AttributeError:
        wrong = next(call for call in calls if not isinstance(call, Call))
        raise BadArguments(f"enqueue_many takes calls, such as task.call(…), not {shown(wrong)}") from None


def _label(function: Callable[..., Any], name: str | None) -> str:
    """The name of a new task."""
    if isinstance(function, Task):
        raise ConfigError(
            f"{function.name} is a task already; register its function, as {function.name}.function"
        )
    if not callable(function):
        raise ConfigError(f"a task is made of a function, not of {shown(function)}")
    if name is not None and (not isinstance(name, str) or not name):
        raise ConfigError(f"name must be a text, such as 'shop.send_receipt', not {shown(name)}")
    place = getattr(function, "__qualname__", None)
    if name is None and place is None:
        raise ConfigError(f"{shown(function)} has no name of its own; give it one: app.task(name=…)")
    return name or f"{_module_name(function)}.{str(place).replace('<locals>.', '')}"


def _common_using(calls: Sequence[Call[Any]], using: object) -> object:
    """The one connection that is meant: by the batch, or by the tasks that were called. Raises ConfigError."""
    meant = {id(call.task.using): call.task.using for call in calls}
    if using is not None:
        meant[id(using)] = using
        meant.pop(id(None), None)
    if len(meant) > 1:
        raise ConfigError(
            "the calls of a batch are stored in one transaction, and these were given different using="
        )
    return next(iter(meant.values()), using)


def _module_name(function: Callable[..., Any]) -> str:
    """The module as workers will import it: a script run as ``__main__`` has its file's name."""
    module = function.__module__
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    file = getattr(main, "__file__", None)
    return Path(file).stem if file else module
