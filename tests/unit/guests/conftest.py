"""Fixtures: a store, and a customer with a connection to the same database and a table of its own there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ferryman import Ferryman, JobNotFound
from ferryman.handle import JobHandle
from ferryman.io.operation import Procedure
from ferryman.task import Task

from .customers import POSTGRES, SQLITE, Customer, Place
from .places import postgres_place, sqlite_place


@pytest.fixture(
    params=[*(("sqlite", kind) for kind in SQLITE), *(("postgresql", kind) for kind in POSTGRES)],
    ids=lambda param: f"{param[0]}-{param[1].__name__}",
)
def _pair(request: pytest.FixtureRequest) -> tuple[str, type[Customer]]:
    pair: tuple[str, type[Customer]] = request.param
    return pair


@pytest.fixture
def place(_pair: tuple[str, type[Customer]], tmp_path: Path) -> Iterator[Place]:
    with (sqlite_place if _pair[0] == "sqlite" else postgres_place)(tmp_path) as place:
        yield place


@pytest.fixture
def customer(_pair: tuple[str, type[Customer]]) -> Customer:
    """Not opened yet: that belongs into its event loop."""
    return _pair[1]()


@pytest.fixture
def app(place: Place) -> Iterator[Ferryman]:
    app = Ferryman(place.url)
    app.perform(_look(app))
    yield app
    app.close()


def _look(app: Ferryman) -> Procedure[None]:
    """Have the tables made before the customer comes."""
    yield app.store.queues()


@pytest.fixture
def add(app: Ferryman) -> Task[..., Any]:
    @app.task
    def add(a: int, b: int = 0) -> int:
        return a + b

    return add


def is_stored(handle: JobHandle[Any]) -> bool:
    """Whether the store has the job, as everybody else sees it."""
    try:
        handle.status()
    except JobNotFound:
        return False
    return True
