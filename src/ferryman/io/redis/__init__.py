"""Connections to a Redis server, and the two runners that perform a Redis store's operations.

What a store may ask for, and what its library of functions must keep to, is in `requests.py`: start there. Nothing here
knows what the functions do.

`server.py` connects (`address.py` is the URL, `greeting.py` what is said first, `link.py` the socket). `talk.py` is what
is said then, without sockets, and `course.py` how an operation goes on with the answers; `runner.py` and
`async_runner.py` move the bytes. `bell.py` and `listener.py` are how workers and waiting producers are woken.
"""

from ferryman.io.redis.async_runner import AsyncRedisRunner
from ferryman.io.redis.bell import Doorbell, RedisWaker
from ferryman.io.redis.requests import Call, Library
from ferryman.io.redis.runner import RedisRunner
from ferryman.io.redis.server import Server

__all__ = ["AsyncRedisRunner", "Call", "Doorbell", "Library", "RedisRunner", "RedisWaker", "Server"]
