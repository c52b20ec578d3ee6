"""The tasks that the benchmark's workers run, and an app of them."""

from __future__ import annotations

import time

from ferryman import Ferryman, Settings

__all__ = ["NOOP", "PAYLOAD", "STAMP", "make_app"]

NOOP = "bench.noop"
STAMP = "bench.stamp"

PAYLOAD = "x" * 88
"""Makes 100 bytes of encoded arguments."""


def noop(payload: str) -> None:
    """Costs nothing, so that only Ferryman's own work is measured."""


def stamp() -> int:
    """When it was started, by the clock that all processes of a machine share."""
    return time.monotonic_ns()


def make_app(settings: Settings | None = None) -> Ferryman:
    """An app of these tasks. Without settings, those of the environment hold."""
    app = Ferryman(settings=settings)
    app.task(name=NOOP)(noop)
    app.task(name=STAMP)(stamp)
    return app
