"""An operation on its course: which call it wants next, and at last its result. Without sockets or colour."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

from ferryman.errors import FerrymanError, StoreError
from ferryman.io.operation import Operation, Requests
from ferryman.io.redis.requests import Call

__all__ = ["Course", "begin", "begin_all", "check_reads"]


class Course:
    """One operation while it is performed."""

    __slots__ = ("_requests", "call", "result")

    def __init__(self, requests: Requests[Any]) -> None:
        self._requests = requests
        self.call: Call | None = None
        """What the operation asks for; None when it has ended."""
        self.result: Any = None
        self.send(None)

    def send(self, answer: Any) -> None:
        """Go on with the answer. Raises what the operation raises."""
        try:
            self.call = self._requests.send(answer)
        except StopIteration as stop:
            self.call, self.result = None, stop.value

    def throw(self, error: FerrymanError) -> None:
        """Go on with an error instead of the answer. Raises what the operation raises: that error, as a rule."""
        try:
            self.call = self._requests.throw(error)
        except StopIteration as stop:
            self.call, self.result = None, stop.value


def begin(operation: Operation[Any]) -> Course:
    """Find out the operation's first call. The time is the server's, so its body gets none."""
    return Course(operation.body(0))


def begin_all(operations: Sequence[Operation[Any]]) -> tuple[list[Course], Call | None]:
    """Begin several operations, and make one call of their first ones, so that they are one transaction.

    What they ask for afterwards can only be something to read.
    """
    courses = [begin(operation) for operation in operations]
    calls = [course.call for course in courses if course.call is not None]
    if not calls:
        return courses, None
    return courses, Call(
        "all", tuple(chain.from_iterable((call.function, len(call.args), *call.args) for call in calls))
    )


def check_reads(course: Course) -> Call:
    """The further call of one of several operations. Raises StoreError if it would write: it came too late."""
    call = course.call
    assert call is not None
    if call.writes:
        raise StoreError(f"{call.function} would write after its transaction has ended; perform it by itself")
    return call
