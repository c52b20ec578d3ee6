"""What the callers of a Redis server get, and what they must not do to one another."""

from __future__ import annotations

import asyncio
import os
import select
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ferryman.clock import ManualClock
from ferryman.errors import (
    InvalidJob,
    QueueFull,
    StoreError,
    StoreUnavailable,
    UnknownParent,
)
from ferryman.io.operation import Operation, Requests
from ferryman.io.redis import Call, RedisRunner
from tests.services.proxy import proxy
from tests.services.redis import redis_server
from tests.services.server import Server
from tests.services.shared import redis_url

from .redis_trial import Trial, add, ask, count, eventually, fact, join_in, refuse
from .redis_trial import ring as ring_bell


@pytest.fixture
def trial() -> Iterator[Trial]:
    """On the server that all tests share."""
    trial = Trial(redis_url())
    yield trial
    ask(redis_url(), "DEL", f"{{{trial.prefix}}}:count")
    trial.close()


@pytest.fixture
def server() -> Iterator[Server]:
    """A server of the test's own, to be mistreated."""
    with redis_server() as server:
        yield server


@pytest.fixture
def own(server: Server) -> Iterator[Trial]:
    trial = Trial(server.url)
    yield trial
    trial.close()


# -- calls


def test_an_operation_is_one_call_and_its_answer(trial: Trial) -> None:
    assert [trial.run(add(2)), trial.run(add(3)), trial.run(count())] == [2, 5, 5]


def test_the_time_of_a_test_clock_goes_with_the_call(trial: Trial) -> None:
    def body(_: int) -> Requests[bytes]:
        now: bytes = yield Call("now", writes=False)
        return now

    clocked = Trial(redis_url(), clock=ManualClock(1_234))
    asked = Operation("now", body, writes=False)

    answers = clocked.run(asked), trial.run(asked)
    clocked.close()

    assert answers == (b"1234", b"")


def test_several_operations_are_one_call(trial: Trial) -> None:
    assert trial.runner.run_all([add(2), count(), add(4)]) == [2, 2, 6]


def test_an_operation_that_fails_before_its_call_keeps_all_from_being_sent(trial: Trial) -> None:
    def body(_: int) -> Requests[None]:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        trial.runner.run_all([add(2), Operation("broken", body)])

    assert trial.run(count()) == 0


def test_a_second_write_of_one_of_several_operations_is_refused(trial: Trial) -> None:
    def body(_: int) -> Requests[None]:
        yield Call("add", (1,))
        yield Call("add", (10,))

    with pytest.raises(StoreError, match="after its transaction"):
        trial.runner.run_all([add(), Operation("greedy", body)])

    assert trial.run(count()) == 2


def test_a_refusal_of_the_library_is_the_error_that_it_names(trial: Trial) -> None:
    with pytest.raises(UnknownParent, match=r"^there is no job x$"):
        trial.run(refuse("UnknownParent there is no job x"))
    with pytest.raises(QueueFull) as full:
        trial.run(refuse("QueueFull 7 my mail"))

    assert (full.value.queue, full.value.max_size) == ("my mail", 7)


def test_an_operation_may_handle_a_refusal(trial: Trial) -> None:
    def body(_: int) -> Requests[int]:
        try:
            yield Call("refuse", ("InvalidJob no",))
        except StoreError:
            return 0
        except Exception:
            return (yield Call("count", writes=False))  # type: ignore[no-any-return]
        return -1

    assert trial.run(Operation("patient", body)) == 0


def test_an_unforeseen_error_names_what_the_server_said(trial: Trial) -> None:
    with pytest.raises(StoreError, match="not an integer"):
        trial.run(Operation("odd", lambda _: (yield Call("add", ("many",)))))


# -- many callers


def test_threads_that_wait_for_one_round_trip_share_the_next(own: Trial, server: Server) -> None:
    own.run(count())
    server.pause()
    with ThreadPoolExecutor(50) as pool:
        calls = [pool.submit(own.run, add()) for _ in range(50)]
        assert eventually(lambda: len(own.runner._waiting) == 49)
        before = server  # Paused: it cannot be asked.
        before.resume()
        answers = sorted(call.result() for call in calls)

    assert answers == list(range(1, 51))
    # The greeting, the administrator's question, and two groups.
    assert fact(server.url, "total_reads_processed") < 20


def test_each_of_many_threads_gets_its_own_answers(trial: Trial) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: trial.run(refuse(f"InvalidJob {n}")) if n % 7 == 0 else trial.run(add()), [
            n for n in range(1, 500) if n % 7
        ]))  # fmt: skip

    assert sorted(answer for answer in answers if answer) == list(range(1, len(answers) + 1))


def test_calls_of_a_thousand_coroutines_at_once_go_out_together(trial: Trial) -> None:
    async def live() -> int:
        runner = trial.async_runner()
        await runner.run(count())
        before = fact(redis_url(), "total_reads_processed")
        await asyncio.gather(*(runner.run(add()) for _ in range(1_000)))
        reads = fact(redis_url(), "total_reads_processed") - before
        await runner.close()
        return reads

    # One by one they would be a thousand. Other tests may be at the same server.
    assert min(asyncio.run(live()) for _ in range(3)) < 200
    assert trial.run(count()) == 3_000


