"""A harbour for each test: nothing that a test starts outlives it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.harness import Harbour


@pytest.fixture
def harbour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Harbour]:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FERRYMAN_")]:
        monkeypatch.delenv(name)
    harbour = Harbour(tmp_path)
    monkeypatch.setenv("FERRYMAN_URL", harbour.url)
    modules = set(sys.modules)
    yield harbour
    harbour.close()
    harbour.check()
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__file__", None) == str(tmp_path / f"{name}.py"):
            del sys.modules[name]
