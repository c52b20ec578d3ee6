"""One configuration object: from code, the environment and a TOML file, in this order of precedence.

The file is ``ferryman.toml`` in the working directory, or the one that ``FERRYMAN_CONFIG`` names. In the
environment, ``worker.concurrency`` is written ``FERRYMAN_WORKER_CONCURRENCY``.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from ferryman.clock import CENTURY
from ferryman.errors import ConfigError, InvalidValue
from ferryman.values import NUMBER, TEXT, WHOLE, Kind, did_you_mean, shown, taken

__all__ = [
    "MOST_IN_STORE",
    "BlobSettings",
    "RetentionSettings",
    "Settings",
    "WorkerSettings",
    "check_names",
    "load_settings",
]

DEFAULT_URL = "sqlite:///ferryman.db"

MOST_IN_STORE = 32 * 1024 * 1024
"""Bytes of a payload that lies in the store and goes through supervisors, whose frames hold twice as much."""


MOST_CONCURRENCY, MOST_EXECUTORS = 100_000, 1_000
"""What one worker can be asked for: each job at a time has a place in memory, each executor is a process."""

MOST_COUNT = 2**31 - 1


_IN_SECONDS = Kind("a number (durations are in seconds: for a timedelta its total_seconds())", NUMBER.take)
_KINDS = {"int": WHOLE, "float": _IN_SECONDS, "str": TEXT}
"""By the name of the type, as the fields below are annotated: to look up what the names mean takes time at each start."""


def _check_kinds(settings: msgspec.Struct) -> None:
    """Settings that are made in code are of the types that they say."""
    for name, type_name in type(settings).__annotations__.items():
        if type_name in _KINDS:
            taken(name, getattr(settings, name), _KINDS[type_name])


def _check_bounds(settings: msgspec.Struct, **bounds: tuple[float, float]) -> None:
    for name, (least, most) in bounds.items():
        value = getattr(settings, name)
        # Put so that what is no number is refused, too.
        if not least <= value <= most:
            raise InvalidValue(f"{name} must lie between {least:,} and {most:,.0f}, not {value}")


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a worker behaves. Durations are in seconds."""

    concurrency: int = 16
    """How many jobs run at the same time, over all executors; 100,000 at most."""
    executors: int = 0
    """How many executor processes, 1,000 at most; 0 for one for each core."""
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
        _check_kinds(self)
        _check_bounds(
            self,
            concurrency=(1, MOST_CONCURRENCY),
            executors=(0, MOST_EXECUTORS),
            lease=(0, CENTURY),
            shutdown_timeout=(0, CENTURY),
            grace=(0, CENTURY),
            max_memory=(0, MOST_COUNT),
            recycle_after=(0, MOST_COUNT),
        )
        if not 0 < self.heartbeat <= self.lease / 2:
            raise InvalidValue(
                f"heartbeat must be positive and at most half of lease, not {self.heartbeat:g} of {self.lease:g} s"
            )


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
        _check_kinds(self)
        days = ("succeeded_days", "dead_days", "other_days", "stats_days")
        counts = ("succeeded_count", "dead_count", "other_count")
        _check_bounds(
            self, **dict.fromkeys(days, (0, CENTURY / 86_400)), **dict.fromkeys(counts, (0, 10**15))
        )


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
        _check_kinds(self)
        if not 1_024 <= self.above <= MOST_IN_STORE or self.max_payload < self.above:
            raise InvalidValue(
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
        _check_kinds(self)
        for name, section in _SECTIONS.items():
            if not isinstance(value := getattr(self, name), section):
                raise InvalidValue(f"{name} must be a {section.__name__}, not {shown(value)}")
        _check_bounds(self, compress_above=(0, MOST_COUNT))
        if not 0 < self.max_payload <= MOST_IN_STORE:
            raise InvalidValue(
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
        what = "is a directory; name the file in it" if path.is_dir() else "does not exist"
        raise ConfigError(f"the configuration file {str(path)!r} {what}")
    merged = _read_file(path) if path.is_file() else {}
    _checked(merged, f"the file {str(path)!r}")
    values, variables = _from_environment(environment)
    _merge(merged, values)
    _checked(merged, "the environment", variables)
    _merge(merged, {name: value for name, value in code.items() if value is not None})
    return _checked(merged, "the code")


def _read_file(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            return tomllib.load(stream)
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"the configuration file {str(path)!r} is not UTF-8, as TOML must be: {error}"
        ) from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"the configuration file {str(path)!r} cannot be read: {error}") from error


# -- the environment ---------------------------------------------------------------------------------


_SECTIONS: dict[str, type[msgspec.Struct]] = {
    "worker": WorkerSettings,
    "retention": RetentionSettings,
    "blobs": BlobSettings,
}

_VARIABLES: dict[str, tuple[str | None, str]] = {
    **{
        f"FERRYMAN_{name.upper()}": (None, name)
        for name in Settings.__struct_fields__
        if name not in _SECTIONS
    },
    **{
        f"FERRYMAN_{section.upper()}_{name.upper()}": (section, name)
        for section, settings in _SECTIONS.items()
        for name in settings.__struct_fields__
    },
}
"""The section, if there is one, and the name of the setting that each variable means."""

_OTHERS = frozenset({"FERRYMAN_CONFIG", "FERRYMAN_DEBUG", "FERRYMAN_COMPLETE"})
"""Variables that Ferryman knows and that are no settings."""

_OF_A_CLUSTER = r"_SERVICE_HOST$|_SERVICE_PORT(_\w+)?$|_PORT$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$"
"""Kubernetes sets such variables in every container for a service named ``ferryman-worker``."""


def _from_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The settings that are there, and their variables. Raises ConfigError for a variable that means none."""
    values: dict[str, Any] = {}
    found: list[str] = []
    for variable, text in environment.items():
        if not variable.startswith("FERRYMAN_"):
            continue
        if variable not in _VARIABLES:
            _refuse_typo(variable)
            continue
        section, name = _VARIABLES[variable]
        settings = Settings if section is None else _SECTIONS[section]
        _check_number(variable, text, settings.__annotations__[name])
        found.append(variable)
        into = values if section is None else values.setdefault(section, {})
        into[name] = text
    return values, found


def _check_number(variable: str, text: str, type_name: str) -> None:
    for kind, words in ((int, "whole number"), (float, "number")):
        if type_name == kind.__name__:
            try:
                msgspec.convert(text, kind, strict=False)
            except msgspec.ValidationError as error:
                raise ConfigError(
                    f"the environment has a wrong setting: {variable}={shown(text)} is no {words}"
                ) from error


def _refuse_typo(variable: str) -> None:
    """Raises ConfigError if the variable reads as one of a setting."""
    if variable in _OTHERS or variable.startswith("FERRYMAN_TEST_") or re.search(_OF_A_CLUSTER, variable):
        return
    group = next((each for each in _SECTIONS if variable.startswith(f"FERRYMAN_{each.upper()}_")), None)
    if group is not None:
        prefix = f"FERRYMAN_{group.upper()}_"
        known = [name.upper() for section, name in _VARIABLES.values() if section == group]
        near = difflib.get_close_matches(variable.removeprefix(prefix), known, n=1)
        advice = (
            f"did you mean {prefix + near[0]!r}?" if near else f"after {prefix} there are {', '.join(known)}"
        )
    else:
        # Its section was left out, or a letter is wrong; whatever is less alike is somebody else's.
        bare = [each for each, (_, name) in _VARIABLES.items() if variable == f"FERRYMAN_{name.upper()}"]
        near = bare or difflib.get_close_matches(variable, _VARIABLES, n=1, cutoff=0.9)
        if not near:
            return
        advice = f"did you mean {near[0]!r}?"
    raise ConfigError(f"the environment has {variable}, which is no setting; {advice}")


# -- merging and checking ------------------------------------------------------------------------------


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, msgspec.Struct):
            into[name] = msgspec.structs.asdict(value)
        elif isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = dict(value) if isinstance(value, Mapping) else value


def _checked(values: Mapping[str, Any], source: str, variables: Sequence[str] = ()) -> Settings:
    try:
        return msgspec.convert(values, Settings, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        said = str(error)
        named = ", ".join(each for each in variables if re.search(rf"\b{_VARIABLES[each][1]}\b", said))
        where = f"{source}, in {named}," if named else source
        raise ConfigError(f"{where} has a wrong setting: {said}{_advice(said)}") from error


def _advice(message: str) -> str:
    if "unknown field" not in message:
        return ""
    wrong = message.split("`")[1]
    structs: tuple[type[msgspec.Struct], ...] = (Settings, *_SECTIONS.values())
    known = [field.name for struct in structs for field in msgspec.structs.fields(struct)]
    return f"; {did_you_mean(wrong, known)}"


def check_names(settings: type[msgspec.Struct], said: Iterable[str], what: str) -> None:
    """Raises ConfigError for a name that is no field of these settings, and says which is meant."""
    known = [field.name for field in msgspec.structs.fields(settings)]
    for name in said:
        if name not in known:
            raise ConfigError(f"{what}: there is no {name!r}; {did_you_mean(name, known)}")
