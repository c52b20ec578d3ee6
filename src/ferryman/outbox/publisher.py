"""Where events go to."""

from __future__ import annotations

from typing import NamedTuple, Protocol

__all__ = ["Event", "Publisher"]


class Event(NamedTuple):
    """Something that happened, on its way to whoever wants to know."""

    id: str
    """The same each time that the event is published: consumers tell duplicates by it."""
    topic: str
    key: str | None
    """Events of the same topic and key arrive in order, as `Outbox` says."""
    value: bytes


class Publisher(Protocol):
    """A broker. Thread-safe. An event may be published more than once, since a worker can die between the broker's answer and its
    own note of it."""

    def publish(self, event: Event) -> None:
        """Hand the event over; once this returns, the broker has it.

        Any exception means: try again later, after a growing delay, or the error's own ``retry_after`` if that is longer. Only a raised
        `ferryman.Fail` makes a dead letter of the event. Have time limits: while this waits, it keeps a worker's
        thread, and after 30 s it is stopped.
        """
        ...
