"""A line of things in order, whose items are hints that may be out of date."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from heapq import heapify, heappop, heappush
from typing import Any

__all__ = ["Item", "Line", "is_current"]

Item = tuple[float, int, Any]
"""What it is ranked by, a number that tells equal ranks apart, and the thing itself."""


def is_current(item: Item) -> bool:
    """Whether the card still stands where this item says."""
    return item[2].spot is item


class Line:
    """Items by rank, then number. To take a thing out of the middle, make its item invalid: it is passed over
    when it comes to the front, and swept out when the line has doubled. So an item may also be there
    twice, and nothing here needs to be undone when a transaction is.

    Things mostly arrive in order: those go to the end of a queue, and only the others into a heap.
    """

    __slots__ = ("_in_order", "_is_valid", "_strays", "_sweep_at")

    def __init__(self, is_valid: Callable[[Item], bool] = is_current) -> None:
        self._is_valid = is_valid
        self._in_order: deque[Item] = deque()
        self._strays: list[Item] = []
        self._sweep_at = 64

    def push(self, item: Item) -> None:
        in_order = self._in_order
        if not in_order or in_order[-1] < item:
            in_order.append(item)
        else:
            heappush(self._strays, item)
        if len(in_order) + len(self._strays) > self._sweep_at:
            self._sweep()

    def head(self) -> Item | None:
        """The first valid item, which stays."""
        in_order, strays, is_valid = self._in_order, self._strays, self._is_valid
        while in_order and not is_valid(in_order[0]):
            in_order.popleft()
        while strays and not is_valid(strays[0]):
            heappop(strays)
        if strays and (not in_order or strays[0] < in_order[0]):
            return strays[0]
        return in_order[0] if in_order else None

    def take(self) -> Item | None:
        """The first valid item, which leaves."""
        in_order, strays = self._in_order, self._strays
        while in_order or strays:
            if strays and (not in_order or strays[0] < in_order[0]):
                item = heappop(strays)
            else:
                item = in_order.popleft()
            if self._is_valid(item):
                return item
        return None

    def take_until(self, rank: float, limit: int) -> Iterator[Item]:
        """Valid items of at most this rank, up to `limit`, each of which leaves as it is given."""
        for _ in range(limit):
            head = self.head()
            if head is None or head[0] > rank:
                return
            self.take()
            yield head

    def _sweep(self) -> None:
        self._in_order = deque(item for item in self._in_order if self._is_valid(item))
        self._strays = [item for item in self._strays if self._is_valid(item)]
        heapify(self._strays)
        self._sweep_at = 2 * (len(self._in_order) + len(self._strays)) + 64
