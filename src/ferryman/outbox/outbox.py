"""Publishing from inside a transaction, and the relay that carries events to their broker."""

from __future__ import annotations

from typing import Any

import msgspec

from ferryman.app import App
from ferryman.context import Context
from ferryman.handle import JobHandle
from ferryman.outbox.publisher import Event, Publisher
from ferryman.policy.retry import Retry
from ferryman.task import Task

__all__ = ["Outbox"]

_FOR_EVER = 1_000_000
"""Attempts. An event waits until its broker is there again, however long that takes."""


class Outbox:
    """Events of an app. Workers of the app that serve its queue relay them.

    ```python
    outbox = Outbox(app, RedisStreams("redis://localhost"))

    with Session(engine) as session, session.begin():
        session.add(Payment(...))
        outbox.publish("payments", {"order": 7}, key="customer-3", using=session)
    ```

    An event is published at least once, after the commit, and in the order of commits among those of one topic and
    key. Consumers tell duplicates by the event's id, for example with `App.window`.

    As any job, an event whose run was cut short by three deaths of its executor or worker is with the dead letters
    until somebody replays it, and later ones of its key go ahead.
    """

    def __init__(self, app: App, publisher: Publisher, *, name: str = "outbox") -> None:
        """`name` is that of the queue, and of the task's last part, for apps with several outboxes."""
        self._publisher = publisher
        self._task = app.task(
            name=f"ferryman.{name}",
            queue=name,
            retry=Retry(max_attempts=_FOR_EVER, base=0.2, cap=60.0),
            timeout=30,
        )(self._relay)

    def publish(
        self, topic: str, value: Any, *, key: str | None = None, using: object = None
    ) -> JobHandle[None]:
        """Keep an event, to be published once `using`, your transaction, is committed; at once without one.

        `value` is written as JSON, unless it is bytes. The handle's id is the event's.
        """
        return self._ready(topic, key, using).enqueue(topic, key, _written(value))

    async def apublish(
        self, topic: str, value: Any, *, key: str | None = None, using: object = None
    ) -> JobHandle[None]:
        """`publish`, awaited."""
        return await self._ready(topic, key, using).aenqueue(topic, key, _written(value))

    def _ready(self, topic: str, key: str | None, using: object) -> Task[..., None]:
        if key is None:
            return self._task.options(using=using)
        return self._task.options(using=using, key=lambda **_: f"{topic}/{key}", ordered=True)

    def _relay(self, ctx: Context, topic: str, key: str | None, value: bytes) -> None:
        self._publisher.publish(Event(ctx.id, topic, key, value))


def _written(value: Any) -> bytes:
    return value if isinstance(value, bytes) else msgspec.json.encode(value)
