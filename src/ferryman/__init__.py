"""Ferryman: background jobs that are never lost.

Everything that most programs need can be imported from here. Start with `Ferryman`.
"""

from typing import TYPE_CHECKING

from ferryman.codec import Codec, JsonFormat, MsgpackFormat, PickleFormat
from ferryman.config import RetentionSettings, Settings, WorkerSettings
from ferryman.context import Cancelled, Context, SoftTimeout, Transaction
from ferryman.errors import (
    BadArguments,
    FerrymanError,
    JobCancelled,
    JobDied,
    JobExpired,
    JobNotFound,
    QueueFull,
    ResultTimeout,
    StoreError,
)
from ferryman.face import Ferryman
from ferryman.handle import JobHandle
from ferryman.job import Cancel, Fail, RetryIn, Snooze, State
from ferryman.options import Unique
from ferryman.policy.retry import Retry
from ferryman.store.records import Filter
from ferryman.task import Call, Task

__all__ = [
    "BadArguments",
    "Call",
    "Cancel",
    "Cancelled",
    "Codec",
    "Context",
    "Fail",
    "Ferryman",
    "FerrymanError",
    "Filter",
    "JobCancelled",
    "JobDied",
    "JobExpired",
    "JobHandle",
    "JobNotFound",
    "JsonFormat",
    "MsgpackFormat",
    "PickleFormat",
    "QueueFull",
    "ResultTimeout",
    "RetentionSettings",
    "Retry",
    "RetryIn",
    "Settings",
    "Snooze",
    "SoftTimeout",
    "State",
    "StoreError",
    "Task",
    "Transaction",
    "Unique",
    "WorkerSettings",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name):
        """`__version__`, as it was installed: looked up when it is asked for, since few programs do."""
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ferryman")
        except PackageNotFoundError:
            # Run from a folder, without having been installed.
            return "unknown"
