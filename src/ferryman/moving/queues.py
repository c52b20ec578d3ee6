"""Settings and pauses of queues, on their way to another store."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ferryman.store.port import Store
from ferryman.store.records import QueueSettings

__all__ = ["hand_over"]


def hand_over(settings: Sequence[QueueSettings], paused: Collection[str], there: Store) -> None:
    """Give a store the settings of queues for which it has none of its own, and pause those of which it never had jobs:
    whether the others run is for those to say who use it."""
    runner = there.runner()
    known = {queue.settings.name: queue.settings for queue in runner.run(there.queues())}
    told = [
        queue
        for queue in settings
        if not _is_usual(queue) and _is_usual(known.get(queue.name, _usual(queue)))
    ]
    if told:
        runner.run(there.declare(told))
    stopped = set(paused) - {lane.queue for lane in runner.run(there.lanes())}
    if stopped:
        runner.run(there.pause(sorted(stopped), True))


def _is_usual(settings: QueueSettings) -> bool:
    return settings == _usual(settings)


def _usual(settings: QueueSettings) -> QueueSettings:
    return QueueSettings(name=settings.name)
