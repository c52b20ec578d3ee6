"""The floor of Redis: a hash of jobs, a line of those that wait and one of those that run, by bare commands in
pipelines."""

from __future__ import annotations

import time
from typing import Any

import redis

from ferryman.io.redis.address import parse_url
from ferryman.job import NewJob, new_ids

__all__ = ["RedisFloor"]


class RedisFloor:
    """One connection, one lane. Not thread-safe."""

    def __init__(self, url: str, job: NewJob) -> None:
        address = parse_url(url)
        self._job = job
        self._held: list[Any] = []
        self._seq = 0
        self._redis = redis.Redis(
            host=address.node.host,
            port=address.node.port,
            db=address.db,
            username=address.username,
            password=address.password,
        )
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
