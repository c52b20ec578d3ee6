"""The transactional outbox: events that are published if, and only if, the transaction that wrote them is committed.

There is no table and no daemon of its own: an event is a job of the store, its relay is a task, order per key is an
ordered key. So retries, dead letters, history and the command line are those of jobs. Start with `outbox.py`; where
events go to is a `Publisher` (`publisher.py`).
"""

from ferryman.outbox.outbox import Outbox
from ferryman.outbox.publisher import Event, Publisher
from ferryman.outbox.redis_streams import RedisStreams

__all__ = ["Event", "Outbox", "Publisher", "RedisStreams"]
