"""A queue in memory: priorities, a delayed job, and three workers in one program.

    $ python examples/p1_in_memory_queue.py
    [Worker 1] Processing job email-001: Sending email to other@example.com
    [Worker 2] Processing job email-002: Sending email to user@example.com
    [Worker 1] Completed job email-001 in 150ms
    [Worker 2] Completed job email-002 in 201ms
    [Worker 1] Processing job email-003: Sending email to delayed@example.com (was delayed 500ms)
    [Worker 1] Completed job email-003 in 120ms
    3 emails sent, 0 failed

There is no file and no server: the jobs live and die with the program. With another URL, such as
``sqlite:///jobs.db``, they outlive it, and the rest of the code stays as it is.
"""

from __future__ import annotations

import itertools
import threading
import time
from typing import TypedDict

from ferryman import Context, Ferryman

app = Ferryman("memory://")

SENDING_TAKES = {"other@example.com": 0.15, "user@example.com": 0.2, "delayed@example.com": 0.12}


class Receipt(TypedDict):
    to: str
    subject: str
    sent: bool


@app.task
def send_email(ctx: Context, to: str, subject: str) -> Receipt:
    me, job = worker_name(), f"email-{next(job_numbers):03}"
    delay = ctx.job.ready_at - ctx.job.enqueued_at
    late = f" (was delayed {delay}ms)" if delay else ""
    say(f"[{me}] Processing job {job}: Sending email to {to}{late}")
    began = time.monotonic()
    time.sleep(SENDING_TAKES[to])
    say(f"[{me}] Completed job {job} in {(time.monotonic() - began) * 1000:.0f}ms")
    return {"to": to, "subject": subject, "sent": True}


def main() -> None:
    emails = [
        send_email.enqueue("user@example.com", subject="Welcome!"),
        send_email.options(priority="high").enqueue("other@example.com", subject="Hello!"),
        send_email.options(delay=0.5).enqueue("delayed@example.com", subject="Later!"),
    ]
    # Nobody has worked so far, so the jobs are there when the workers come, and the urgent one goes first.
    with app.worker(concurrency=3):
        receipts = [email.result(timeout=10) for email in emails]
    sent = sum(receipt["sent"] for receipt in receipts)
    say(f"{sent} emails sent, {len(emails) - sent} failed")


# -- the transcript --------------------------------------------------------------------------------

job_numbers = itertools.count(1)
worker_numbers = itertools.count(1)
this_thread = threading.local()
voice = threading.Lock()


def worker_name() -> str:
    """Workers are numbered as they come to work."""
    if not hasattr(this_thread, "name"):
        this_thread.name = f"Worker {next(worker_numbers)}"
    return str(this_thread.name)


def say(line: str) -> None:
    with voice:
        print(line, flush=True)


if __name__ == "__main__":
    main()
