"""One connection to a Redis server."""

from __future__ import annotations

import select
import socket
import ssl
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from ferryman.io.redis.address import Address, Node
from ferryman.io.redis.requests import Call
from ferryman.io.redis.talk import Talk, pack

__all__ = ["ANSWER_SECONDS", "CONNECT_SECONDS", "Link", "open_link"]

CONNECT_SECONDS = 5.0
"""How long a connection may take to be made."""

ANSWER_SECONDS = 10.0
"""How long an answer may take, before the connection counts as lost."""

_AT_ONCE = 1 << 18
"""Bytes received at once."""

_SILENCE_SECONDS = 30
"""After so long without a byte, the kernel asks whether the other end is still there."""


class Link:
    """A socket and what is said over it; blocking, unless `sock` is told otherwise. Not thread-safe."""

    __slots__ = ("__weakref__", "node", "sock", "talk")

    def __init__(self, sock: socket.socket, node: Node, talk: Talk) -> None:
        self.sock = sock
        self.node = node
        self.talk = talk
        # Event loops are closed without a word to those who had connections there.
        weakref.finalize(self, sock.close)

    def ask(self, *commands: Sequence[bytes | str | int]) -> list[Any]:
        """Send commands in one go; their answers, errors among them. For greetings, while nothing else is said.

        Raises OSError.
        """
        self.sock.sendall(b"".join(pack(*command) for command in commands))
        reader = hiredis.Reader()
        answers: list[Any] = []
        try:
            while len(answers) < len(commands):
                reader.feed(self._receive())
                while (answer := reader.gets()) is not False:
                    answers.append(answer)
        except hiredis.ProtocolError as error:
            raise ConnectionError(f"what answers there is no Redis server: {error}") from error
        return answers

    def send(self, data: bytes) -> bool:
        """Send all. False if not one byte could be sent; raises OSError if some were."""
        try:
            sent = self.sock.send(data)
        except TimeoutError:
            raise
        except OSError:
            return False
        if sent < len(data):
            self.sock.sendall(memoryview(data)[sent:])
        return True

    def hear(self) -> None:
        """Wait for some bytes, and take them in. Raises OSError."""
        self.talk.hear(self._receive())

    def is_gone(self) -> bool:
        """Whether the other end has closed, or says something unasked. To be asked while no answer is due."""
        try:
            if not _is_readable(self.sock):
                return False
            if isinstance(self.sock, ssl.SSLSocket):
                # TLS has things of its own to say.
                timeout = self.sock.gettimeout()
                self.sock.setblocking(False)
                try:
                    return self.sock.recv(1) is not None
                except ssl.SSLWantReadError:
                    return False
                finally:
                    self.sock.settimeout(timeout)
        except (OSError, ValueError):
            return True
        return True

    def close(self) -> None:
        """Close this process's end; after a fork, the other process's is left alone."""
        self.sock.close()

    def _receive(self) -> bytes:
        data = self.sock.recv(_AT_ONCE)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        return data


def open_link(address: Address, node: Node, pack_call: Callable[[Call], bytes]) -> Link:
    """Connect, and no more. Raises OSError."""
    if node.port:
        sock = socket.create_connection((node.host, node.port), timeout=CONNECT_SECONDS)
    else:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if node.port:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if hasattr(socket, "TCP_KEEPIDLE"):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _SILENCE_SECONDS)
        else:
            sock.settimeout(CONNECT_SECONDS)
            sock.connect(node.host)
        if address.tls is not None and node.port:
            sock = address.tls.wrap_socket(sock, server_hostname=node.host)
        sock.settimeout(ANSWER_SECONDS)
    except BaseException:
        sock.close()
        raise
    return Link(sock, node, Talk(address, node, pack_call))


def _is_readable(sock: socket.socket) -> bool:
    # poll, unlike select, can do descriptors above 1023.
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
