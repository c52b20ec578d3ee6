"""What a type checker says of tasks, their calls and their results. Nothing here is run: mypy reads it."""

from __future__ import annotations

import sqlite3
from datetime import timedelta
from typing import Any, assert_type

from ferryman import Call, Context, Ferryman, JobHandle, State

app = Ferryman("memory://")


class Invoice:
    total: float


@app.task
def add(a: int, b: int = 0) -> int:
    return a + b


@app.task(queue="invoices", priority="high", timeout=30)
def make_invoice(customer: int, *, draft: bool = False) -> Invoice:
    return Invoice()


@app.task
async def fetch(url: str) -> bytes:
    return b""


@app.task(name="fetch-all")
async def fetch_all(*urls: str) -> list[bytes]:
    return []


@app.task
def resize(ctx: Context, path: str) -> float | None:
    return None


@app.task(tags=["slow"])
async def crawl(ctx: Context, site: str, depth: int = 1) -> dict[str, int]:
    return {}


def a_handle_knows_the_type_of_the_result() -> None:
    assert_type(add.enqueue(1, 2), JobHandle[int])
    assert_type(add.enqueue(a=1).result(), int)
    assert_type(make_invoice.enqueue(7, draft=True).result(timeout=10), Invoice)
    assert_type(add.enqueue(1).status(), State)


def an_async_task_gives_the_awaited_type() -> None:
    assert_type(fetch.enqueue("a").result(), bytes)
    assert_type(fetch_all.enqueue("a", "b").result(), list[bytes])


def a_context_is_no_parameter_of_enqueue() -> None:
    assert_type(resize.enqueue("a.png").result(), float | None)
    assert_type(resize.enqueue(path="a.png"), JobHandle[float | None])
    assert_type(crawl.enqueue("example.com", depth=2).result(), dict[str, int])


async def awaited_twins_have_the_same_types() -> None:
    assert_type(await add.aenqueue(1, 2), JobHandle[int])
    assert_type(await (await fetch.aenqueue("a")).aresult(), bytes)
    assert_type(await add.aenqueue_many([(1, 2), {"a": 1}]), list[JobHandle[int]])


def options_keep_the_types() -> None:
    later = add.options(delay=5, priority="urgent", unique=60, tenant="acme")
    assert_type(later.enqueue(1, 2), JobHandle[int])
    assert_type(crawl.options(after=[add.enqueue(1)]).enqueue("example.com").result(), dict[str, int])
    crawl.options(after=["0192f3c4a1b27def8123456789abcdef", add.call(1)], timeout=timedelta(minutes=5))


def calling_a_task_is_calling_its_function() -> None:
    assert_type(add(1, 2), int)


def a_call_knows_the_type_of_the_result() -> None:
    assert_type(add.call(1, 2), Call[int])
    app.enqueue_many([add.call(1), fetch.call("a")])


def a_context_decodes_results_as_asked(ctx: Context) -> None:
    assert_type(ctx.results(Invoice), list[Invoice])
    assert_type(ctx.progress(0.5, "half"), None)


def a_job_in_a_transaction_is_typed_as_any_other(connection: sqlite3.Connection) -> None:
    assert_type(add.options(using=connection, delay=5).enqueue(1, 2), JobHandle[int])
    assert_type(app.enqueue_many([add.call(1)], using=connection)[0].result(), Any)
