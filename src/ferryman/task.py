"""A task: a registered function, and the ways to enqueue calls of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypedDict, TypeVar, Unpack

import msgspec

from ferryman.binding import Binding
from ferryman.clock import millis
from ferryman.context import Context
from ferryman.errors import BadArguments, ConfigError
from ferryman.handle import JobHandle
from ferryman.intake import fields_of
from ferryman.job import JobId, NewJob, UniqueKey, new_id, new_ids
from ferryman.options import HasId, Options, Priority, Seconds, Unique, new_job_template, unfit
from ferryman.policy.retry import Retry

if TYPE_CHECKING:
    import datetime

    from ferryman.app import App
    from ferryman.job import OnParentFailure

__all__ = ["Call", "CallOptions", "JobOptions", "Task", "TaskOptions"]

P = ParamSpec("P")
R = TypeVar("R", covariant=True)


class JobOptions(TypedDict, total=False):
    """What can be said of a job; `ferryman.options.Options` says what each means."""

    queue: str
    priority: Priority
    delay: Seconds
    at: datetime.datetime | None
    ttl: Seconds | None
    deadline: datetime.datetime | None
    retry: Retry
    timeout: Seconds | None
    max_memory: int | None
    key: str | Callable[..., str | None] | None
    room: int
    ordered: bool
    unique: bool | Seconds | str | Unique | None
    after: Sequence[HasId | str]
    on_parent_failure: OnParentFailure
    tenant: str | None
    tags: Sequence[str]
    result_ttl: Seconds | None


class CallOptions(JobOptions, total=False):
    """Keywords of `Task.options`: those of a job, and in whose transaction it is stored."""

    using: object


class TaskOptions(JobOptions, total=False):
    """Keywords of `App.task`: those of a job, and what holds for all jobs of the task alike."""

    at_most_once: bool


class Call(Generic[R]):
    """A call of a task that has not been enqueued yet; see `App.enqueue_many`."""

    __slots__ = ("job", "task")

    def __init__(self, task: Task[..., R], job: NewJob) -> None:
        self.task = task
        self.job = job

    @property
    def id(self) -> JobId:
        """The id that the job will have: other calls of the same batch can name it in ``after``."""
        return self.job.id


class Task(Generic[P, R]):
    """Calling it runs the function here and now; ``enqueue`` has a worker run it. Thread-safe."""

    def __init__(
        self,
        app: App,
        function: Callable[..., Any],
        name: str,
        options: Options,
        changed: Mapping[str, Any] | None = None,
        using: object = None,
    ) -> None:
        self.app = app
        self.function = function
        self.name = name
        self.settings = options
        self.using = using
        """The connection in whose transaction jobs are stored; None for one of their own."""
        self._changed = dict(changed or {})
        self._template = new_job_template(name, options, self._changed)
        self._unique = _wish(options.unique)
        self._per_call = (
            callable(options.key) or "{" in (self._template.key or "") or self._unique is not None
        )
        functools.update_wrapper(self, function)

    def __repr__(self) -> str:
        return f"<task {self.name}>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self.function(*args, **kwargs)
        return result

    @functools.cached_property
    def binding(self) -> Binding:
        """How the function is called; made when first needed, since annotations may name what comes later."""
        return self.bind()

    def bind(self) -> Binding:
        """Make the binding anew. Raises ConfigError if the annotations make no sense."""
        try:
            return Binding(self.function, self.app.codec, Context, self.name)
        except TypeError as error:
            raise ConfigError(f"the annotations of {self.name}: {error}") from error

    def options(self, **changes: Unpack[CallOptions]) -> Task[P, R]:
        """This task with other options, for the jobs that are enqueued through what this returns.

        `using` takes a connection to the store's database (of sqlite3, aiosqlite, psycopg, asyncpg, SQLAlchemy or
        Django; an SQLAlchemy session, too). Jobs are then stored inside the transaction that is open on it: its
        commit starts them, and if it is rolled back, there are none.
        """
        using = changes.pop("using", self.using)
        fields = fields_of(self.name, changes, JobOptions.__annotations__)
        options = msgspec.structs.replace(self.settings, **fields)
        if self.settings.at_most_once and "retry" in fields:
            raise ConfigError(f"{self.name} runs at most once; its jobs cannot be retried")
        changed: Task[P, R] = Task(
            self.app, self.function, self.name, options, {**self._changed, **fields}, using
        )
        changed.__dict__["binding"] = self.binding
        return changed

    def enqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """Store a job that calls the task with these arguments; once this returns, the job cannot be lost.

        Raises BadArguments or PayloadError if the task cannot be called like this, QueueFull if the queue's
        bound is reached, UnknownParent, or a StoreError; then nothing was stored.
        """
        jobs = [self.new_job(args, kwargs)]
        return self.app.enqueue_jobs(jobs, self.binding.decode_result, using=self.using)[0]

    async def aenqueue(self, *args: P.args, **kwargs: P.kwargs) -> JobHandle[R]:
        """`enqueue`, awaited."""
        jobs = [self.new_job(args, kwargs)]
        return (await self.app.aenqueue_jobs(jobs, self.binding.decode_result, using=self.using))[0]

    def enqueue_many(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[JobHandle[R]]:
        """Store a job for each call, all or none. A call is a sequence of arguments, or a mapping by name."""
        return self.app.enqueue_jobs(self._new_jobs(calls), self.binding.decode_result, using=self.using)

    async def aenqueue_many(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[JobHandle[R]]:
        """`enqueue_many`, awaited."""
        jobs = self._new_jobs(calls)
        return await self.app.aenqueue_jobs(jobs, self.binding.decode_result, using=self.using)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """A call to be enqueued with others by `App.enqueue_many`, typed as the task is."""
        return Call(self, self.new_job(args, kwargs))

    def new_job(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> NewJob:
        """The job of a call, not stored anywhere."""
        payload = self.binding.encode(args, kwargs)
        changes = self._changes_of(args, kwargs, payload) if self._per_call else {}
        return msgspec.structs.replace(self._template, id=new_id(), args=payload, **changes)

    def _new_jobs(self, calls: Iterable[Sequence[Any] | Mapping[str, Any]]) -> list[NewJob]:
        pairs = [_split(self.name, call) for call in calls]
        encode, replace, template = self.binding.encode, msgspec.structs.replace, self._template
        if self._per_call:
            return [self.new_job(args, kwargs) for args, kwargs in pairs]
        return [
            replace(template, id=id, args=encode(args, kwargs))
            for id, (args, kwargs) in zip(new_ids(len(pairs)), pairs, strict=True)
        ]

    def _changes_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], payload: bytes) -> dict[str, Any]:
        changes: dict[str, Any] = {}
        key = self.settings.key
        if key is not None:
            arguments = self.binding.arguments(args, kwargs)
            try:
                made = key(**arguments) if callable(key) else key.format_map(arguments)
                changes["key"] = None if made is None else str(made)
            except (KeyError, IndexError, AttributeError, TypeError, ValueError) as error:
                raise BadArguments(
                    f"the key of {self.name} cannot be made from its arguments: {error!r}"
                ) from error
            if changes["key"] is not None and (problem := unfit("its key", changes["key"])):
                raise BadArguments(f"the arguments of {self.name}: {problem}")
        if self._unique is not None:
            changes["unique"] = self._unique_key(self._unique, payload)
        return changes

    def _unique_key(self, wish: UniqueKey, payload: bytes) -> UniqueKey:
        if wish.key:
            return wish
        key = f"{self.name}:{hashlib.blake2b(payload, digest_size=16).hexdigest()}"
        return UniqueKey(key, wish.period, wish.until)


def _wish(unique: bool | float | str | Unique | None) -> UniqueKey | None:
    """What the option says, with an empty key for that of the arguments."""
    match unique:
        case Unique():
            said = unique
        case str():
            said = Unique(unique)
        case None | False | 0:
            return None
        case True:
            said = Unique()
        case _:
            said = Unique(period=unique)
    period = said.period_seconds
    return UniqueKey(said.key or "", None if period is None else millis(period), said.until)


def _split(name: str, call: Sequence[Any] | Mapping[str, Any]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    if isinstance(call, Mapping):
        return (), call
    if isinstance(call, (str, bytes)):
        raise BadArguments(
            f"each call of {name} must be a sequence of its arguments or a mapping by name, not {type(call).__name__}"
        )
    return call, {}
