"""Commands that only look: queues, jobs, workers and why."""

from __future__ import annotations

import pytest

from ferryman.app import App
from ferryman.clock import ManualClock, SystemClock
from ferryman.job import ErrorInfo, JobId, NewJob, OutcomeKind, State, new_id
from ferryman.store.records import JobNote

from .conftest import Quay


def test_queues_shows_jobs_by_state_and_who_serves_them(quay: Quay) -> None:
    quay.enqueue(queue="email")
    quay.enqueue(queue="email", delay=60_000)
    quay.dead_letter(queue="email")
    quay.run(quay.app.store.pause(["reports"], True))
    quay.start_worker(queues=["email"])

    email, reports = quay.lines("queues")

    assert email["queue"] == "email"
    assert (email["ready"], email["scheduled"], email["dead"], email["running"]) == (1, 1, 1, 0)
    assert email["workers"] == 1
    assert email["oldest_ready_ms"] >= 0
    assert email["oldest_ready_at"].endswith("Z")
    assert reports["queue"] == "reports"
    assert reports["paused"] is True
    assert reports["workers"] == 0


def test_queues_can_be_shown_lane_by_lane(quay: Quay) -> None:
    quay.enqueue(priority=5)
    quay.enqueue(priority=-5)

    lanes = quay.lines("queues", "--lanes")

    assert [(lane["priority"], lane["ready"]) for lane in lanes] == [(5, 1), (-5, 1)]


def test_queues_for_people_marks_paused_ones(quay: Quay) -> None:
    quay.enqueue(queue="email")
    quay.run(quay.app.store.pause(["email"], True))

    shown = quay.ferryman("queues").stdout

    assert shown.splitlines()[0].split()[:3] == ["QUEUE", "READY", "SCHEDULED"]
    assert "email (paused)" in shown


def test_jobs_are_listed_newest_first_and_filtered(quay: Quay) -> None:
    first = quay.enqueue(queue="email", tags=("vip",))
    second = quay.enqueue(queue="email")
    quay.enqueue(queue="reports")

    assert [job["id"] for job in quay.lines("jobs", "list", "--queue", "email")] == [second, first]
    assert [job["id"] for job in quay.lines("jobs", "list", "--tag", "vip")] == [first]
    assert len(quay.lines("jobs", "list", "--limit", "2")) == 2
    assert quay.lines("jobs", "list", "--state", "running") == []
    assert quay.lines("jobs", "list", "--until", "10m") == []
    assert len(quay.lines("jobs", "list", "--since", "10m", "--task", "app.add")) == 3


def test_a_list_longer_than_a_page_is_whole(quay: Quay) -> None:
    jobs = [quay.app._job_by_name("app.add", (), {"a": n}) for n in range(1_234)]
    quay.app.enqueue_jobs(jobs)

    listed = quay.lines("jobs", "list", "--limit", "1100")

    assert [job["id"] for job in listed] == [job.id for job in reversed(jobs)][:1_100]


@pytest.mark.parametrize("listing", ["jobs", "dead"])
@pytest.mark.parametrize("limit", ["-1", "0", "many"])
def test_a_list_of_less_than_one_is_refused(quay: Quay, listing: str, limit: str) -> None:
    result = quay.ferryman(listing, "list", "--limit", limit)

    assert result.exit_code == 2
    assert "--limit" in result.stderr


@pytest.mark.parametrize("listing", ["jobs", "dead"])
def test_limits_and_times_beyond_all_jobs_mean_all_jobs(quay: Quay, listing: str) -> None:
    job = quay.dead_letter()
    beyond = ["--limit", "9" * 20, "--since", "36500d"]

    assert [each["id"] for each in quay.lines(listing, "list", *beyond)] == [job]


def test_no_match_is_no_error(quay: Quay) -> None:
    result = quay.ferryman("jobs", "list", "--queue", "nothing")

    assert result.exit_code == 0
    assert result.stdout == ""
    assert result.stderr == "no jobs match\n"


def test_a_job_is_shown_with_its_whole_life(quay: Quay) -> None:
    worker = quay.start_worker()
    traceback = (
        'Traceback (most recent call last):\n  File "app.py", line 3, in add\n    boom()\nValueError: boom\n'
    )
    job = quay.enqueue(arguments={"a": 1, "to": "a@example.com"}, max_attempts=3)
    child = quay.enqueue(after=(job,))
    (claim,) = quay.claim(worker)
    quay.run(quay.app.store.annotate(worker, [JobNote(job, claim.lease, 0.5, "half way")]))
    quay.settle(worker, claim, OutcomeKind.RETRY, error=ErrorInfo("ValueError", "boom", traceback))
    (claim,) = quay.claim(worker)
    quay.settle(worker, claim, OutcomeKind.SUCCEEDED, result=quay.app.codec.encode({"sum": 3}))

    shown = quay.ferryman("jobs", "show", job).stdout

    expected = [
        f"{job}  app.add  succeeded",
        "attempts   2 of 3",
        "arguments  a = 1",
        'to = "a@example.com"',
        'result     {"sum":3}',
        f"children   {child}",
        "enqueued in queue default",
        "attempt 1 started on w1",
        "attempt 1 failed after",
        "ValueError: boom",
        'File "app.py", line 3, in add',
        "attempt 2 started on w1",
        "succeeded after",
    ]
    places = [shown.find(text) for text in expected]
    assert -1 not in places, expected[places.index(-1)]
    assert places == sorted(places)
    assert "note: half way" in shown


