"""Commands that change something: jobs, queues and workers."""

from __future__ import annotations

import pytest

from ferryman.job import OutcomeKind, State
from ferryman.store.records import WorkerStatus

from .conftest import Quay


def test_a_named_job_is_cancelled_without_a_question(quay: Quay) -> None:
    job = quay.enqueue()

    result = quay.ferryman("jobs", "cancel", job, "--reason", "not needed")

    assert result.exit_code == 0
    assert result.stdout == "1 job cancelled\n"
    assert quay.job(job).state is State.CANCELLED
    assert quay.job(job).reason == "not needed"


def test_a_running_job_is_cancelled_through_its_worker(quay: Quay) -> None:
    worker = quay.start_worker()
    job = quay.enqueue()
    quay.claim(worker)

    result = quay.ferryman("jobs", "cancel", job)

    orders = quay.run(quay.app.store.heartbeat(worker, WorkerStatus(), 60_000)).orders
    assert [(order.kind, order.job) for order in orders] == [("cancel", job)]
    assert "end when their worker hears of it" in result.stderr


def test_jobs_of_a_filter_are_cancelled_after_a_yes(quay: Quay) -> None:
    for _ in range(3):
        quay.enqueue(queue="email")
    other = quay.enqueue(queue="reports")

    no = quay.ferryman("jobs", "cancel", "--queue", "email", input="n\n")
    yes = quay.ferryman("jobs", "cancel", "--queue", "email", input="y\n")

    assert "Cancel 3 jobs?" in no.stderr
    assert no.exit_code == 1
    assert yes.stdout == "3 jobs cancelled\n"
    assert quay.job(other).state is State.READY
    assert quay.states().count(State.CANCELLED) == 3


def test_more_jobs_than_one_operation_takes_are_all_changed(quay: Quay) -> None:
    jobs = [quay.app._job_by_name("app.add", (), {"a": n}) for n in range(2_345)]
    quay.app.enqueue_jobs(jobs)

    result = quay.ferryman("jobs", "cancel", "--all", "--yes")

    assert result.stdout == "2,345 jobs cancelled\n"


@pytest.mark.parametrize("verb", [("jobs", "cancel"), ("jobs", "retry"), ("jobs", "delete"), ("dead", "replay"), ("dead", "purge")])  # fmt: skip
def test_all_jobs_are_never_meant_by_accident(quay: Quay, verb: tuple[str, str]) -> None:
    quay.enqueue()

    result = quay.ferryman(*verb, "--yes")

    assert result.exit_code == 2
    assert "or --all" in result.stderr
    assert quay.states() == [State.READY]


def test_a_job_that_cannot_be_changed_is_named(quay: Quay) -> None:
    job = quay.enqueue()

    result = quay.ferryman("jobs", "retry", job)

    assert result.exit_code == 1
    assert f"1 job left as it was: {job} is ready" in result.stderr


@pytest.mark.parametrize("verb", [("jobs", "cancel"), ("jobs", "retry"), ("jobs", "delete"), ("dead", "replay"), ("dead", "purge")])  # fmt: skip
@pytest.mark.parametrize("more", [("--queue", "email"), ("--task", "app.add"), ("--tag", "vip"), ("--since", "1d"), ("--all",)])  # fmt: skip
def test_ids_and_filters_together_are_refused(
    quay: Quay, verb: tuple[str, str], more: tuple[str, ...]
) -> None:
    job = quay.dead_letter()

    result = quay.ferryman(*verb, job, *more, "--yes")

    assert result.exit_code == 2
    assert "not both" in result.stderr
    assert quay.states() == [State.DEAD]


@pytest.mark.parametrize(
    ("verb", "state", "words"),
    [
        ("cancel", "dead", "jobs that are dead cannot be cancelled; --state takes waiting, "),
        ("retry", "ready", "jobs that are ready cannot be run again; --state takes dead, "),
        ("delete", "running", "jobs that are running cannot be deleted"),
    ],
)
def test_a_state_in_which_nothing_can_be_done_is_refused(
    quay: Quay, verb: str, state: str, words: str
) -> None:
    quay.dead_letter()

    result = quay.ferryman("jobs", verb, "--state", state, "--yes")

    assert result.exit_code == 2
    assert words in result.stderr
    assert quay.states() == [State.DEAD]


@pytest.mark.parametrize("command", [("purge", "default"), ("jobs", "cancel", "--all"), ("jobs", "delete", "--all")])  # fmt: skip
def test_a_question_that_nobody_hears_names_the_option_that_answers_it(
    quay: Quay, command: tuple[str, ...]
) -> None:
    quay.enqueue()

    result = quay.ferryman(*command, input="")

    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1].startswith("nothing was changed: there is nobody to ask; say --yes")
    assert quay.states() == [State.READY]


def test_finished_jobs_run_again_when_they_are_retried(quay: Quay) -> None:
    worker = quay.start_worker()
    succeeded = quay.enqueue()
    (claim,) = quay.claim(worker)
    quay.settle(worker, claim, OutcomeKind.SUCCEEDED)
    dead = quay.dead_letter()

    quay.ferryman("jobs", "retry", "--all", "--yes")
    assert (quay.job(succeeded).state, quay.job(dead).state) == (State.SUCCEEDED, State.READY)

    quay.ferryman("jobs", "retry", succeeded)
    assert quay.job(succeeded).state is State.READY


