"""Every error that Ferryman raises, sorted by what the caller can do about it.

All derive from `FerrymanError`. Drivers' exceptions are mapped to these where the driver is called,
and nowhere else. `Snooze`, `Cancel`, `RetryIn` and `Fail` are not errors: a task returns or raises them to
say what shall happen to its job (see `ferryman.job`).
"""

from __future__ import annotations

__all__ = [
    "AppNotFound",
    "BadArguments",
    "BlobError",
    "ConfigError",
    "FerrymanError",
    "InvalidJob",
    "InvalidValue",
    "JobCancelled",
    "JobDied",
    "JobExpired",
    "JobNotFound",
    "JobUnfinished",
    "LeaseLost",
    "MissingExtra",
    "PayloadError",
    "QueueFull",
    "ResultExpired",
    "ResultTimeout",
    "StoreCorrupt",
    "StoreError",
    "StoreFull",
    "StoreReadOnly",
    "StoreUnavailable",
    "StoreVersionError",
    "UnknownParent",
    "UnknownTask",
    "Unsupported",
    "WorkerGone",
]


class FerrymanError(Exception):
    """The root of all errors of Ferryman."""


# -- the set-up is wrong: change it and start again ------------------------------------------------


class ConfigError(FerrymanError):
    """A setting, URL or option has no meaning; the message names it and says what would be right."""


class InvalidValue(ConfigError, ValueError):
    """A record was made, such as a `Retry` or a `Filter`, with a value that has no meaning there. Also a ValueError."""


class AppNotFound(ConfigError):
    """The module or attribute that should hold the app could not be imported."""


class MissingExtra(ConfigError):
    """A feature needs a package that an extra of Ferryman installs; the message names the extra."""


class Unsupported(FerrymanError):
    """This store cannot do what was asked; the message names the stores that can."""


# -- the job is wrong: nothing was enqueued, mend the call ---------------------------------------------


class InvalidJob(FerrymanError):
    """What was asked for is no valid job; nothing was stored."""


class UnknownTask(InvalidJob):
    """No task of this name is registered."""


class BadArguments(InvalidJob):
    """The arguments do not fit the task's signature or its annotations."""


class PayloadError(InvalidJob):
    """A value cannot be encoded or decoded, or is larger than allowed."""


class UnknownParent(InvalidJob):
    """A job was told to wait for a job that the store does not have (any more)."""


# -- back-pressure: try again later -----------------------------------------------------------------------


class QueueFull(FerrymanError):
    """The queue's bound is reached and its overflow rule is to reject; nothing was stored."""

    def __init__(self, queue: str, max_size: int) -> None:
        super().__init__(
            f"queue {queue!r} is full: it holds max_size={max_size} waiting jobs; "
            f"try again later, or let it block or drop with app.queue({queue!r}, overflow=…)"
        )
        self.queue = queue
        self.max_size = max_size


# -- the store: mend or wait for it; what was acknowledged is safe -------------------------------------


class StoreError(FerrymanError):
    """The store could not do its part. The operation changed nothing, unless its answer was lost on the way: then
    nobody can tell, and to do it again is safe, since jobs are known by their ids and outcomes by their leases."""


class StoreUnavailable(StoreError):
    """The store cannot be reached or is locked for too long; trying again may help."""


class StoreBusy(StoreUnavailable):
    """Somebody's open transaction holds what this needs; nothing was changed. Trying again helps once that has ended."""


class StoreFull(StoreError):
    """The disk or memory of the store is full; nothing was stored."""


class StoreReadOnly(StoreError):
    """The store cannot be written to."""


class StoreCorrupt(StoreError):
    """The store's file or data is damaged or is not Ferryman's."""


class StoreVersionError(StoreError):
    """The store was made by another version of Ferryman that this one cannot read."""


class BlobError(StoreError):
    """The place for large payloads cannot be reached, or does not do its part; trying again may help."""


class WorkerGone(FerrymanError):
    """The worker is not on the store's register (any more): its jobs are, or will be, run by others."""


class LeaseLost(FerrymanError):
    """The job is not this attempt's any more: its worker was taken for dead, or somebody cancelled it. What it did in
    the transaction is to be rolled back."""


# -- the job's own end: what `job.result()` raises ----------------------------------------------------


class JobNotFound(FerrymanError):
    """The store has no such job: the id is wrong, or its retention has passed."""


class ResultExpired(FerrymanError):
    """The job succeeded, but its result's time to live has passed."""


class JobUnfinished(FerrymanError):
    """The job can have no result: it ended otherwise than by success."""

    def __init__(self, message: str, job_id: str) -> None:
        super().__init__(message)
        self.job_id = job_id


class JobDied(JobUnfinished):
    """The job failed for good and lies with the dead letters; `cause` says why."""

    def __init__(self, message: str, job_id: str, cause: str) -> None:
        super().__init__(message, job_id)
        self.cause = cause


class JobCancelled(JobUnfinished):
    """The job was cancelled."""


class JobExpired(JobUnfinished):
    """The job was not started by its deadline."""


class ResultTimeout(FerrymanError, TimeoutError):
    """The job did not finish within the time the caller would wait; it goes on by itself."""
