"""One configuration object: from code, the environment and a TOML file, in this order of precedence.

The file is ``ferryman.toml`` in the working directory, or the one that ``FERRYMAN_CONFIG`` names. In the
environment, ``worker.concurrency`` is written ``FERRYMAN_WORKER_CONCURRENCY``.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ferryman.errors import ConfigError

__all__ = [
    "MOST_IN_STORE",
    "BlobSettings",
    "RetentionSettings",
    "Settings",
    "WorkerSettings",
    "load_settings",
]

DEFAULT_URL = "sqlite:///ferryman.db"

MOST_IN_STORE = 32 * 1024 * 1024
"""Bytes of a payload that lies in the store and goes through supervisors, whose frames hold twice as much."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker behaves. Durations are in seconds."""

    concurrency: int = 16
    """How many jobs run at the same time, over all executors."""
    executors: int = 0
    """How many executor processes; 0 for one for each core."""
    lease: float = 30.0
    """After so long without a heartbeat, others take over the worker's jobs."""
    heartbeat: float = 5.0
    """How often a worker says that it is alive, and asks for orders."""
    shutdown_timeout: float = 30.0
    """How long running jobs may go on after a worker was told to stop."""
    grace: float = 5.0
    """Seconds between a soft timeout, or a cancel, and the kill."""
    max_memory: int = 0
    """MiB that an executor may take before it is replaced; 0 for no limit."""
    recycle_after: int = 0
    """Jobs after which an executor is replaced by a fresh one; 0 for never."""

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.executors < 0:
            raise ValueError("concurrency must be at least 1 and executors not negative")
        if not 0 < self.heartbeat <= self.lease / 2:
            raise ValueError("heartbeat must be positive and at most half of lease")
        if min(self.shutdown_timeout, self.grace, self.max_memory, self.recycle_after) < 0:
            raise ValueError("shutdown_timeout, grace, max_memory and recycle_after must not be negative")


class RetentionSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long finished jobs are kept, in days, and how many at most."""

    succeeded_days: float = 1
    succeeded_count: int = 500_000
    dead_days: float = 90
    """For dead letters."""
    dead_count: int = 500_000
    other_days: float = 7
    """For cancelled and expired jobs."""
    other_count: int = 500_000
    stats_days: float = 30
    """For the statistics of each minute."""

    def __post_init__(self) -> None:
        if min(msgspec.structs.astuple(self)) < 0:
            raise ValueError("retention must not be negative")


class BlobSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where large arguments and results lie outside the store."""

    url: str | None = None
    """``file:///var/lib/ferryman/blobs`` (a directory that all machines share) or ``s3://bucket/prefix``, with
    ``?endpoint=https://…`` for services other than Amazon's. Without one, all payloads stay in the store."""
    above: int = 64 * 1024
    """Bytes from which on a payload is kept outside."""
    max_payload: int = 256 * 1024 * 1024
    """Bytes that a payload may have, if there is a place outside; takes the place of ``max_payload``."""

    def __post_init__(self) -> None:
        if not 1_024 <= self.above <= MOST_IN_STORE or self.max_payload < self.above:
            raise ValueError(
                f"blobs.above must be between 1024 and {MOST_IN_STORE}, and blobs.max_payload not less than that"
            )


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that can be configured outside the code of tasks."""

    url: str = DEFAULT_URL
    """Where the jobs live: ``sqlite:///jobs.db``, ``sqlite:////var/lib/jobs.db``, ``redis://host:6379/0``,
    ``postgresql://user:password@host:5432/database`` or ``memory://``."""
    max_payload: int = 4 * 1024 * 1024
    """Bytes that the arguments or the result of a job may have; 32 MiB at most."""
    compress_above: int = 2_048
    """Bytes from which on payloads are compressed."""
    worker: WorkerSettings = WorkerSettings()
    retention: RetentionSettings = RetentionSettings()
    blobs: BlobSettings = BlobSettings()

    def __post_init__(self) -> None:
        if not 0 < self.max_payload <= MOST_IN_STORE:
            raise ValueError(
                f"max_payload must be positive and {MOST_IN_STORE} at most; larger ones lie outside the store, see blobs.url"
            )

    @property
    def most_bytes(self) -> int:
        """Bytes that a payload may have, wherever it is kept."""
        return self.max_payload if self.blobs.url is None else self.blobs.max_payload


def load_settings(
    environment: Mapping[str, str] | None = None,
    file: str | Path | None = None,
    **code: Any,
) -> Settings:
    """The settings in force. `code` has the last word; None values in it are taken as not given.

    Raises ConfigError, which names the setting and where it came from.
    """
    environment = os.environ if environment is None else environment
    named = file or environment.get("FERRYMAN_CONFIG")
    path = Path(named) if named else Path("ferryman.toml")
    if named and not path.is_file():
        raise ConfigError(f"the configuration file {str(path)!r} does not exist")
    merged = _read_file(path) if path.is_file() else {}
    _checked(merged, f"the file {str(path)!r}")
    for source, values in (
        ("the environment", _from_environment(environment)),
        ("the code", {name: value for name, value in code.items() if value is not None}),
    ):
        _merge(merged, values)
        _checked(merged, source)
    return _checked(merged, "the settings")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the configuration file {str(path)!r} cannot be read: {error}") from error


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for field in msgspec.structs.fields(Settings):
        section = (
            field.type if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct) else None
        )
        names = (
            [f"{field.name}_{inner.name}" for inner in msgspec.structs.fields(section)]
            if section
            else [field.name]
        )
        for name in names:
            text = environment.get(f"FERRYMAN_{name.upper()}")
            if text is None:
                continue
            if section:
                values.setdefault(field.name, {})[name.removeprefix(f"{field.name}_")] = text
            else:
                values[name] = text
    return values


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, msgspec.Struct):
            into[name] = msgspec.structs.asdict(value)
        elif isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = dict(value) if isinstance(value, Mapping) else value


def _checked(values: Mapping[str, Any], source: str) -> Settings:
    try:
        return msgspec.convert(values, Settings, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"{source} has a wrong setting: {error}{_did_you_mean(str(error))}") from error


def _did_you_mean(message: str) -> str:
    if "unknown field" not in message:
        return ""
    wrong = message.split("`")[1]
    known = [
        field.name
        for struct in (Settings, WorkerSettings, RetentionSettings, BlobSettings)
        for field in msgspec.structs.fields(struct)
    ]
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; the settings are: {', '.join(known)}"