def test_deleting_a_named_job_asks_first(quay: Quay) -> None:
    job = quay.enqueue()

    assert quay.ferryman("jobs", "delete", job, input="n\n").exit_code == 1
    assert quay.states() == [State.READY]
    assert quay.ferryman("jobs", "delete", job, "--yes").stdout == "1 job deleted\n"
    assert quay.states() == []


def test_a_running_job_is_not_deleted(quay: Quay) -> None:
    worker = quay.start_worker()
    job = quay.enqueue()
    quay.claim(worker)

    result = quay.ferryman("jobs", "delete", job, "--yes")

    assert result.exit_code == 1
    assert f"1 job left as it was: {job} is running" in result.stderr


def test_an_unknown_job_stops_the_command_before_anything_is_done(quay: Quay) -> None:
    job = quay.enqueue()

    result = quay.ferryman("jobs", "cancel", job, "f" * 32)

    assert result.exit_code == 4
    assert quay.job(job).state is State.READY


def test_waiting_prints_the_result(quay: Quay) -> None:
    worker = quay.start_worker()
    job = quay.enqueue()
    (claim,) = quay.claim(worker)
    quay.settle(worker, claim, OutcomeKind.SUCCEEDED, result=quay.app.codec.encode([1, "two"]))

    assert quay.ferryman("jobs", "wait", job).stdout == '[1,"two"]\n'
    assert quay.lines("jobs", "wait", job) == [{"id": job, "result": [1, "two"]}]


def test_waiting_in_vain_ends_with_one(quay: Quay) -> None:
    late, dead = quay.enqueue(queue="slow"), quay.dead_letter()

    timed_out = quay.ferryman("jobs", "wait", late, "--timeout", "0.01")
    died = quay.ferryman("jobs", "wait", dead)

    assert timed_out.exit_code == 1
    assert "is still ready" in timed_out.stderr
    assert died.exit_code == 1
    assert "died: ValueError: boom" in died.stderr


def test_a_queue_is_paused_and_resumed(quay: Quay) -> None:
    quay.enqueue(queue="email")

    assert quay.ferryman("pause", "email", "reports").stdout == "paused: email, reports\n"
    assert [queue["paused"] for queue in quay.lines("queues")] == [True, True]
    assert quay.ferryman("resume", "email").exit_code == 0
    assert [queue["paused"] for queue in quay.lines("queues")] == [False, True]


def test_a_queue_that_is_paused_before_its_first_job_is_asked_about(quay: Quay) -> None:
    quay.enqueue(queue="email")

    known, mistyped = quay.ferryman("pause", "email"), quay.ferryman("pause", "emial")

    assert known.stderr == ""
    assert mistyped.exit_code == 0
    assert "there is no queue 'emial' yet" in mistyped.stderr
    assert "did you mean 'email'?" in mistyped.stderr


@pytest.mark.parametrize("name", ["", "q" * 201])
def test_a_queue_that_cannot_be_is_not_paused(quay: Quay, name: str) -> None:
    result = quay.ferryman("pause", name)

    assert result.exit_code == 2
    assert "1 to 200 characters" in result.stderr
    assert quay.lines("queues") == []


@pytest.mark.parametrize("command", [("resume",), ("purge", "--yes")])
def test_a_queue_that_is_not_there_is_an_error(quay: Quay, command: tuple[str, ...]) -> None:
    result = quay.ferryman(*command, "emial")

    assert result.exit_code == 4
    assert "there is no queue 'emial'" in result.stderr


def test_purging_a_queue_leaves_finished_and_running_jobs(quay: Quay) -> None:
    worker = quay.start_worker()
    dead = quay.dead_letter()
    running = quay.enqueue()
    quay.claim(worker)
    quay.enqueue()
    quay.enqueue(delay=60_000)

    result = quay.ferryman("purge", "default", input="y\n")

    assert result.stdout == "2 jobs deleted\n"
    assert "Delete 2 jobs of queue 'default' for good?" in result.stderr
    assert quay.job(dead).state is State.DEAD
    assert quay.job(running).state is State.RUNNING


def test_a_worker_gets_its_order_with_the_next_heartbeat(quay: Quay) -> None:
    worker = quay.start_worker("dock-4711-abc")
    quay.start_worker("dock-4712-xyz")

    result = quay.ferryman("workers", "drain", "dock-4711")

    orders = quay.run(quay.app.store.heartbeat(worker, WorkerStatus(), 60_000)).orders
    assert result.stdout == "1 worker will drain with the next heartbeat\n"
    assert [order.kind for order in orders] == ["drain"]


def test_all_living_workers_can_be_told_at_once(quay: Quay) -> None:
    quay.start_worker("a")
    quay.start_worker("b")
    quay.run(quay.app.store.leave(quay.start_worker("c")))

    assert (
        quay.ferryman("workers", "pause", "--all").stdout == "2 workers will pause with the next heartbeat\n"
    )


@pytest.mark.parametrize(("ids", "code"), [(("nobody",), 4), (("dock",), 4), ((), 2), (("a", "--all"), 2)])
def test_an_order_for_nobody_is_an_error(quay: Quay, ids: tuple[str, ...], code: int) -> None:
    quay.start_worker("dock-1")
    quay.start_worker("dock-2")

    assert quay.ferryman("workers", "stop", *ids).exit_code == code
