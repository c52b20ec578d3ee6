"""What the benchmark's worker processes load: ``ferryman worker ferryman.cli.bench.served:app``."""

from __future__ import annotations

from ferryman.cli.bench.tasks import make_app

__all__ = ["app"]

app = make_app()
