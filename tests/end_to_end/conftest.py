"""A harbour for each test: nothing that a test starts outlives it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conformance.stores import Candidate
from tests.end_to_end.harness import Harbour


@pytest.fixture
def harbour(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Harbour]:
    """A harbour on the store of the test's parameter, or on a file of SQLite."""
    candidate: Candidate | None = getattr(request, "param", None)
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FERRYMAN_")]:
        monkeypatch.delenv(name)
    harbour = Harbour(tmp_path, candidate.url(tmp_path) if candidate else None)
    monkeypatch.setenv("FERRYMAN_URL", harbour.url)
    modules = set(sys.modules)
    yield harbour
    harbour.close()
    harbour.check()
    if candidate:
        candidate.clear(tmp_path)
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]
