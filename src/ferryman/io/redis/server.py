"""A Redis server, or the cluster's node that has our keys, as one process reaches it."""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from typing import Protocol

from ferryman.clock import Clock, SystemClock
from ferryman.errors import FerrymanError, StoreUnavailable
from ferryman.io.redis.address import Node, parse_url
from ferryman.io.redis.failures import unreachable
from ferryman.io.redis.greeting import MovedError, greet, look_for_persistence
from ferryman.io.redis.link import Link, open_link
from ferryman.io.redis.requests import Call, Library
from ferryman.io.redis.talk import moved_to, pack

__all__ = ["Server", "restart_after_fork"]

_BACK_OFF_FIRST, _BACK_OFF_MOST = 0.02, 0.5
"""Seconds before the next try to connect, after the first failure and after many."""

_HOPS = 5
"""How often a cluster may send us on."""


class Server:
    """Connects for all who talk to one server in this process, and knows how to say things there. Thread-safe."""

    def __init__(self, url: str, clock: Clock, library: Library) -> None:
        self.address = parse_url(url)
        self._clock = None if isinstance(clock, SystemClock) else clock
        self._library = library
        self._node: Node | None = None
        """Where the cluster said that the keys are."""
        self._others: list[Node] = []
        """Further nodes of the cluster, to be asked when that one is gone."""
        self._warned = False
        self.start_anew()
        restart_after_fork(self)

    def start_anew(self) -> None:
        """After a fork, in the child."""
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try = 0.0

    def pack(self, call: Call) -> bytes:
        """A call as it goes over the wire. Raises TypeError for an argument that cannot."""
        now = "" if self._clock is None else str(self._clock.now())
        return pack(
            "FCALL" if call.writes else "FCALL_RO",
            f"{self._library.name}_{call.function}",
            1,
            self.address.key,
            now,
            *call.args,
        )

    # -- connecting ----------------------------------------------------------------------------------

    def connect(self) -> Link:
        """A connection that is ready for calls; after a failure or a loss, made only after a short while.

        That while grows with failures and is a matter of chance, so that a fleet does not come back as one man.
        Raises StoreUnavailable, or another FerrymanError that says why the server will not do.
        """
        time.sleep(max(0.0, self._next_try - time.monotonic()))
        try:
            link = self._connect_to_any()
        except FerrymanError:
            with self._lock:
                self._failures += 1
                self._delay(min(_BACK_OFF_MOST, _BACK_OFF_FIRST * 2**self._failures))
            raise
        with self._lock:
            self._failures = 0
        return link

    def note_loss(self) -> None:
        """A connection was lost: others were, too, and their owners will want to come back at once."""
        with self._lock:
            self._delay(_BACK_OFF_FIRST)

    def note_move(self, node: Node) -> None:
        """The keys are over there."""
        self._node = node

    def _delay(self, most: float) -> None:
        self._next_try = max(self._next_try, time.monotonic() + random.uniform(0, most))  # noqa: S311

    def _connect_to_any(self) -> Link:
        """Try the node that has the keys, or the one of the URL, or whatever else is known of the cluster."""
        nodes = dict.fromkeys([*([self._node] if self._node else []), self.address.node, *self._others])
        failure: StoreUnavailable | None = None
        for node in nodes:
            try:
                return self._connect_by_way_of(node)
            except StoreUnavailable as error:
                failure = failure or error
        self._node = None
        assert failure is not None
        raise failure

    def _connect_by_way_of(self, node: Node) -> Link:
        for _ in range(_HOPS):
            try:
                link = open_link(self.address, node, self.pack)
            except OSError as error:
                raise unreachable(node, error) from error
            try:
                self._greet(link)
            except OSError as error:
                link.close()
                raise unreachable(node, error) from error
            except MovedError as moved:
                link.close()
                node = self._node = moved_to(str(moved), node)
            except BaseException:
                link.close()
                raise
            else:
                return link
        raise StoreUnavailable(
            f"the nodes of the Redis cluster at {self.address.node} send us to one another; see CLUSTER NODES"
        )

    def _greet(self, link: Link) -> None:
        facts = greet(link, self.address, self._library)
        if not self._warned:
            self._warned = True
            look_for_persistence(link, facts)
        if facts.get("cluster_enabled") == "1":
            (slots,) = link.ask(("CLUSTER", "SLOTS"))
            if isinstance(slots, list):
                self._others = [
                    Node(host.decode(), port)
                    for _, _, *nodes in slots
                    for host, port, *_ in nodes
                    if host
                ]  # fmt: skip


# -- forks -------------------------------------------------------------------------------------------


class _Forkable(Protocol):
    def start_anew(self) -> None:
        """Forget, without a word to the server, what belongs to the parent: its connections, locks and threads."""
        ...


_forkables: weakref.WeakSet[_Forkable] = weakref.WeakSet()


def restart_after_fork(forkable: _Forkable) -> None:
    """Call its `start_anew` in forked children."""
    _forkables.add(forkable)


def _after_fork_in_child() -> None:
    for forkable in list(_forkables):
        forkable.start_anew()


os.register_at_fork(after_in_child=_after_fork_in_child)
