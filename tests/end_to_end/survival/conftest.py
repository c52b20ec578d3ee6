"""Servers of these tests' own, one of each kind for a file of tests, each test with a place of its own on it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.survival.site import Site, site_on
from tests.services.postgres import postgres_server
from tests.services.redis import redis_server
from tests.services.server import Server

SERVERS = {"redis": redis_server, "postgresql": postgres_server}


@pytest.fixture(scope="module", params=SERVERS)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A durable server that a test may stop, kill and start, if it leaves it as it was."""
    with SERVERS[request.param]() as server:
        yield server


@pytest.fixture
def site(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A line and a harbour on that server."""
    monkeypatch.chdir(tmp_path)
    with site_on(server, tmp_path) as site:
        monkeypatch.setenv("FERRYMAN_URL", site.harbour.place)
        yield site
    sys.modules.pop("tasks", None)
