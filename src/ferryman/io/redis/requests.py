"""What an operation can ask of a Redis runner: one call of a function of the store's library.

On the wire a call is ``FCALL <library>_<function> 1 <prefix> <now> *args`` (``FCALL_RO`` if it does not write). So in
Lua ``KEYS[1]`` is the prefix, such as ``{ferryman}``, of which all keys are made; it is no key itself, and must never
become one. ``ARGV[1]`` is the time in ms of a test's clock, or '' for the server's own ``TIME``; the call's `args`
are ``ARGV[2]`` and so on.

A function that refuses answers the error ``FERRYMAN <Class> <message>``, which raises that class of `ferryman.errors`; a full
queue answers ``FERRYMAN QueueFull <max_size> <queue>``. (The server puts ``ERR`` before an error that a function returns as a
table, but not before one made by ``redis.error_reply``; either will do.)

An operation that writes makes its one call first and alone, since that call is the transaction; one that only reads
may make several. Of several operations in one transaction, the first calls go together as
``<library>_all``, whose ``ARGV[2]`` and on are, for each of them, the function, how many arguments it has, and these; it
answers an array with their answers in order. An error of one undoes all, and is the answer.

Two channels carry rings, whose content is of no interest. On ``<prefix>:bell``, workers hear that there may be work or an
order. On ``<prefix>:bell:done``, those who wait for results hear that a job has finished, however it ended: each call
that finished some publishes there once, without asking whether anybody listens, since a ring that nobody hears costs the
server about a microsecond, and any note of who listens could be wrong.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

__all__ = ["Call", "Joint", "Library"]


class Joint(Protocol):
    """How calls of callers who know nothing of one another are made as one, which costs the server less.

    If the joint call is refused, which must change nothing, each of them is made by itself.
    """

    def join(self, calls: Sequence[Call]) -> Call:
        """One call that does what these do, in order."""
        ...

    def part(self, calls: Sequence[Call], answer: Any) -> Sequence[Any]:
        """What each of them would have been answered."""
        ...


class Call(NamedTuple):
    """Call a function of the library; answered as the server did: bytes, int, None, or a list of such."""

    function: str
    """Without the library's name and underscore."""
    args: tuple[bytes | str | int, ...] = ()
    writes: bool = True
    """False for functions that carry the flag ``no-writes``."""
    joint: Joint | None = None
    """Calls with the same joint, none of them part of a transaction of several operations, may be made as one."""


class Library(NamedTuple):
    """Functions to be loaded into the server, by whoever first finds them missing or outdated."""

    name: str
    """Prefix of its functions' names. Another name for what old and new processes could not both use."""
    revision: int
    """Grows with each release that changes the text: a library is never replaced by an older one."""
    code: str
    """Lua, from ``#!lua name=<name>`` on."""

    @property
    def mark(self) -> str:
        """What `<name>_mark` answers, which tells what is loaded: the revision, and a digest of the text."""
        return f"{self.revision} {hashlib.sha256(self.code.encode()).hexdigest()[:16]}"

    @property
    def text(self) -> str:
        """The code, and the function that tells its mark."""
        return (
            f"{self.code}\n"
            f"redis.register_function{{function_name='{self.name}_mark',"
            f" callback=function() return '{self.mark}' end, flags={{'no-writes', 'allow-oom', 'allow-stale'}}}}\n"
        )
