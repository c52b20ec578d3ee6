"""What a job enqueued with ``using=`` shares with the transaction it is in, whatever the library and the database."""

from __future__ import annotations

from typing import Any

import pytest

from ferryman import Ferryman, QueueFull, State
from ferryman.errors import UnknownParent
from ferryman.job import new_id
from ferryman.task import Task

from .conftest import is_stored
from .customers import Customer, Place, enqueue, enqueue_many, run
from .places import orders


class HasId:
    id = new_id()


def test_a_commit_stores_the_job_with_what_the_customer_wrote(
    place: Place, customer: Customer, add: Task[..., Any]
) -> None:
    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        await customer.execute(f"INSERT INTO {place.table} VALUES (1)")
        handle = await enqueue(customer, add, 1, 2)
        assert not is_stored(handle)
        await customer.commit()
        await customer.close()

        assert handle.status() is State.READY
        assert handle.record().task.endswith("add")
        assert orders(place) == 1

    run(customer, steps())


def test_a_rollback_leaves_neither_job_nor_row(place: Place, customer: Customer, add: Task[..., Any]) -> None:
    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        await customer.execute(f"INSERT INTO {place.table} VALUES (1)")
        handle = await enqueue(customer, add, 1, 2)
        await customer.rollback()
        await customer.close()

        assert not is_stored(handle)
        assert orders(place) == 0

    run(customer, steps())


def test_a_job_may_be_the_first_thing_in_a_transaction(
    place: Place, customer: Customer, add: Task[..., Any]
) -> None:
    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        gone = await enqueue(customer, add, 1)
        await customer.rollback()
        await customer.begin()
        kept = await enqueue(customer, add, 2)
        assert not is_stored(kept)
        await customer.commit()
        await customer.close()

        assert not is_stored(gone)
        assert is_stored(kept)

    run(customer, steps())


def test_a_savepoint_that_is_rolled_back_takes_only_its_own_jobs_along(
    place: Place, customer: Customer, add: Task[..., Any]
) -> None:
    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        await customer.execute(f"INSERT INTO {place.table} VALUES (1)")
        before = await enqueue(customer, add, 1)
        await customer.savepoint()
        inside = await enqueue(customer, add, 2)
        await customer.rollback_to_savepoint()
        after = await enqueue(customer, add, 3)
        await customer.commit()
        await customer.close()

        assert [is_stored(handle) for handle in (before, inside, after)] == [True, False, True]
        assert orders(place) == 1

    run(customer, steps())


def test_several_jobs_of_any_kind_in_one_transaction(
    place: Place, customer: Customer, app: Ferryman, add: Task[..., Any]
) -> None:
    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        first = add.call(1)
        calls = [
            first,
            *(add.call(n) for n in range(20)),
            add.options(after=[first], tags=["a", "b"]).call(2),
            add.options(key="k", tenant="acme", unique="u", delay=60, ttl=600, priority="high").call(3),
        ]
        handles = await enqueue_many(customer, app, calls)
        await customer.commit()
        await customer.close()

        assert len(handles) == 23
        assert all(is_stored(handle) for handle in handles)
        assert handles[-1].record().tenant == "acme"
        assert handles[-2].record().tags == ("a", "b")

    run(customer, steps())


@pytest.mark.parametrize("wrong", ["full", "parent"])
def test_an_error_of_ours_leaves_the_transaction_as_it_was(
    place: Place, customer: Customer, app: Ferryman, add: Task[..., Any], wrong: str
) -> None:
    app.queue("small", max_size=1)
    add.options(queue="small").enqueue(0)
    # The first of the batch is stored before the second is refused.
    options: dict[str, Any] = {"queue": "small"} if wrong == "full" else {"after": [HasId()]}
    error = QueueFull if wrong == "full" else UnknownParent

    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        await customer.execute(f"INSERT INTO {place.table} VALUES (1)")
        before = await enqueue(customer, add, 1)
        calls = [add.call(5), add.options(**options).call(6)]
        with pytest.raises(error):
            await enqueue_many(customer, app, calls)
        await customer.execute(f"INSERT INTO {place.table} VALUES (2)")
        after = await enqueue(customer, add, 2)
        await customer.commit()
        await customer.close()

        assert is_stored(before)
        assert is_stored(after)
        assert not is_stored(app.job(calls[0].id))
        assert orders(place) == 2

    run(customer, steps())


def test_a_full_queue_that_blocks_is_not_waited_for(
    place: Place, customer: Customer, app: Ferryman, add: Task[..., Any]
) -> None:
    app.queue("small", max_size=1, overflow="block")
    add.options(queue="small").enqueue(0)

    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        with pytest.raises(QueueFull):
            await enqueue(customer, add, 1, queue="small")
        await customer.rollback()
        await customer.close()

    run(customer, steps())


def test_a_duplicate_is_told_and_the_transaction_goes_on(
    place: Place, customer: Customer, add: Task[..., Any]
) -> None:
    standing = add.options(unique="invoice-7").enqueue(7)

    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        handle = await enqueue(customer, add, 7, unique="invoice-7")
        await customer.execute(f"INSERT INTO {place.table} VALUES (1)")
        await customer.commit()
        await customer.close()

        assert handle.duplicate
        assert handle.id == standing.id
        assert orders(place) == 1

    run(customer, steps())


def test_settings_of_a_queue_reach_the_store_though_its_first_job_is_a_guest(
    place: Place, customer: Customer, app: Ferryman, add: Task[..., Any]
) -> None:
    app.queue("small", max_size=1)

    async def steps() -> None:
        await customer.open(place)
        await customer.begin()
        await enqueue(customer, add, 1, queue="small")
        await customer.commit()
        await customer.begin()
        with pytest.raises(QueueFull):
            await enqueue(customer, add, 2, queue="small")
        await customer.rollback()
        await customer.close()

    run(customer, steps())


def test_a_worker_runs_what_was_committed(
    place: Place, customer: Customer, app: Ferryman, add: Task[..., Any]
) -> None:
    async def steps() -> int:
        await customer.open(place)
        await customer.begin()
        rolled_back = await enqueue(customer, add, 10, 20)
        await customer.rollback()
        await customer.begin()
        handle = await enqueue(customer, add, 1, 2)
        await customer.commit()
        result: int = handle.result(timeout=20)
        await customer.close()
        assert not is_stored(rolled_back)
        return result

    with app.worker():
        assert run(customer, steps()) == 3
