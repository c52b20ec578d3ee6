"""Redis or Valkey servers, durable to the last write unless they are told otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from tests.services.programs import REDIS
from tests.services.server import Server, answers, free_port, new_folder

__all__ = ["redis_server"]

DURABLE = {"appendonly": "yes", "appendfsync": "always", "save": ""}


@contextlib.contextmanager
def redis_server(**options: str) -> Iterator[Server]:
    """A server. Options are those of ``redis.conf``, with an underscore for each hyphen."""
    program, port, folder = REDIS.find(), free_port(), new_folder("redis")

    def command(options: Mapping[str, str]) -> list[str]:
        # Without the name of a file, no configuration of the system is read.
        return [
            str(program),
            *_arguments({"port": str(port), "bind": "127.0.0.1", "dir": str(folder), **options}),
        ]

    server = Server(
        f"redis://127.0.0.1:{port}/0",
        port,
        folder,
        command=command,
        ready=lambda server: answers(port, b"PING\r\n", b"+PONG") or _asks_for_password(server),
        options={**DURABLE, **options},
    )
    try:
        server.start()
        yield server
    finally:
        server.close()


def _asks_for_password(server: Server) -> bool:
    return answers(server.port, b"PING\r\n", b"-NOAUTH")


def _arguments(options: Mapping[str, str]) -> Iterator[str]:
    for name, value in options.items():
        yield f"--{name.replace('_', '-')}"
        # Some options take several values, as the rules of a user of an ACL do.
        yield from value.split() or [""]