def test_coroutines_get_their_own_answers_and_refusals(trial: Trial) -> None:
    async def live() -> list[object]:
        runner = trial.async_runner()
        calls = (runner.run(refuse(f"UnknownParent {n}") if n % 3 == 0 else add()) for n in range(300))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await runner.close()
        return list(answers)

    answers = asyncio.run(live())

    assert [str(answer) for answer in answers[::3]] == [str(n) for n in range(0, 300, 3)]
    assert [answer for n, answer in enumerate(answers) if n % 3] == list(range(1, 201))


def test_calls_of_coroutines_that_can_be_joined_are_made_as_one(own: Trial, server: Server) -> None:
    async def live() -> list[int]:
        runner = own.async_runner()
        await runner.run(count())
        ask(server.url, "CONFIG", "RESETSTAT")
        answers = await asyncio.gather(*(runner.run(join_in(2)) for _ in range(100)), runner.run(count()))
        await runner.close()
        return list(answers)

    assert asyncio.run(live()) == [200] * 101
    assert b"cmdstat_fcall:calls=1," in ask(server.url, "INFO", "commandstats")


def test_when_a_joint_call_is_refused_each_call_is_made_by_itself(own: Trial) -> None:
    async def live() -> list[object]:
        runner = own.async_runner()
        await runner.run(count())
        calls = [runner.run(join_in(2_000 if n == 7 else 1)) for n in range(20)]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        await runner.close()
        return list(answers)

    answers = asyncio.run(live())

    assert [n for n, answer in enumerate(answers) if isinstance(answer, InvalidJob)] == [7]
    assert [answer for n, answer in enumerate(answers) if n != 7] == list(range(1, 20))


def test_calls_of_threads_that_can_be_joined_are_made_as_one_or_apart(own: Trial, server: Server) -> None:
    own.run(count())
    server.pause()
    with ThreadPoolExecutor(30) as pool:
        calls = [pool.submit(own.run, join_in(1_000 if n == 7 else 1)) for n in range(30)]
        assert eventually(lambda: len(own.runner._waiting) == 29)
        server.resume()
        answers = [call.result() for call in calls]

    assert max(answers) == own.run(count()) == 1_029


def test_joint_calls_whose_answer_is_lost_all_learn_it(own: Trial, server: Server) -> None:
    async def live(url: str, lose: Callable[[bytes], object]) -> list[object]:
        runner = Trial(url, prefix=own.prefix).async_runner()
        await runner.run(count())
        lose(b"trial_1_add")
        answers = await asyncio.gather(*(runner.run(join_in(1)) for _ in range(5)), return_exceptions=True)
        await runner.close()
        return list(answers)

    with proxy(server.port) as line:
        answers = asyncio.run(live(line.url(server.url), line.lose_answer))

    assert [type(answer) for answer in answers] == [StoreUnavailable] * 5
    assert own.run(count()) == 5


def test_calls_that_cannot_be_joined_for_a_fault_of_ours_are_answered_so(own: Trial, server: Server) -> None:
    async def live() -> list[object]:
        runner = own.async_runner()
        await runner.run(count())
        calls = [runner.run(operation) for operation in (join_in("x"), join_in(1), add())]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        last = await runner.run(count())
        await runner.close()
        return [*answers, last]

    own.run(count())
    server.pause()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(own.run, count())
        assert eventually(own.runner._lock.locked)
        calls = [pool.submit(own.run, join_in(by)) for by in ("x", 1)]
        assert eventually(lambda: len(own.runner._waiting) == 2)
        server.resume()
        in_threads = [call.exception() for call in calls]

    assert first.result() == 0
    assert [type(error) for error in in_threads] == [StoreError] * 2
    in_loop = asyncio.run(live())
    assert [type(answer) for answer in in_loop[:3]] == [StoreError] * 3
    assert in_loop[3] == own.run(count()) == 0


def test_after_a_fault_of_ours_everybody_gets_the_answer_to_their_own_call(own: Trial) -> None:
    async def live() -> list[object]:
        runner = own.async_runner()
        await runner.run(count())
        # The second cannot be written as bytes, which shows when the first has been put down already.
        faulty = [runner.run(add()), runner.run(join_in("\ud800"))]
        answers = await asyncio.gather(*faulty, return_exceptions=True)
        async with asyncio.timeout(5):
            answers += await asyncio.gather(runner.run(add(7)), runner.run(count()))
        await runner.close()
        return [type(answer) if isinstance(answer, StoreError) else answer for answer in answers]

    assert asyncio.run(live()) == [StoreError, StoreError, 7, 7]


def test_an_argument_that_cannot_be_sent_harms_its_own_caller_alone(own: Trial, server: Server) -> None:
    own.run(count())
    server.pause()
    with ThreadPoolExecutor(10) as pool:
        calls = [pool.submit(own.run, add()) for _ in range(9)]
        odd = pool.submit(own.run, add(object()))  # type: ignore[arg-type]
        assert eventually(lambda: odd.done() and len(own.runner._waiting) == 8)
        server.resume()

        assert sorted(call.result() for call in calls) == list(range(1, 10))
        assert isinstance(odd.exception(), TypeError)


