"""Publishing from inside a transaction, and the relay that carries events to their broker."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from ferryman.app import App
from ferryman.context import Context, SoftTimeout
from ferryman.errors import PayloadError
from ferryman.handle import JobHandle
from ferryman.job import RetryIn, Signal
from ferryman.outbox.publisher import Event, Publisher
from ferryman.policy.retry import Retry, backoff_delay, retry_after
from ferryman.task import Task

__all__ = ["Outbox"]

_AGAIN = Retry(max_attempts=1_000_000, base=0.2, cap=60.0, judge=lambda _: "retry")
"""An event waits until its broker takes it, however long that lasts and whatever the broker says meanwhile."""

_LONGEST_REASON = 300
"""Characters of a broker's error that are kept each time."""


class Outbox:
    """Events of an app. Workers of the app that serve its queue relay them.

    ```python
    outbox = Outbox(app, RedisStreams("redis://localhost"))

    with Session(engine) as session, session.begin():
        session.add(Payment(...))
        outbox.publish("payments", {"order": 7}, key="customer-3", using=session)
    ```

    An event is published at least once, after the commit. Consumers tell duplicates by its id, for example with
    `App.window`. Among those of one topic and key, one that is published after the commit of another comes after it.
    Of two transactions that are open at the same time, either may be first: let them change what they share, such as a
    row, before they publish. Then one waits for the other, and the order is that of their commits.

    As any job, an event whose run was cut short by three deaths of its executor or worker is with the dead letters
    until somebody replays it, and later ones of its key go ahead.
    """

    def __init__(self, app: App, publisher: Publisher, *, name: str = "outbox") -> None:
        """`name` is that of the queue, and of the task's last part, for apps with several outboxes."""
        self._publisher = publisher
        self._task = app.task(
            name=f"ferryman.{name}",
            queue=name,
            retry=_AGAIN,
            timeout=30,
        )(self._relay)

    def publish(
        self, topic: str, value: Any, *, key: str | None = None, using: object = None
    ) -> JobHandle[None]:
        """Keep an event, to be published once `using`, your transaction, is committed; at once without one.

        `value` is written as JSON, unless it is bytes; PayloadError is raised if it cannot be. The handle's id is the
        event's.
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

    def _relay(self, ctx: Context, topic: str, key: str | None, value: bytes) -> Any:
        try:
            self._publisher.publish(Event(ctx.id, topic, key, value))
        except Signal:
            raise
        except (Exception, SoftTimeout) as error:
            # The first failure is kept with its traceback. Those after it may be thousands, of all events at once, so they are
            # kept with a line each.
            if ctx.attempt == 1:
                raise
            luck = random.random()  # noqa: S311
            # Many a broker says "after 0 seconds" when it is overloaded.
            delay = max(retry_after(error) or 0.0, backoff_delay(_AGAIN, ctx.attempt, luck))
            return RetryIn(delay, f"{type(error).__qualname__}: {error}"[:_LONGEST_REASON])
        return None


def _written(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return msgspec.json.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise PayloadError(
            f"the event cannot be written as JSON: {error}; publish bytes of your own"
        ) from error
