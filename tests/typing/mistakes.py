"""Mistakes that a type checker must find: each comment names the error that mypy has to report in its line.

Were one of them no error any more, mypy would report the comment itself. Nothing here is run.
"""

from __future__ import annotations

from ferryman import Retry, Snooze, WorkerSettings
from tests.typing.calls import add, app, crawl, fetch, make_invoice, resize


def wrong_arguments() -> None:
    add.enqueue("x")  # type: ignore[arg-type]
    add.enqueue()  # type: ignore[call-arg]
    add.enqueue(1, 2, 3)  # type: ignore[call-arg]
    add.enqueue(1, c=2)  # type: ignore[call-arg]
    add.options(delay=5).enqueue("x")  # type: ignore[arg-type]
    make_invoice.enqueue(7, True)  # type: ignore[call-arg]
    add.call("x")  # type: ignore[arg-type]
    add("x")  # type: ignore[arg-type]


async def wrong_arguments_awaited() -> None:
    await fetch.aenqueue(1)  # type: ignore[arg-type]
    await add.options(priority="low").aenqueue("x")  # type: ignore[arg-type]


def a_context_is_the_workers_to_give() -> None:
    resize.enqueue("a.png", "b.png")  # type: ignore[call-arg]
    crawl.enqueue(ctx=None, site="example.com")  # type: ignore[call-arg]


def wrong_results() -> None:
    len(add.enqueue(1).result())  # type: ignore[arg-type]
    fetch.enqueue("a").result().upper().encode()  # type: ignore[attr-defined]


def wrong_options() -> None:
    add.options(delya=5)  # type: ignore[call-arg]
    add.options(priority="highest")  # type: ignore[arg-type]
    add.options(delay="5")  # type: ignore[arg-type]
    add.options(on_parent_failure="ignore")  # type: ignore[arg-type]
    add.options(after=[5])  # type: ignore[list-item]
    app.queue("reports", overflow="wait")  # type: ignore[arg-type]


def wrong_values() -> None:
    Retry(attempts=3)  # type: ignore[call-arg]
    Retry(backoff="doubling")  # type: ignore[arg-type]
    Snooze("a while")  # type: ignore[arg-type]
    WorkerSettings(concurrency="many")  # type: ignore[arg-type]
