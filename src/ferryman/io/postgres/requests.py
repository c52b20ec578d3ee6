"""What an operation can ask of a PostgreSQL runner: statements, and what is filled into them."""

from __future__ import annotations

import enum
from collections.abc import Hashable, Sequence
from typing import Any, Final, NamedTuple, Protocol

__all__ = ["GATE", "NOW", "OWN", "Gap", "Joint", "Statement", "filled"]


class Gap(enum.Enum):
    """A place among the parameters that whoever performs the statement fills in."""

    NOW = "now"
    GATE = "gate"
    OWN = "own"


NOW: Final = Gap.NOW
"""The time of a clock that tests can move, or None: then the server's own time counts. Cast it: ``%s::bigint``."""

GATE: Final = Gap.GATE
"""False; and True for all statements of a transaction that is performed again because one of them raised the
SQLSTATE ``FY001``. Cast it: ``%s::boolean``."""

OWN: Final = Gap.OWN
"""Whether it is performed on a connection of ours, for which others wait; False inside a user's transaction. Cast it:
``%s::boolean``."""


class Joint(Hashable, Protocol):
    """How statements of callers who know nothing of one another are made one, which costs the server less.

    If that fails, as it does when one of them would, each of them is performed by itself.
    """

    def join(self, statements: Sequence[Statement]) -> Statement | None:
        """One statement that does what these do, in order; None if these cannot be made one."""
        ...

    def part(
        self, statements: Sequence[Statement], rows: list[tuple[Any, ...]]
    ) -> list[list[tuple[Any, ...]]]:
        """What each of them would have been answered."""
        ...


class Statement(NamedTuple):
    """One statement; answered with the list of its rows, each a tuple.

    A parameter stands as ``%s`` with its cast (``%s::uuid[]``), so that every driver sends it in the same way. The
    text holds no other ``%``, and names its schema. It is a transaction of its own, or a part of a larger one: it
    neither begins nor ends one.

    SQLSTATEs of Ferryman's own that it may raise are in `ferryman.io.postgres.failures`.
    """

    text: str
    params: tuple[Any, ...] = ()
    joint: Joint | None = None
    """Statements with equal joints, each the only one of its operation's transaction, may be made one."""


def filled(
    statement: Statement, now: int | None, *, gate: bool = False, own: bool = False
) -> tuple[Any, ...]:
    """The parameters as they are to be sent."""
    gaps = {NOW: now, GATE: gate, OWN: own}
    return tuple([param if type(param) is not Gap else gaps[param] for param in statement.params])
