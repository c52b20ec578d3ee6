"""A payment service that charges once, whatever is killed or delivered again: PostgreSQL, and events to Redis streams.

    $ python examples/p8_payments.py postgresql://localhost/shop redis://localhost:6379
    [Worker 12345] Processing order-123 (idempotency_key=payment:order-123:99.99)
    [Worker 12345] Charged 99.99 as ch_4e1f7a
    kill -9 12345, after the charge and before the commit: 0 charges in the database
    [Worker 12351] Processing order-123 (idempotency_key=payment:order-123:99.99), attempt 2
    [Worker 12351] Charged 99.99 as ch_b0c552
    [Worker 12351] Result: transaction ch_b0c552 created
    [Outbox] Published payment.completed
    The same job is delivered again
    [Worker 12351] Processing order-123 (idempotency_key=payment:order-123:99.99)
    [Worker 12351] DUPLICATE DETECTED: returning the cached result
    [Worker 12351] Result: transaction ch_b0c552 (cached)
    The customer presses the button again
    … once more DUPLICATE, and the cached result …
    [Mail] Receipt sent for ch_b0c552
    The stream is read again
    [Mail] Event 0199b3c5… was seen before
    $ psql -c "SELECT * FROM charge"
    order-123 | 99.99 | ch_b0c552
    $ psql -c "SELECT key, expires FROM kv"
    once:payment:order-123:99.99 | 2026-01-22 10:30
    $ redis-cli XRANGE shop_1f3a:payment.completed - +
    {"order":"order-123","transaction":"ch_b0c552"}
    1 charge, 1 idempotency key, 1 event after the window

Three things make it so. The charge, its key, its event and the end of the job are one transaction. Who delivers again
finds the key. Who reads events leaves out what the window has seen.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import redis

from ferryman import Ferryman, State, Transaction
from ferryman.outbox import Event, Outbox, RedisStreams

# The workers import this file as well, and are told which servers and schema it is.
POSTGRES, REDIS = (
    sys.argv[1:3]
    if len(sys.argv) > 2
    else (
        os.environ.get("SHOP_POSTGRES", "postgresql://localhost/shop"),
        os.environ.get("SHOP_REDIS", "redis://localhost:6379"),
    )
)
SCHEMA = os.environ.get("SHOP_SCHEMA") or f"shop_{secrets.token_hex(2)}"
STREAM = f"{SCHEMA}:payment.completed"
app = Ferryman(f"{POSTGRES}{'&' if '?' in POSTGRES else '?'}schema={SCHEMA}")


class Announced:
    """A publisher that tells what it does."""

    def __init__(self, url: str) -> None:
        self._streams = RedisStreams(url, prefix=f"{SCHEMA}:")

    def publish(self, event: Event) -> None:
        self._streams.publish(event)
        say(f"[Outbox] Published {event.topic}")


outbox = Outbox(app, Announced(REDIS))


# -- the service -----------------------------------------------------------------------------------


@app.task(queue="payments")
def pay(tx: Transaction, order: str, amount: str) -> str:
    me, key = f"[Worker {os.getppid()}]", f"payment:{order}:{amount}"
    again = f", attempt {tx.attempt}" if tx.attempt > 1 else ""
    say(f"{me} Processing {order} (idempotency_key={key}){again}")
    payment = app.once(key, lambda: charge(tx, order, amount), ttl=7 * 86_400, using=tx.connection)
    if payment.duplicate:
        say(f"{me} DUPLICATE DETECTED: returning the cached result")
        say(f"{me} Result: transaction {payment.value} (cached)")
    else:
        event = {"order": order, "transaction": payment.value}
        outbox.publish("payment.completed", event, key=order, using=tx.connection)
        say(f"{me} Result: transaction {payment.value} created")
    return payment.value


def charge(tx: Transaction, order: str, amount: str) -> str:
    transaction = f"ch_{secrets.token_hex(3)}"
    tx.connection.execute(f"INSERT INTO {SCHEMA}.charge VALUES (%s, %s, %s)", (order, amount, transaction))
    say(f"[Worker {os.getppid()}] Charged {amount} as {transaction}")
    if tx.attempt == 1:
        # Time enough to be killed in.
        tx.progress(0.5, "charged")
        time.sleep(30)
    return transaction


def send_receipts() -> int:
    """What another service does with the events; answers how many of them were new."""
    window = app.window("receipts", seconds=86_400)
    new = 0
    for event in events():
        with psycopg.connect(POSTGRES) as connection:
            if window.first(event["id"], using=connection):
                new += 1
                say(f"[Mail] Receipt sent for {json.loads(event['value'])['transaction']}")
            else:
                say(f"[Mail] Event {event['id'][:8]}… was seen before")
    return new


# -- the story -------------------------------------------------------------------------------------


def main() -> None:
    workers: list[subprocess.Popen[bytes]] = []
    try:
        job = pay.enqueue("order-123", amount="99.99")
        query(f"CREATE TABLE {SCHEMA}.charge (order_id text, amount numeric, transaction text)")
        workers.append(start_worker())
        wait_until(lambda: job.record().progress)
        kill(workers[0])
        workers.append(start_worker())
        job.result(timeout=20)
        wait_until(lambda: events() and is_quiet())
        say("The same job is delivered again")
        job.replay()
        job.result(timeout=20)
        say("The customer presses the button again")
        pay.enqueue("order-123", amount="99.99").result(timeout=20)
        wait_until(is_quiet)
        new = send_receipts()
        say("The stream is read again")
        new += send_receipts()
        show(new)
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
        clean_up()


def start_worker() -> subprocess.Popen[bytes]:
    """What ``ferryman worker p8_payments:app`` in another terminal would do."""
    program = Path(sys.executable).with_name("ferryman")
    options = ["--concurrency", "2", "--executors", "1", "--log-level", "ERROR"]
    return subprocess.Popen(
        [program, "worker", f"{__file__}:app", *options],
        env={**os.environ, "SHOP_POSTGRES": POSTGRES, "SHOP_REDIS": REDIS, "SHOP_SCHEMA": SCHEMA},
        start_new_session=True,
    )


def kill(worker: subprocess.Popen[bytes]) -> None:
    """The supervisor and its executor at once."""
    os.killpg(worker.pid, signal.SIGKILL)
    worker.wait()
    charges = query(f"SELECT * FROM {SCHEMA}.charge")
    say(
        f"kill -9 {worker.pid}, after the charge and before the commit: {len(charges)} charges in the database"
    )


def is_quiet() -> bool:
    """Whether all jobs are done, those of the outbox too."""
    lanes = app.store.runner().run(app.store.lanes())
    return not any(
        count for lane in lanes for state, count in lane.counts.items() if state != State.SUCCEEDED
    )


def show(new: int) -> None:
    say('$ psql -c "SELECT * FROM charge"')
    charges = query(f"SELECT * FROM {SCHEMA}.charge")
    say_rows(charges)
    say('$ psql -c "SELECT key, expires FROM kv"')
    keys = query(
        f"SELECT key, to_char(to_timestamp(until / 1000), 'YYYY-MM-DD HH24:MI') FROM {SCHEMA}.kv"
        " WHERE key LIKE 'once:%'"
    )
    say_rows(keys)
    say(f"$ redis-cli XRANGE {STREAM} - +")
    say_rows([(event["value"],) for event in events()])
    say(f"{len(charges)} charge, {len(keys)} idempotency key, {new} event after the window")


def events() -> list[dict[str, str]]:
    with redis.Redis.from_url(REDIS, decode_responses=True) as client:
        entries: Any = client.xrange(STREAM)
        return [fields for _, fields in entries]


def query(text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(POSTGRES) as connection:
        cursor = connection.execute(text)
        return cursor.fetchall() if cursor.description else []


def clean_up() -> None:
    app.close()
    query(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
    with redis.Redis.from_url(REDIS) as client:
        client.delete(STREAM)


def wait_until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    give_up = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > give_up:
            raise SystemExit("this takes too long; is the machine very busy?")
        time.sleep(0.02)


def say_rows(rows: list[tuple[Any, ...]]) -> None:
    for row in rows:
        say(" | ".join(map(str, row)))


def say(line: str) -> None:
    """As one write, so that lines of several processes do not mix."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
