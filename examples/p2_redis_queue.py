"""A queue on a Redis server: two worker processes, priorities, a delayed email, and the keys that tell the story.

    $ python examples/p2_redis_queue.py redis://localhost:6379
    [Worker 12345] Connected to redis://localhost:6379/0
    [Worker 12346] Connected to redis://localhost:6379/0
    [Worker 12345] Processing vip@example.com: Important (priority: 5)
    [Worker 12346] Processing user-1@example.com: Hello
    [Worker 12345] Completed vip@example.com in 120ms
    [Worker 12345] Processing user-2@example.com: Hello
    … and so on …
    [Worker 12346] Processing later@example.com: Soon (was delayed 600ms)
    [Worker 12346] Completed later@example.com in 121ms
    $ redis-cli --scan --pattern '{emails-1f3a}:*'
    {emails-1f3a}:all                 zset    7 entries
    {emails-1f3a}:job                 hash    7 entries
    {emails-1f3a}:scheduled           zset    1 entries
    {emails-1f3a}:succeeded           zset    6 entries
    …
    6 emails sent; 1 waits for tomorrow

The workers here live as long as the example. In production they run on: ``ferryman worker p2_redis_queue:app``.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import redis

from ferryman import Context, Ferryman, State

# The workers import this file as well, and are told which server and prefix it is.
SERVER = sys.argv[1] if len(sys.argv) > 1 else os.environ.get("EMAILS_SERVER", "redis://localhost:6379")
PREFIX = os.environ.get("EMAILS_PREFIX") or f"emails-{secrets.token_hex(2)}"
app = Ferryman(f"{SERVER.partition('?')[0]}?prefix={PREFIX}")


@app.task(queue="emails")
def send_email(ctx: Context, to: str, subject: str) -> str:
    me = f"[Worker {os.getppid()}]"
    urgent = ctx.job.ready_at == ctx.job.enqueued_at and to.startswith("vip")
    delay = ctx.job.ready_at - ctx.job.enqueued_at
    note = f" (was delayed {delay}ms)" if delay else " (priority: 5)" if urgent else ""
    say(f"{me} Processing {to}: {subject}{note}")
    began = time.monotonic()
    time.sleep(0.12)
    say(f"{me} Completed {to} in {(time.monotonic() - began) * 1000:.0f}ms")
    return f"{to} has {subject!r}"


def main() -> None:
    workers = [start_worker(), start_worker()]
    try:
        wait_for_workers(len(workers))
        # All at once: so the urgent one goes first, though it is the last in the row.
        calls = [send_email.call(f"user-{number}@example.com", subject="Hello") for number in range(1, 5)]
        urgent = send_email.options(priority="high")
        emails = app.enqueue_many([*calls, urgent.call("vip@example.com", subject="Important")])
        emails.append(send_email.options(delay=0.6).enqueue("later@example.com", subject="Soon"))
        tomorrow = send_email.options(delay=86_400).enqueue("later@example.com", subject="Tomorrow")
        receipts = [email.result(timeout=20) for email in emails]
        show_keys()
        assert tomorrow.status() is State.SCHEDULED
        say(f"{len(receipts)} emails sent; 1 waits for tomorrow")
    finally:
        for worker in workers:
            worker.terminate()
            worker.wait()
        clean_up()


def start_worker() -> subprocess.Popen[bytes]:
    """What ``ferryman worker`` in another terminal would do."""
    program = Path(sys.executable).with_name("ferryman")
    options = ["--concurrency", "1", "--executors", "1", "--log-level", "ERROR"]
    return subprocess.Popen(
        [program, "worker", f"{__file__}:app", *options],
        env={**os.environ, "EMAILS_SERVER": SERVER, "EMAILS_PREFIX": PREFIX},
    )


def wait_for_workers(count: int) -> None:
    known: set[int] = set()
    while len(known) < count:
        for worker in app.store.runner().run(app.store.workers()):
            if worker.info.pid not in known:
                known.add(worker.info.pid)
                say(f"[Worker {worker.info.pid}] Connected to {app.store.url.partition('?')[0]}")
        time.sleep(0.02)


def show_keys() -> None:
    """What redis-cli shows: every key says what it holds."""
    say(f"$ redis-cli --scan --pattern '{{{PREFIX}}}:*'")
    client: Any = redis.Redis.from_url(SERVER, decode_responses=True)
    for key in sorted(client.scan_iter(match=f"{{{PREFIX}}}:*")):
        kind = client.type(key)
        size = {"zset": client.zcard, "hash": client.hlen, "set": client.scard, "list": client.llen}.get(kind)
        told = f"{size(key)} entries" if size else repr(client.get(key))
        say(f"{key:<42} {kind:<7} {told}")
    client.close()


def clean_up() -> None:
    app.close()
    with redis.Redis.from_url(SERVER) as client:
        for key in client.scan_iter(match=f"{{{PREFIX}}}:*"):
            client.delete(key)


def say(line: str) -> None:
    """As one write, so that lines of several processes do not mix."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