def test_a_job_s_life_is_one_object_for_programs(quay: Quay) -> None:
    job = quay.dead_letter(arguments={"a": 7})

    (shown,) = quay.lines("jobs", "show", job)

    assert shown["id"] == job
    assert shown["state"] == "dead"
    assert shown["arguments"] == {"a": 7}
    assert shown["attempts"][0]["outcome"] == "dead"
    assert shown["attempts"][0]["error"]["type"] == "ValueError"
    assert shown["finished_at_ms"] >= shown["enqueued_at_ms"]


def test_arguments_that_cannot_be_decoded_do_not_hide_the_job(quay: Quay) -> None:
    job = quay.enqueue()
    assert quay.run(quay.app.store.edit(job, b"\x13secret"))

    result = quay.ferryman("jobs", "show", job)

    assert result.exit_code == 0
    assert "bytes that cannot be shown: the payload has format number 19" in result.stdout


def test_an_id_may_be_shortened_while_it_tells_jobs_apart(quay: Quay) -> None:
    job = quay.enqueue()
    twins = [JobId(job[:20] + tail * 12) for tail in "ab"]

    assert quay.lines("jobs", "show", job[:14])[0]["id"] == job
    for twin in twins:
        quay.enqueue(id=twin)
    result = quay.ferryman("jobs", "show", job[:14])
    assert result.exit_code == 2
    assert "too short to tell jobs apart" in result.stderr
    assert all(twin in result.stderr.replace("\n", " ") for twin in twins)


def test_a_shortened_id_is_found_among_many_of_other_times(quay: Quay) -> None:
    clock = ManualClock(SystemClock().now() - 100 * 600_000)
    old = App(quay.url, clock=clock)
    jobs = []
    for _ in range(100):
        job = new_job(clock)
        old.enqueue_jobs([job])
        jobs.append(job.id)
        clock.advance(600)
    old.close()

    for job_id in (jobs[0], jobs[42], jobs[-1]):
        assert quay.lines("jobs", "show", job_id[:9])[0]["id"] == job_id
    assert quay.ferryman("jobs", "show", "012345").exit_code == 4


def new_job(clock: ManualClock) -> NewJob:
    """A job whose id carries the clock's time, as that of any producer does."""
    id_ = JobId(f"{clock.now():012x}{new_id()[12:]}")
    return NewJob(id=id_, task="app.add", args=b"\x01\x80")


def test_an_id_may_be_written_as_a_uuid(quay: Quay) -> None:
    job = quay.enqueue()
    dashed = f"{job[:8]}-{job[8:12]}-{job[12:16]}-{job[16:20]}-{job[20:]}".upper()

    assert quay.lines("jobs", "show", dashed)[0]["id"] == job


@pytest.mark.parametrize(("text", "code"), [("0" * 32, 4), ("019a00", 4), ("12345", 2), ("no-job", 2)])
def test_an_id_that_means_no_job_is_an_error_with_a_code(quay: Quay, text: str, code: int) -> None:
    result = quay.ferryman("jobs", "show", text)

    assert result.exit_code == code
    assert text.replace("-", "") in result.stderr.replace("-", "")


def test_workers_shows_the_living_and_the_gone(quay: Quay) -> None:
    quay.start_worker("dock-1", queues=["email"])
    gone = quay.start_worker("dock-2")
    quay.run(quay.app.store.leave(gone))

    shown = {worker["id"]: worker for worker in quay.lines("workers")}

    assert shown["dock-1"]["state"] == "active"
    assert shown["dock-1"]["queues"] == ["email"]
    assert shown["dock-1"]["concurrency"] == 4
    assert shown["dock-2"]["state"] == "stopped"
    assert "0/4" in quay.ferryman("workers").stdout


def test_why_says_what_keeps_a_job_from_running(quay: Quay) -> None:
    ready = quay.enqueue()
    delayed = quay.enqueue(delay=3_600_000)
    child = quay.enqueue(after=(ready,))

    def sentence(job: JobId) -> str:
        result = quay.ferryman("why", job)
        assert result.exit_code == 0
        return result.stdout

    assert "No worker is alive" in sentence(ready)
    assert "may run in" in sentence(delayed)
    assert f"waits for 1 job to finish: {ready} (app.add, ready)" in sentence(child)
    quay.start_worker("w1", tasks=["app.sub"])
    assert "knows the task 'app.add'" in sentence(ready)
    quay.start_worker("w2")
    assert "it is next in its lane" in sentence(ready)
    quay.run(quay.app.store.pause(["default"], True))
    assert "is paused" in sentence(ready)


def test_why_names_the_jobs_that_hold_the_key(quay: Quay) -> None:
    worker = quay.start_worker()
    holder = quay.enqueue(key="customer-7")
    parked = quay.enqueue(key="customer-7")
    quay.claim(worker)

    (told,) = quay.lines("why", parked)

    assert quay.job(parked).state is State.PARKED
    assert told["code"] == "key-full"
    assert f"held by {holder}, which is running" in told["sentence"]


def test_why_of_a_running_job_names_its_worker(quay: Quay) -> None:
    worker = quay.start_worker()
    job = quay.enqueue()
    quay.claim(worker)

    assert quay.lines("why", job)[0]["code"] == "running"
    assert "on worker w1" in quay.ferryman("why", job).stdout
