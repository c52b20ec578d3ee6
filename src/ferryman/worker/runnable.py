"""A task made ready to be run: everything that is the same for all its jobs, looked up once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from ferryman.context import Context, Transaction
from ferryman.errors import PayloadError
from ferryman.job import Claim
from ferryman.options import Overrides
from ferryman.policy.retry import Retry, written_down
from ferryman.task import Task
from ferryman.worker.frames import TaskFacts, Track

__all__ = ["Runnable", "facts", "read_overrides", "runnables"]

_OVERRIDES = msgspec.msgpack.Decoder(Overrides)


class Runnable:
    """Immutable once made; thread-safe."""

    __slots__ = (
        "_context_index",
        "_context_name",
        "_decode",
        "app",
        "at_most_once",
        "call",
        "context_type",
        "encode",
        "name",
        "result_ttl",
        "retry",
        "timeout",
        "track",
    )

    def __init__(self, task: Task[..., Any]) -> None:
        self.app = task.app
        self._decode = task.binding.decode
        self._context_name = task.binding.context_parameter
        self._context_index = _index(task.function, self._context_name)
        self.context_type: type[Context] | None = task.binding.context_type
        self.name = task.name
        self.track: Track = "loop" if _is_async(task.function) else "thread"
        self.call: Callable[..., Any] = task.function
        self.encode = task.app.codec.encode
        self.retry: Retry = task.settings.retry
        self.timeout = task.settings.timeout
        """Seconds; None or 0 for no limit."""
        self.result_ttl = task.settings.result_ttl
        self.at_most_once = task.settings.at_most_once

    def decode(self, claim: Claim) -> tuple[Sequence[Any], dict[str, Any]]:
        """The call that a job stands for, still without the context. Raises PayloadError."""
        return self._decode(claim.args)

    def timeout_of(self, overrides: Overrides | None) -> float | None:
        """The soft timeout of a job in seconds, if it has one."""
        if overrides is not None and overrides.timeout is not None:
            return overrides.timeout
        return self.timeout

    def with_context(
        self, call: tuple[Sequence[Any], dict[str, Any]], context: Context
    ) -> tuple[Sequence[Any], dict[str, Any]]:
        """The call with the context put where the function wants it."""
        args, kwargs = call
        index = self._context_index
        if index is None or len(args) < index:
            return args, {**kwargs, str(self._context_name): context}
        return (*args[:index], context, *args[index:]), kwargs

    def function(self, context: Context | None) -> Callable[..., Any]:
        """What to call: the task, or what calls it inside a transaction."""
        if not isinstance(context, Transaction):
            return self.call
        return functools.partial(context.run if self.track == "thread" else context.arun, self.call)


def runnables(tasks: Mapping[str, Task[..., Any]]) -> dict[str, Runnable]:
    """All tasks of an app by name. Raises ConfigError if the annotations of one make no sense."""
    return {name: Runnable(task) for name, task in tasks.items()}


def facts(task: Task[..., Any]) -> TaskFacts:
    """What a supervisor needs to know of a task."""
    settings = task.settings
    return TaskFacts(
        name=task.name,
        track="loop" if _is_async(task.function) else "thread",
        timeout=settings.timeout,
        max_memory=settings.max_memory,
        retry=written_down(settings.retry),
        at_most_once=settings.at_most_once,
    )


def read_overrides(options: bytes | None) -> Overrides | None:
    """What a job changes of its task's options. Raises PayloadError."""
    if options is None:
        return None
    try:
        return _OVERRIDES.decode(options)
    except msgspec.DecodeError as error:
        raise PayloadError(
            f"the job's options cannot be read, another version of Ferryman may have written them: {error}"
        ) from error


def _is_async(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        getattr(function, "__call__", None)  # noqa: B004
    )


def _index(function: Callable[..., Any], name: str | None) -> int | None:
    """Where among the positional arguments a parameter stands; None if it must be given by name."""
    if name is None:
        return None
    parameters = inspect.signature(function).parameters
    if parameters[name].kind is inspect.Parameter.KEYWORD_ONLY:
        return None
    return list(parameters).index(name)
