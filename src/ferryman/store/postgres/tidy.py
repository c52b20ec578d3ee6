"""Tidy: give back the room of dead rows in good time."""

from __future__ import annotations

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import Statement

__all__ = ["bloated"]


def bloated(schema: str) -> Requests[list[str]]:
    """Tables that want a vacuum now."""
    rows = yield Statement(f"SELECT {schema}.bloated()", ())
    return [name for (name,) in rows]
