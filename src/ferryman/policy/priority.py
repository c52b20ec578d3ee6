"""Which lanes to claim from: strictly by priority, and by turns among queues of the same priority."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from ferryman.job import MAX_PRIORITY

__all__ = ["strict_plan"]

Lane = tuple[str, int]
"""A queue and a priority."""


def strict_plan(lanes: Iterable[Lane], limit: int, turn: int) -> list[tuple[Lane, int]]:
    """A plan for a claim of `limit` jobs: lanes in the order in which to claim, each with a count.

    No lane of a lower priority is served while a higher one has jobs. Lanes of one priority first get an
    equal share each, then what the others left; `turn`, which should grow, says who goes first.
    """
    ordered = sorted(lanes, key=lambda lane: (MAX_PRIORITY - lane[1], lane[0]))
    plan: list[tuple[Lane, int]] = []
    for _, group in groupby(ordered, key=lambda lane: lane[1]):
        level = _rotated(list(group), turn)
        if len(level) > 1:
            equal = -(-limit // len(level))
            plan += [(lane, equal) for lane in level]
        plan += [(lane, limit) for lane in level]
    return plan


def _rotated(lanes: Sequence[Lane], turn: int) -> list[Lane]:
    first = turn % len(lanes)
    return [*lanes[first:], *lanes[:first]]
