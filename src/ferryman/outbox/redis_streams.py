"""Events as entries of Redis streams, one stream for each topic."""

from __future__ import annotations

import threading
from typing import Any

from ferryman.errors import ConfigError, MissingExtra
from ferryman.io.url import shown
from ferryman.outbox.publisher import Event

__all__ = ["RedisStreams"]


class RedisStreams:
    """A `Publisher`. An entry has the fields ``id``, ``key`` (if there is one) and ``value``."""

    def __init__(self, url: str, *, prefix: str = "", max_length: int | None = 1_000_000) -> None:
        """`prefix` is put before a topic to name its stream, which keeps about the last `max_length` entries (all, if
        None)."""
        self._url = url
        self._prefix = prefix
        self._max_length = max_length
        self._opening = threading.Lock()
        self._client: Any = None

    def publish(self, event: Event) -> None:
        """Append it to its stream. Raises redis-py's errors."""
        fields: dict[Any, Any] = {"id": event.id, "value": event.value}
        if event.key is not None:
            fields["key"] = event.key
        self._open().xadd(self._prefix + event.topic, fields, maxlen=self._max_length, approximate=True)

    def _open(self) -> Any:
        """redis-py's client, which is thread-safe and survives a fork."""
        with self._opening:
            if self._client is None:
                try:
                    import redis
                except ImportError as error:
                    raise MissingExtra(
                        "publishing to Redis streams needs redis-py; install it with: pip install 'ferryman[redis]'"
                    ) from error
                self._client = self._connect(redis)
            return self._client

    def _connect(self, redis: Any) -> Any:
        try:
            return redis.Redis.from_url(self._url, socket_timeout=10)
        except ValueError:
            # What redis-py says of it quotes from it.
            raise ConfigError(
                f"the URL {shown(self._url)!r} of RedisStreams makes no sense to redis-py; write "
                "redis://user:password@host:6379/0, with special characters of the password as %XX"
            ) from None
