"""A conversation with a Redis server: what was said, and who waits for which answer. No sockets.

Answers come in the order of the calls. A call is *delivered* its answer or an error, or comes back *again* if it
certainly was not performed (the function was missing, the keys are on another node), or if it only read. Calls that
can be joined go out as one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import hiredis

from ferryman.errors import FerrymanError
from ferryman.io.redis.address import Address, Node
from ferryman.io.redis.failures import lost, refusal, twin, unconfirmed, unreachable
from ferryman.io.redis.requests import Call, Joint

__all__ = ["GROUP", "Talk", "Ticket", "moved_to", "pack"]

GROUP = 128
"""Calls sent together, or joined, at most, so that no one waits for a whole crowd."""

_TRIES = 3
"""How often a call is sent at most, before whatever keeps it from being performed is its answer."""

_CONFIRM_MS = 5_000
"""How long replicas may take."""


class Ticket(Protocol):
    """One call on its way."""

    call: Call
    packed: bytes | None
    """As it goes over the wire; None for one that may be joined, and then goes as a part of another."""
    tries: int
    """How often it was sent."""
    alone: bool
    """Not to be joined with others: that was refused."""

    def deliver(self, answer: Any) -> None:
        """Called once at most; after `fail`, which has no effect after this, not at all."""
        ...

    def fail(self, error: FerrymanError) -> None: ...


class _Joined:
    """Several calls on their way as one."""

    __slots__ = ("alone", "call", "packed", "parts", "tries")

    def __init__(self, parts: Sequence[Ticket], joint: Joint, pack_call: Callable[[Call], bytes]) -> None:
        self.parts = parts
        self.call = joint.join([part.call for part in parts])
        self.packed: bytes | None = pack_call(self.call)
        self.tries = max(part.tries for part in parts)
        self.alone = False

    def deliver(self, answer: Any) -> None:
        joint = self.parts[0].call.joint
        assert joint is not None
        answers = joint.part([part.call for part in self.parts], answer)
        for part, its_answer in zip(self.parts, answers, strict=True):
            part.deliver(its_answer)

    def fail(self, error: FerrymanError) -> None:
        for part in self.parts:
            part.fail(twin(error))


class _Confirmation:
    """The wait for replicas that follows a group: its writes are delivered when it is over."""

    __slots__ = ("answers",)

    def __init__(self) -> None:
        self.answers: list[tuple[Ticket, Any]] = []


class Talk:
    """Not thread-safe. Ends with its connection."""

    def __init__(self, address: Address, node: Node, pack_call: Callable[[Call], bytes]) -> None:
        self.again: list[Ticket] = []
        """What must be said anew; on another connection, if the talk is over."""
        self.moved_to: Node | None = None
        """Where the server says that the keys are."""
        self.over = False
        """Nothing new may be said here: wait for the answers that are due, then connect anew."""
        self._pack_call = pack_call
        self._address = address
        self._node = node
        self._reader = hiredis.Reader()
        self._due: deque[tuple[Ticket | None, _Confirmation | None]] = deque()
        """What answers will be for: a ticket, perhaps with the confirmation that it waits for; or a confirmation."""

    @property
    def idle(self) -> bool:
        """No answer is due."""
        return not self._due

    def say(self, tickets: Iterable[Ticket]) -> bytes:
        """The bytes to be sent for these."""
        packed: list[bytes] = []
        due: list[tuple[Ticket | None, _Confirmation | None]] = []
        confirmation: _Confirmation | None = None
        for ticket in self._join(tickets):
            packed.append(ticket.packed or self._pack_call(ticket.call))
            if ticket.call.writes and self._address.replicas:
                confirmation = confirmation or _Confirmation()
                due.append((ticket, confirmation))
            else:
                due.append((ticket, None))
        if confirmation is not None:
            packed.append(pack("WAIT", self._address.replicas, _CONFIRM_MS))
            due.append((None, confirmation))
        # Only now: if one of them cannot be packed, none is said, and no answer is due.
        self._due += due
        return b"".join(packed)

    def hear(self, data: bytes) -> None:
        """Take in what was received, and deliver what is complete. Raises ConnectionError for anything odd."""
        reader = self._reader
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                if not self._due:
                    # The server takes its leave, or it is none of Redis.
                    raise ConnectionError(f"the server said {answer!r} unasked")
                ticket, confirmation = self._due[0]
                if ticket is None:
                    assert confirmation is not None
                    self._confirm(confirmation, answer)
                elif type(answer) is hiredis.ReplyError:
                    self._refuse(ticket, str(answer))
                elif confirmation is not None:
                    confirmation.answers.append((ticket, answer))
                else:
                    ticket.deliver(answer)
                # Only now: an interrupt before this leaves a debt, which `lose` settles.
                self._due.popleft()
        except hiredis.ProtocolError as error:
            raise ConnectionError(f"what answers there is no Redis server: {error}") from error

    def lose(self, error: Exception) -> None:
        """The connection is gone: writes that were sent fail, since nobody knows; reads come back."""
        for ticket, confirmation in self._due:
            if ticket is None:
                assert confirmation is not None
                for waiting, _ in confirmation.answers:
                    waiting.fail(lost(self._node, error))
            elif ticket.call.writes or ticket.tries >= 2:
                ticket.fail(lost(self._node, error))
            else:
                self.again += _parts(ticket)
        self._due.clear()
        self.over = True

    def take_back(self) -> None:
        """Nothing of what was said has been sent: all of it comes back, unless that was so time and again."""
        for ticket, _ in self._due:
            if ticket is None:
                continue
            if ticket.tries < _TRIES:
                self.again += _parts(ticket)
            else:
                ticket.fail(unreachable(self._node, ConnectionResetError("it closes what it accepts")))
        self._due.clear()
        self.over = True

    def _join(self, tickets: Iterable[Ticket]) -> list[Ticket]:
        """Make one of those that can be joined, in the place of the first of them."""
        units: list[list[Ticket]] = []
        joining: dict[Joint, list[Ticket]] = {}
        for ticket in tickets:
            ticket.tries += 1
            joint = ticket.call.joint
            if joint is None or ticket.alone:
                units.append([ticket])
                continue
            unit = joining.get(joint)
            if unit is None or len(unit) >= GROUP:
                unit = joining[joint] = []
                units.append(unit)
            unit.append(ticket)
        return [self._unite(unit) for unit in units]

    def _unite(self, unit: Sequence[Ticket]) -> Ticket:
        joint = unit[0].call.joint
        return unit[0] if joint is None or len(unit) == 1 else _Joined(unit, joint, self._pack_call)

    def _refuse(self, ticket: Ticket, message: str) -> None:
        moved = message.startswith("MOVED ")
        if (moved or message.startswith("ERR Function not found")) and ticket.tries < _TRIES:
            if moved:
                self.moved_to = moved_to(message, self._node)
            self.again += _parts(ticket)
            self.over = True
            return
        if isinstance(ticket, _Joined) and message.startswith(("FERRYMAN ", "ERR ")):
            # Somebody's call is refused, and nobody knows whose.
            for part in ticket.parts:
                part.alone = True
                part.tries = 0
            self.again += ticket.parts
            return
        if message.startswith("READONLY"):
            # The primary was made a replica: its name may stand for another server by now.
            self.over = True
        ticket.fail(refusal(message, self._address, self._node))

    def _confirm(self, confirmation: _Confirmation, answer: Any) -> None:
        wanted = self._address.replicas
        for ticket, result in confirmation.answers:
            if type(answer) is hiredis.ReplyError:
                ticket.fail(refusal(str(answer), self._address, self._node))
            elif answer < wanted:
                ticket.fail(unconfirmed(wanted, answer))
            else:
                ticket.deliver(result)


def _parts(ticket: Ticket) -> Sequence[Ticket]:
    return ticket.parts if isinstance(ticket, _Joined) else (ticket,)


def pack(*words: bytes | str | int) -> bytes:
    """A command as it goes over the wire."""
    packed: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # Its stub means one word.
    return packed


def moved_to(message: str, node: Node) -> Node:
    """``MOVED 3999 127.0.0.1:6381``; a server that does not know its own name leaves the host out."""
    host, _, port = message.split()[2].rpartition(":")
    return Node(host.strip("[]") or node.host, int(port))
