"""The Redis and the PostgreSQL server that all tests of a run share.

``scripts/services run`` starts them around a command and says where they are in the environment. Whoever runs bare
pytest gets servers for that one process, when the first test asks for them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
from collections.abc import Iterator

from tests.services.postgres import TEMPLATE, postgres_server, template
from tests.services.programs import ENVIRONMENT
from tests.services.redis import redis_server
from tests.services.server import Server

__all__ = ["POSTGRES_URL", "REDIS_URL", "postgres_url", "redis_url", "shared_servers"]

REDIS_URL = "FERRYMAN_TEST_REDIS"
POSTGRES_URL = "FERRYMAN_TEST_POSTGRES"


@functools.cache
def redis_url() -> str:
    """Where the shared Redis server is."""
    return ENVIRONMENT.get(REDIS_URL) or _until_exit(redis_server())


@functools.cache
def postgres_url() -> str:
    """Where the shared PostgreSQL server is."""
    return ENVIRONMENT.get(POSTGRES_URL) or _until_exit(_shared_postgres())


@contextlib.contextmanager
def shared_servers() -> Iterator[dict[str, str]]:
    """Both servers, and what the environment of those who share them shall say."""
    with redis_server() as redis, _shared_postgres() as postgres:
        yield {REDIS_URL: redis.url, POSTGRES_URL: postgres.url, TEMPLATE: str(template())}


def _shared_postgres() -> contextlib.AbstractContextManager[Server]:
    # Who empties a table waits no longer than this for an autovacuum to give way.
    return postgres_server(deadlock_timeout="50ms")


def _until_exit(starting: contextlib.AbstractContextManager[Server]) -> str:
    """Start a server that ends with this process, and not with its forks."""
    owner, stack = os.getpid(), contextlib.ExitStack()
    server = stack.enter_context(starting)
    atexit.register(lambda: stack.close() if os.getpid() == owner else None)
    return server.url
