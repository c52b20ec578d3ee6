"""Enqueue: all or none, kept at once, and never twice."""

from __future__ import annotations

import pytest

from ferryman.errors import UnknownParent
from ferryman.job import JobId, State, UniqueKey, new_id
from ferryman.store.records import Enqueued

from .driver import Ferry, new_job


def test_an_enqueued_job_is_kept_with_all_that_was_said_of_it(ferry: Ferry) -> None:
    asked = new_job(
        task="send",
        args=b"\x00\xffargs",
        queue="email",
        priority=3,
        options=b"\x01options",
        max_attempts=4,
        deadline=ferry.clock.now() + 60_000,
        key="account-7",
        tenant="acme",
        tags=("red", "blue"),
    )

    (answer,) = ferry.enqueue(asked)

    job = ferry.job(asked.id)
    assert answer == Enqueued(asked.id)
    assert (job.task, job.args, job.options) == ("send", b"\x00\xffargs", b"\x01options")
    assert (job.queue, job.priority, job.max_attempts) == ("email", 3, 4)
    assert (job.deadline, job.key, job.tenant) == (ferry.clock.now() + 60_000, "account-7", "acme")
    assert job.tags == ("red", "blue")
    assert job.state is State.READY
    assert (job.attempt, job.deaths) == (0, 0)
    assert (job.enqueued_at, job.run_at) == (ferry.clock.now(), ferry.clock.now())
    assert (job.started_at, job.finished_at, job.worker, job.result) == (None, None, None, None)


def test_an_empty_batch_does_nothing(ferry: Ferry) -> None:
    assert ferry.enqueue() == []
    assert ferry.jobs() == []


def test_answers_come_in_the_order_of_the_jobs(ferry: Ferry) -> None:
    jobs = [new_job(queue="ab"[n % 2], priority=n % 3, delay=n % 5) for n in range(50)]

    answers = ferry.enqueue(*jobs)

    assert answers == [Enqueued(job.id) for job in jobs]


def test_arrival_numbers_grow_within_a_batch_and_from_batch_to_batch(ferry: Ferry) -> None:
    ids = [*ferry.add_many(3), *ferry.add_many(3, priority=5), *ferry.add_many(3, queue="other")]

    numbers = [ferry.job(job).seq for job in ids]

    assert numbers == sorted(set(numbers))


def test_an_enqueue_repeated_after_a_lost_answer_makes_no_second_job(ferry: Ferry) -> None:
    job = new_job(args=b"first")
    ferry.enqueue(job)

    (again,) = ferry.enqueue(new_job(id=job.id, args=b"second"))

    assert again == Enqueued(job.id, duplicate=True)
    assert [kept.id for kept in ferry.jobs()] == [job.id]
    assert ferry.job(job.id).args == b"first"


def test_an_enqueue_repeated_after_the_job_has_finished_does_not_run_it_again(ferry: Ferry) -> None:
    job = new_job()
    ferry.enqueue(job)
    ferry.finish_next()

    (again,) = ferry.enqueue(job)

    assert again.duplicate
    assert ferry.state(job.id) is State.SUCCEEDED
    assert ferry.claim() == []


def test_a_duplicate_makes_no_queue_of_its_own(ferry: Ferry) -> None:
    job = ferry.add()

    ferry.enqueue(new_job(id=job, queue="elsewhere"))

    assert [queue.settings.name for queue in ferry.run(ferry.store.queues())] == ["default"]


def test_the_same_id_twice_in_a_batch_is_one_job(ferry: Ferry) -> None:
    job = new_job()

    answers = ferry.enqueue(job, job)

    assert answers == [Enqueued(job.id), Enqueued(job.id, duplicate=True)]
    assert len(ferry.jobs()) == 1


@pytest.mark.parametrize("key", [None, "k"])
def test_arguments_and_results_may_be_empty_or_any_bytes(ferry: Ferry, key: str | None) -> None:
    every_byte = bytes(range(256))
    empty, full = ferry.add(args=b"", key=key), ferry.add(args=every_byte, key=key)

    for result in (b"", every_byte):
        claim = ferry.take()
        assert claim.args == result
        ferry.succeed(claim, result=result)

    assert (ferry.job(empty).args, ferry.job(empty).result) == (b"", b"")
    assert (ferry.job(full).args, ferry.job(full).result) == (every_byte, every_byte)


def test_arguments_of_a_batch_do_not_run_together(ferry: Ferry) -> None:
    jobs = [new_job(args=b"x" * (n % 7) + bytes([n])) for n in range(50)]

    ferry.enqueue(*jobs)

    assert [claim.args for claim in ferry.claim(50)] == [job.args for job in jobs]


def test_a_duplicate_in_a_batch_does_not_keep_the_others_from_being_stored(ferry: Ferry) -> None:
    known = new_job()
    ferry.enqueue(known)
    first, last = new_job(), new_job()

    answers = ferry.enqueue(first, known, last)

    assert [answer.duplicate for answer in answers] == [False, True, False]
    assert [job.id for job in ferry.jobs()] == [known.id, first.id, last.id]


def test_a_refused_batch_leaves_nothing_behind(ferry: Ferry) -> None:
    good = [new_job(key="k"), new_job(unique=UniqueKey("u")), new_job(queue="never-seen", delay=5)]

    with pytest.raises(UnknownParent):
        ferry.enqueue(*good, new_job(after=(new_id(),)))

    assert ferry.jobs() == []
    assert [queue.settings.name for queue in ferry.run(ferry.store.queues())] == []
    assert ferry.enqueue(*good) == [Enqueued(job.id) for job in good]


def test_an_enqueue_repeated_after_its_parent_was_forgotten_is_still_a_duplicate(ferry: Ferry) -> None:
    parent = ferry.add()
    ferry.finish_next()
    child = new_job(after=(parent,))
    ferry.enqueue(child)
    ferry.drain()
    ferry.delete(parent)

    (again,) = ferry.enqueue(child)

    assert again == Enqueued(child.id, duplicate=True)


def test_a_thousand_jobs_go_in_at_once(ferry: Ferry) -> None:
    ids = ferry.add_many(1_000)

    assert [job.id for job in ferry.jobs()] == ids


def test_a_job_that_the_store_does_not_have_reads_as_none(ferry: Ferry) -> None:
    known, unknown = ferry.add(), JobId("0" * 32)

    found = ferry.run(ferry.store.get([unknown, known, unknown]))

    assert [job and job.id for job in found] == [None, known, None]
    assert ferry.run(ferry.store.history(unknown)) is None
