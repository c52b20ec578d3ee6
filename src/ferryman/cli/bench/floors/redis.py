"""The floor of Redis: a hash of jobs, a line of those that wait and one of those that run, by bare commands in
pipelines."""

from __future__ import annotations

import time
from typing import Any

import redis

from ferryman.cli.bench.floors import ENTRY
from ferryman.io.redis.address import Address, parse_url
from ferryman.job import NewJob, new_ids

__all__ = ["RedisFloor", "RedisSender", "RedisSleeper"]


class RedisFloor:
    """One connection, one lane. Not thread-safe."""

    def __init__(self, url: str, job: NewJob) -> None:
        address = parse_url(url)
        self._job = job
        self._held: list[Any] = []
        self._seq = 0
        self._redis = _connect(address)
        self._jobs, self._ready, self._running, self._done = (
            f"{address.key}:floor:{name}" for name in ("jobs", "ready", "running", "done")
        )

    def close(self) -> None:
        self._redis.delete(self._jobs, self._ready, self._running, self._done)
        self._redis.close()

    def enqueue(self, count: int) -> int:
        ids = new_ids(count)
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.hset(self._jobs, mapping=dict.fromkeys(ids, self._job.args))
            pipeline.zadd(self._ready, {id_: self._seq + n for n, id_ in enumerate(ids)})
            pipeline.execute()
        self._seq += count
        return count

    def turn(self, count: int) -> int:
        now, done = time.time(), self._held
        with self._redis.pipeline(transaction=True) as pipeline:
            if done:
                pipeline.zrem(self._running, *done)
                pipeline.zadd(self._done, dict.fromkeys(done, now))
            pipeline.zpopmin(self._ready, count)
            popped = pipeline.execute()[-1]
        self._held = [id_ for id_, _ in popped]
        if self._held:
            with self._redis.pipeline(transaction=True) as pipeline:
                pipeline.zadd(self._running, dict.fromkeys(self._held, now))
                pipeline.hmget(self._jobs, self._held)
                pipeline.execute()
        return len(done) + len(self._held)


class RedisSender:
    """Stores and publishes in one round trip."""

    ear = None

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self._redis = _connect(address)
        self._ready, self._running, self._bell = _keys(address)

    def close(self) -> None:
        self._redis.delete(self._ready, self._running)
        self._redis.close()

    def store(self) -> None:
        with self._redis.pipeline(transaction=True) as pipeline:
            pipeline.lpush(self._ready, ENTRY)
            pipeline.publish(self._bell, b"")
            pipeline.execute()


class RedisSleeper:
    """Each ring tells of one entry, which moves to the list of those that run."""

    def __init__(self, url: str) -> None:
        address = parse_url(url)
        self._redis = _connect(address)
        self._ready, self._running, bell = _keys(address)
        self._ears = self._redis.pubsub()  # type: ignore[no-untyped-call]
        self._ears.subscribe(bell)
        self._ears.get_message(timeout=None)  # It is subscribed.

    def wait(self, seconds: float) -> bool:
        return self._ears.get_message(timeout=seconds) is not None

    def take(self) -> int:
        return int(self._redis.lmove(self._ready, self._running) is not None)


def _keys(address: Address) -> tuple[str, str, str]:
    return f"{address.key}:floor:ready", f"{address.key}:floor:running", f"{address.key}:floor:bell"


def _connect(address: Address) -> redis.Redis:
    return redis.Redis(
        host=address.node.host,
        port=address.node.port,
        db=address.db,
        username=address.username,
        password=address.password,
        ssl=address.tls is not None,
    )
