"""What threads and coroutines that perform statements must not do to one another on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from ferryman.clock import ManualClock
from ferryman.errors import QueueFull, StoreError, StoreUnavailable, StoreVersionError, UnknownParent
from ferryman.io.operation import Operation, Requests
from ferryman.io.postgres import (
    GATE,
    NOW,
    AsyncPostgresRunner,
    Database,
    PostgresRunner,
    Statement,
    parse_url,
    talk,
)
from tests.services.shared import postgres_url
from tests.unit.postgres_bench import Bench, in_a_loop, until


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(postgres_url())
    yield bench
    bench.close()


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(40) as pool:
        yield pool


# -- one statement, several, and what is filled in


def test_a_statement_is_answered_with_its_rows(bench: Bench) -> None:
    rows = bench.runner.run(
        bench.ask("SELECT %s::integer, %s::bytea, %s::text, %s::uuid", 1, b"\0\xff", "ä", None)
    )

    assert rows == [(1, b"\0\xff", "ä", None)]


def test_a_statement_that_has_no_rows_is_answered_with_none(bench: Bench) -> None:
    assert bench.runner.run(bench.ask("INSERT INTO number (n) VALUES (1)")) == []


def test_the_time_is_left_to_the_server_unless_there_is_a_clock(bench: Bench) -> None:
    clock = ManualClock(1_234)
    ask = bench.ask("SELECT %s::bigint, %s::boolean", NOW, GATE)
    moved = bench.open(clock)

    answers = [bench.runner.run(ask), PostgresRunner(moved).run(ask)]
    clock.advance(1)
    answers.append(PostgresRunner(moved).run(ask))
    moved.close()

    assert answers == [[(None, False)], [(1_234, False)], [(2_234, False)]]


def test_large_statements_of_one_transaction_do_not_wait_for_each_other_to_be_sent(bench: Bench) -> None:
    large = b"x" * (3 << 20)

    answers = bench.runner.run_all([bench.ask("SELECT %s::bytea", large) for _ in range(5)])

    assert answers == [[(large,)]] * 5


def test_an_operation_that_asks_nothing_needs_no_server() -> None:
    def nothing(_: int) -> Requests[str]:
        return "nothing to do"
        yield

    def refuse(_: object) -> None:
        pytest.fail("nothing was asked for")

    database = Database(parse_url("postgresql://127.0.0.1:1/nowhere"), None, refuse)

    assert PostgresRunner(database).run(Operation("nothing", nothing)) == "nothing to do"
    assert PostgresRunner(database).run_all([]) == []


def test_several_operations_are_one_transaction(bench: Bench) -> None:
    (first,), (second,) = bench.runner.run_all([bench.put(1), bench.put(2)])

    assert (first[0], second[0]) == (1, 2)
    assert first[1] == second[1]
    assert bench.numbers() == [1, 2]


def test_one_of_several_operations_that_fails_undoes_them_all(bench: Bench) -> None:
    with pytest.raises(StoreError, match="violates check constraint"):
        bench.runner.run_all([bench.put(1), bench.put(-2), bench.put(3)])

    assert bench.numbers() == []
    assert bench.runner.run(bench.put(4))[0][0] == 4


def test_an_operation_that_breaks_before_it_asks_lets_nothing_of_the_others_be_sent(bench: Bench) -> None:
    def breaking(_: int) -> Requests[None]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        bench.runner.run_all([bench.put(1), Operation("breaking", breaking)])

    assert bench.numbers() == []
    assert bench.sessions() == []


def test_a_second_request_of_an_operation_is_a_mistake_of_its_own(bench: Bench) -> None:
    def greedy(_: int) -> Requests[None]:
        yield Statement("SELECT 1")
        yield Statement("SELECT 2")

    with pytest.raises(RuntimeError, match="greedy"):
        bench.runner.run(Operation("greedy", greedy))


@pytest.mark.parametrize(
    ("type", "values"),
    [
        ("uuid", [uuid.UUID(int=n).hex for n in range(5)]),
        ("uuid", [str(uuid.UUID(int=1)), None]),
        ("bytea", [b"", b"\0", b"same length", b"other length", None]),
        ("bytea", [b"same"] * 3),
        ("bytea", [bytearray(b"other"), memoryview(b"kinds")]),
        ("text", ["", "ä", "NULL", None, '{"}', "a,b"]),
        ("text", ["default"] * 4),
        ("text", [None, None]),
        ("bigint", [0, -1, 2**63 - 1, -(2**63)]),
        ("bigint", [1, None, 3]),
        ("smallint", [1, -1, 300]),
        ("double precision", [0.5, -1e300, None]),
        ("boolean", [True, False, None]),
        ("jsonb", ["{}", "[1]"]),
        ("integer", []),
        ("integer", [1, -(2**31)]),
    ],
)
def test_lists_arrive_as_they_were_sent(bench: Bench, type: str, values: list[Any]) -> None:
    ((arrived,),) = bench.runner.run(bench.ask(f"SELECT %s::{type}[]", values))

    reads: dict[str, Callable[[Any], Any]] = {"jsonb": json.loads, "uuid": uuid.UUID}
    read = reads.get(type)
    if read is not None:
        values = [None if value is None else read(value) for value in values]
    assert arrived == values


def test_long_lists_arrive_as_they_were_sent(bench: Bench) -> None:
    chance = random.Random(5)
    columns: list[list[Any]] = [
        [chance.randrange(-(2**63), 2**63) for _ in range(3_000)],
        [chance.randbytes(chance.randrange(200)) for _ in range(3_000)],
        [chance.choice([None, "a", "ö" * 50]) for _ in range(3_000)],
    ]

    ((*arrived,),) = bench.runner.run(bench.ask("SELECT %s::bigint[], %s::bytea[], %s::text[]", *columns))

    assert arrived == columns


@pytest.mark.parametrize(
    ("type", "value"),
    [
        ("text", "a\0b"),
        ("text[]", ["a\0b"]),
        ("text", "\ud800"),
        ("text[]", ["\ud800"]),
        ("text", object()),
        ("text", ["a"]),
        ("text[]", [["a", "b"], ["c", "d"]]),
        ("bytea", 5),
        ("bytea[]", ["text"]),
        ("bigint", 2**63),
        ("bigint[]", [2**63]),
        ("smallint[]", [2**15, None]),
        ("integer[]", [1, "a"]),
        ("uuid", "nonsense"),
        ("uuid[]", ["00"]),
        ("uuid[]", [("ab " * 11)[:32]]),
        ("jsonb", 5),
        ("jsonb", "{"),
    ],
)
def test_a_value_that_its_type_cannot_hold_is_refused(bench: Bench, type: str, value: object) -> None:
    with pytest.raises(StoreError, match="did not take a value"):
        bench.runner.run_all([bench.put(1), bench.ask(f"SELECT %s::{type}", value)])

    assert bench.numbers() == []
    assert bench.runner.run(bench.put(2))[0][0] == 2


def test_texts_arrive_whatever_encoding_the_surroundings_ask_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "LATIN1")

    assert bench.runner.run(bench.ask("SELECT %s::text, %s::text[]", "щ", ["щ"])) == [("щ", ["щ"])]


def test_no_more_statements_are_kept_prepared_than_a_server_can_bear(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(talk, "_MOST_PREPARED", 3)

    for number in [*range(6), *range(6)]:
        assert bench.runner.run(bench.ask(f"SELECT {number}, %s::text", "a")) == [(number, "a")]
    ((kept,),) = bench.runner.run(bench.ask("SELECT count(*) FROM pg_prepared_statements"))

    assert kept == 3


# -- group commit


def test_threads_that_wait_are_committed_together(bench: Bench, pool: ThreadPoolExecutor) -> None:
    with bench.held_up() as let_go:
        first = pool.submit(bench.runner.run, bench.stuck())
        until(bench.waits)
        waiting = [pool.submit(bench.runner.run, bench.put(n)) for n in range(30)]
        until(lambda: len(bench.database._tickets) == 30)
        let_go()
        answers = [each.result() for each in waiting]

    assert first.result() == [("through",)]
    assert [rows[0][0] for rows in answers] == list(range(30))
    assert len({rows[0][1] for rows in answers}) == 1
    assert bench.numbers() == list(range(30))


def test_one_of_a_group_that_fails_fails_alone(bench: Bench, pool: ThreadPoolExecutor) -> None:
    def run(n: int) -> bool:
        try:
            (put,), (same,) = bench.runner.run_all([bench.put(n), bench.ask("SELECT %s::integer", n)])
        except StoreError:
            return False
        return (put[0], same[0]) == (n, n)

    with bench.held_up() as let_go:
        first = pool.submit(bench.runner.run, bench.stuck())
        until(bench.waits)
        waiting = [pool.submit(run, n if n % 10 else -n - 1) for n in range(30)]
        until(lambda: len(bench.database._tickets) == 30)
        let_go()
        kept = [each.result() for each in waiting]

    assert first.result()
    assert kept == [bool(n % 10) for n in range(30)]
    assert bench.numbers() == [n for n in range(30) if n % 10]


def test_one_of_a_group_that_must_wait_for_long_undoes_what_it_did_and_waits_alone(
    bench: Bench, pool: ThreadPoolExecutor
) -> None:
    def both(number: int) -> Any:
        # It has put its number when it comes to wait.
        return bench.runner.run_all([bench.put(number), bench.stuck()])

    with bench.held_up() as let_go:
        first = pool.submit(bench.runner.run, bench.stuck())
        until(bench.waits)
        waiting = [pool.submit(bench.runner.run, bench.put(1)), pool.submit(both, 2)]
        until(lambda: len(bench.database._tickets) == 2)
        bench.admin.execute("SELECT pg_cancel_backend(pid) FROM unnest(%s::int[]) pid", (bench.sessions(),))
        with pytest.raises(StoreUnavailable):
            first.result()
        until(lambda: bench.numbers() == [1])
        until(bench.waits)
        let_go()

    assert waiting[1].result()[1] == [("through",)]
    assert bench.numbers() == [1, 2]


def test_coroutines_that_run_at_once_are_committed_together(bench: Bench) -> None:
    async def work(runner: AsyncPostgresRunner) -> list[Any]:
        return await asyncio.gather(*(runner.run(bench.put(n)) for n in range(1_000)))

    answers = in_a_loop(bench, work)

    assert [rows[0][0] for rows in answers] == list(range(1_000))
    assert len({rows[0][1] for rows in answers}) == 4
    assert bench.numbers() == list(range(1_000))


def test_one_of_many_coroutines_that_fails_fails_alone(bench: Bench) -> None:
    async def work(runner: AsyncPostgresRunner) -> list[Any]:
        calls = (runner.run(bench.put(n if n % 10 else -1)) for n in range(50))
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = in_a_loop(bench, work)

    assert [isinstance(answer, StoreError) for answer in answers] == [not n % 10 for n in range(50)]
    assert bench.numbers() == [n for n in range(50) if n % 10]


def test_a_coroutine_that_is_cancelled_before_its_turn_is_not_performed(bench: Bench) -> None:
    async def work(runner: AsyncPostgresRunner) -> None:
        with bench.held_up() as let_go:
            first = asyncio.create_task(runner.run(bench.stuck()))
            await asyncio.to_thread(until, bench.waits)
            given_up = asyncio.create_task(runner.run(bench.put(1)))
            other = asyncio.create_task(runner.run(bench.put(2)))
            await asyncio.sleep(0)
            given_up.cancel()
            first.cancel()
            let_go()
            await other
        assert first.cancelled()
        assert given_up.cancelled()

    in_a_loop(bench, work)

    assert bench.numbers() == [2]


def test_reading_coroutines_do_not_wait_for_writing_ones(bench: Bench) -> None:
    async def work(runner: AsyncPostgresRunner) -> None:
        with bench.held_up():
            writing = asyncio.create_task(runner.run(bench.stuck()))
            await asyncio.to_thread(until, bench.waits)
            assert await runner.run(bench.ask("SELECT 1", writes=False)) == [(1,)]
            assert not writing.done()
        await writing

    in_a_loop(bench, work)


# -- again


@pytest.mark.parametrize("code", ["40001", "40P01", "FY001"])
def test_a_transaction_that_others_were_in_the_way_of_is_performed_again(bench: Bench, code: str) -> None:
    answers = bench.runner.run_all([bench.put(1), bench.ask("SELECT fail_at_first(%s::text, 2)", code)])

    assert answers[1] == [(3,)]
    assert bench.numbers() == [1]


def test_a_transaction_that_is_performed_again_leaves_nothing_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(runner: AsyncPostgresRunner) -> Any:
        return await asyncio.gather(runner.run(again), runner.run(bench.put(2)))

    again = bench.ask("SELECT fail_at_first(%s::text, 3)", "40001")
    bench.runner.run_all([bench.put(1), again])
    in_a_loop(bench, work)

    assert bench.numbers() == [1, 2]
    assert caplog.messages == []


def test_a_transaction_that_others_are_always_in_the_way_of_is_given_up(bench: Bench) -> None:
    with pytest.raises(StoreUnavailable, match="try again"):
        bench.runner.run(bench.ask("SELECT fail_at_first('40001', 1000)"))


def test_who_needs_the_gate_is_performed_again_with_it(bench: Bench) -> None:
    gate = "SELECT at_the_gate(%s::integer, %s::boolean)"

    one = bench.runner.run(bench.ask(gate, 1, GATE))
    several = bench.runner.run_all([bench.ask("SELECT %s::boolean", GATE), bench.ask(gate, 2, GATE)])

    assert one == [(True,)]
    assert several == [[(True,)], [(True,)]]
    assert bench.numbers() == [1, 2]


def test_a_coroutine_that_needs_the_gate_is_performed_again_with_it(bench: Bench) -> None:
    async def work(runner: AsyncPostgresRunner) -> list[Any]:
        gate = "SELECT at_the_gate(%s::integer, %s::boolean)"
        calls = (runner.run(bench.ask(gate, n, GATE)) for n in range(5))
        return await asyncio.gather(*calls, runner.run(bench.put(5)))

    answers = in_a_loop(bench, work)

    assert answers[:5] == [[(True,)]] * 5
    assert bench.numbers() == list(range(6))


# -- errors


def test_errors_of_the_statements_own_are_raised_as_ours(bench: Bench) -> None:
    refuse = "SELECT refuse(%s::text, %s::text, %s::text)"

    with pytest.raises(UnknownParent, match="no such job"):
        bench.runner.run(bench.ask(refuse, "FY010", "no such job", ""))
    with pytest.raises(QueueFull) as full:
        bench.runner.run(bench.ask(refuse, "FY011", "full", '["email", 5]'))

    assert (full.value.queue, full.value.max_size) == ("email", 5)


def test_tables_that_are_gone_are_looked_for_again(bench: Bench) -> None:
    bench.runner.run(bench.put(1))

    with pytest.raises(StoreVersionError, match="ferryman migrate"):
        bench.runner.run(bench.ask("SELECT n FROM nothing_at_all"))
    bench.runner.run(bench.put(2))

    assert bench.prepared == 2


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    database = Database(parse_url("postgresql://me:secret@127.0.0.1:1/jobs"), None, lambda _: None)

    def select(_: int) -> Requests[Any]:
        return (yield Statement("SELECT 1"))

    for writes in (True, False):
        with pytest.raises(
            StoreUnavailable, match=r"postgresql://me@127\.0\.0\.1:1/jobs.*refused"
        ) as refused:
            PostgresRunner(database).run(Operation("select", select, writes=writes))
        assert "secret" not in str(refused.value)
