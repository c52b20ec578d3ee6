"""What several files of tests find in their hands."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.services import places


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    """Of a store on the shared PostgreSQL server, for files that have no other in mind."""
    yield places.postgres(tmp_path)
    places.leave_postgres(tmp_path)


@pytest.fixture
def admin(url: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection to the schema of that store."""
    server, _, schema = url.partition("?schema=")
    with psycopg.connect(server, autocommit=True, options=f"-c search_path={schema}") as connection:
        yield connection


@pytest.fixture
def bare_collector() -> Iterator[None]:
    """Without the callbacks that hypothesis hangs into the garbage collector: a stop that arrives in one is lost."""
    callbacks = gc.callbacks[:]
    gc.callbacks.clear()
    yield
    gc.callbacks[:] = callbacks
