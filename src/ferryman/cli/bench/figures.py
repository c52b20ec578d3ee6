"""A figure that was measured, and the target that it should reach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import msgspec

__all__ = [
    "NAMES",
    "OF_SERVERS",
    "UNITS",
    "Extent",
    "Figure",
    "Target",
    "make_figure",
    "percentile",
    "target_of",
]

UNITS = {
    "enqueue_bulk": "jobs/s",
    "enqueue_batch": "jobs/s",
    "enqueue_one": "jobs/s",
    "enqueue_async": "ratio",
    "drain": "jobs/s",
    "steady_rate": "ratio",
    "steady_size": "ratio",
    "latency_p50": "ms",
    "latency_p99": "ms",
    "enqueue_p99_under_drain": "ms",
    "claim_growth": "ratio",
    "idle_cpu": "%",
    "idle_statements": "/s",
    "job_memory": "bytes",
    "import_time": "ms",
    "rss_supervisor": "MiB",
    "rss_executor": "MiB",
}
"""Every figure, in the order in which they are shown."""

NAMES = tuple(UNITS)

OF_SERVERS = frozenset({"steady_rate", "steady_size", "idle_statements", "job_memory"})
"""Figures of stores that are servers."""


class Extent(msgspec.Struct, frozen=True):
    """How much is measured. With less than this, figures are still right in kind but vary more."""

    jobs: int = 100_000
    """Jobs that a worker drains; `claim_growth` looks at ten times as many."""
    seconds: float = 5.0
    """For how long each rate is taken; an idle worker is watched for twice as long."""


class Figure(msgspec.Struct, frozen=True):
    """One line of the answer. `ratio` is the value over the floor: of a rate, more is better; of a latency, less."""

    name: str
    store: str
    value: float
    unit: str
    floor: float | None = None
    ratio: float | None = None


class Target(msgspec.Struct, frozen=True):
    """A bound on a figure's value, or on its ratio."""

    bound: float
    kind: Literal["at least", "at most", "below"]
    of: Literal["value", "ratio"] = "value"

    def is_met(self, figure: Figure) -> bool | None:
        """None if the figure lacks what the target is about."""
        number = figure.ratio if self.of == "ratio" else figure.value
        if number is None:
            return None
        match self.kind:
            case "at least":
                return number >= self.bound
            case "at most":
                return number <= self.bound
            case "below":
                return number < self.bound

    def __str__(self) -> str:
        sign = {"at least": "≥", "at most": "≤", "below": "<"}[self.kind]
        return f"{sign} {self.bound:,g}{' of the floor' if self.of == 'ratio' else ''}"


_EVERYWHERE = {"import_time": Target(100, "below")}

_TARGETS = {
    "sqlite": {
        "enqueue_bulk": Target(0.5, "at least", "ratio"),
        "enqueue_batch": Target(0.5, "at least", "ratio"),
        "enqueue_one": Target(0.6, "at least", "ratio"),
        "drain": Target(40_000, "at least"),
        "latency_p50": Target(1, "below"),
        "latency_p99": Target(5, "below"),
        "enqueue_p99_under_drain": Target(10, "below"),
        "claim_growth": Target(1.5, "at most"),
        "idle_cpu": Target(1, "below"),
        "rss_supervisor": Target(45, "below"),
        "rss_executor": Target(45, "below"),
    },
    "redis": {
        "enqueue_bulk": Target(60_000, "at least"),
        "drain": Target(45_000, "at least"),
        "steady_rate": Target(0.9, "at least", "ratio"),
        "latency_p50": Target(0.8, "below"),
        "latency_p99": Target(1.5, "below"),
        "claim_growth": Target(1.5, "at most"),
        "enqueue_async": Target(5, "at least"),
        "job_memory": Target(700, "at most"),
        "idle_statements": Target(3, "at most"),
    },
    "postgresql": {
        "enqueue_batch": Target(52_000, "at least"),
        "drain": Target(22_000, "at least"),
        "steady_rate": Target(0.9, "at least", "ratio"),
        "steady_size": Target(2, "at most"),
        "latency_p50": Target(1.6, "below"),
        "latency_p99": Target(4, "below"),
        "claim_growth": Target(1.5, "at most"),
        "enqueue_async": Target(5, "at least"),
        "idle_statements": Target(3, "at most"),
    },
}


def target_of(figure: Figure) -> Target | None:
    """What a figure should reach on its store; None where nothing was set."""
    scheme = figure.store.partition(":")[0]
    return _EVERYWHERE.get(figure.name) or _TARGETS.get(scheme, {}).get(figure.name)


def make_figure(name: str, store: str, value: float, floor: float | None = None) -> Figure:
    """A figure with its unit and ratio; more than four digits would claim what no measurement here can tell."""
    if floor is None:
        return Figure(name, store, _rounded(value), UNITS[name])
    return Figure(name, store, _rounded(value), UNITS[name], _rounded(floor), _rounded(value / floor))


def _rounded(number: float) -> float:
    return float(f"{number:.4g}")


def percentile(samples: Sequence[float], fraction: float) -> float:
    """The smallest sample that `fraction` (0 to 1) of them do not exceed."""
    return sorted(samples)[max(0, math.ceil(fraction * len(samples)) - 1)]