def test_a_large_call_goes_through_an_event_loop(trial: Trial) -> None:
    def body(_: int) -> Requests[int]:
        seen: int = yield Call("count", ("x" * 20_000_000,), writes=False)
        return seen

    async def live() -> list[int]:
        runner = trial.async_runner()
        answers = await asyncio.gather(
            *(runner.run(Operation("large", body)) for _ in range(3)), runner.run(add())
        )
        await runner.close()
        return answers

    assert asyncio.run(live()) == [0, 0, 0, 1]


def test_a_coroutine_that_is_cancelled_harms_nobody_else(trial: Trial) -> None:
    async def live() -> int:
        runner = trial.async_runner()
        await runner.run(count())
        tasks = [asyncio.create_task(runner.run(add())) for _ in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(not task.cancelled() for task in tasks[1::2])
        answer = await runner.run(count())
        await runner.close()
        return answer

    assert 10 <= asyncio.run(live()) <= 20


def test_event_loops_in_turn_leave_no_connections_behind(own: Trial, server: Server) -> None:
    runner = own.async_runner()

    for n in range(20):
        # The loops are closed without a word to the runner, as programs do.
        assert asyncio.run(runner.run(add())) == n + 1
    asyncio.run(runner.close())
    del runner

    assert eventually(lambda: fact(server.url, "connected_clients") == 1)


def test_a_runner_that_is_closed_in_mid_call_connects_no_more(own: Trial, server: Server) -> None:
    async def turns() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def live() -> list[object]:
        runner = own.async_runner()
        connecting = asyncio.ensure_future(runner.run(count()))
        await turns()
        await runner.close()
        answers: list[object] = [*await asyncio.gather(connecting, return_exceptions=True)]
        await runner.run(count())
        server.pause()
        calls = [asyncio.ensure_future(runner.run(operation)) for operation in (count(), add(), count())]
        await turns()
        await runner.close()
        server.resume()
        answers += await asyncio.gather(*calls, return_exceptions=True)
        # What would connect anew would do so in a thread.
        await turns()
        await asyncio.get_running_loop().shutdown_default_executor()
        await turns()
        assert eventually(lambda: fact(server.url, "connected_clients") == 1, 2)
        return answers

    assert [type(answer) for answer in asyncio.run(live())] == [StoreUnavailable] * 4


def test_a_thread_that_is_interrupted_leaves_its_neighbours_their_calls(own: Trial, server: Server) -> None:
    own.run(count())
    server.pause()
    interrupted: list[BaseException] = []

    def lead() -> None:
        try:
            own.run(count())
        except KeyboardInterrupt as interrupt:
            interrupted.append(interrupt)

    leader = threading.Thread(target=lead)
    leader.start()
    assert eventually(own.runner._lock.locked)
    with ThreadPoolExecutor(8) as pool:
        calls = [pool.submit(own.run, add()) for _ in range(8)]
        assert eventually(lambda: len(own.runner._waiting) == 8)
        _raise_in(leader, KeyboardInterrupt)
        server.resume()
        answers = sorted(call.result(timeout=20) for call in calls)
    leader.join()

    assert answers == list(range(1, 9))
    assert len(interrupted) == 1


def _raise_in(thread: threading.Thread, error: type[BaseException]) -> None:
    import ctypes

    assert thread.ident is not None
    assert (
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(error)) == 1
    )


# -- forks


def test_a_fork_and_its_parent_do_not_share_a_connection(own: Trial, server: Server) -> None:
    own.run(add())
    waker = own.waker()
    own.runner.wait(0)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if [own.run(add()) for _ in range(50)] and own.run(count()) > 50 else 1)
        finally:
            os._exit(2)

    answers = [own.run(add()) for _ in range(50)]
    _, status = os.waitpid(child, 0)

    assert status == 0
    assert len(set(answers)) == 50
    assert own.run(count()) == 101
    assert own.run(ring_bell()) == 1
    assert eventually(lambda: select.select([waker.fileno()], [], [], 0.1)[0])
    waker.close()


def test_a_fork_amid_the_calls_of_other_threads_can_make_its_own(own: Trial) -> None:
    over = threading.Event()

    def produce() -> None:
        while not over.is_set():
            own.run(add())

    producers = [threading.Thread(target=produce) for _ in range(3)]
    for producer in producers:
        producer.start()
    statuses = []
    for _ in range(10):
        child = os.fork()
        if child == 0:
            try:
                own.run(add())
                os._exit(0)
            finally:
                os._exit(1)
        statuses.append(os.waitpid(child, 0)[1])
    over.set()
    for producer in producers:
        producer.join()

    assert statuses == [0] * 10


def test_a_second_runner_of_a_server_is_no_other_place(trial: Trial) -> None:
    other = RedisRunner(trial.server, trial.doorbell)

    answers = [trial.run(add()), other.run(add())]
    other.close()

    assert answers == [1, 2]
