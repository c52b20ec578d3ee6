"""Fixtures: each test that asks for `ferry` runs on every store, and no test may leave counts wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings

from ferryman.clock import ManualClock

from .driver import Ferry, check_counts
from .stores import STORES, Candidate

_PATIENT = (HealthCheck.too_slow, HealthCheck.data_too_large)
settings.register_profile(
    "steady",
    derandomize=True,
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    print_blob=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=_PATIENT,
)
settings.register_profile(
    "wander",
    max_examples=1_000,
    stateful_step_count=60,
    deadline=None,
    print_blob=True,
    suppress_health_check=_PATIENT,
)
# ``steady`` tries the same examples each time and ends soon; HYPOTHESIS_PROFILE=wander looks for new ones, and
# takes minutes to make one that fails small.
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "steady"))


@pytest.fixture(params=STORES, ids=lambda candidate: candidate.name)
def candidate(request: pytest.FixtureRequest) -> Candidate:
    chosen: Candidate = request.param
    return chosen


@pytest.fixture
def ferry(candidate: Candidate, tmp_path: Path) -> Iterator[Ferry]:
    """An empty store and what it takes to drive it."""
    yield from _driven(candidate, tmp_path)


@pytest.fixture(params=[c for c in STORES if c.shared], ids=lambda candidate: candidate.name)
def shared_ferry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ferry]:
    """The same, for what only a store of several processes can promise."""
    yield from _driven(request.param, tmp_path)


def _driven(candidate: Candidate, folder: Path) -> Iterator[Ferry]:
    clock = ManualClock()
    store = candidate.open(folder, clock)
    try:
        yield Ferry(store, clock, lambda: candidate.open(folder, clock))
        check_counts(store)
    finally:
        store.close()
        candidate.clear(folder)
