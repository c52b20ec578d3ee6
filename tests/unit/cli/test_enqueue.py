"""Jobs made by hand."""

from __future__ import annotations

import pytest

from ferryman.job import JobId, OutcomeKind, State

from .conftest import APP, Quay


def test_the_id_of_the_new_job_is_printed(quay: Quay) -> None:
    result = quay.ferryman("enqueue", "app.add", "a=1", "to=a@example.com", 'tags=["x"]')

    job = quay.job(JobId(result.stdout.strip()))
    assert (job.task, job.queue, job.state) == ("app.add", "default", State.READY)
    assert quay.app.codec.decoder(dict)(job.args) == {"a": 1, "to": "a@example.com", "tags": ["x"]}


def test_options_say_where_and_when_it_runs(quay: Quay) -> None:
    parent = quay.enqueue()
    options = [
        "--queue",
        "email",
        "--priority",
        "high",
        "--delay",
        "10m",
        "--max-attempts",
        "2",
        "--tag",
        "vip",
        "--key",
        "k",
        "--tenant",
        "acme",
    ]

    (made,) = quay.lines("enqueue", "app.add", "a=1", *options, "--after", parent)

    job = quay.job(made["id"])
    assert (job.queue, job.priority, job.max_attempts) == ("email", 5, 2)
    assert (job.tags, job.key, job.tenant, job.state) == (("vip",), "k", "acme", State.WAITING)
    assert job.run_at - job.enqueued_at == 600_000


def test_arguments_can_be_one_json_object_or_come_from_a_pipe(quay: Quay) -> None:
    typed = quay.ferryman("enqueue", "app.add", "--args", '{"a": 1}').stdout.strip()
    piped = quay.ferryman("enqueue", "app.add", "--args", "-", input='{"a": 2}').stdout.strip()

    decode = quay.app.codec.decoder(dict)
    assert decode(quay.job(JobId(typed)).args) == {"a": 1}
    assert decode(quay.job(JobId(piped)).args) == {"a": 2}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--args", "{"), "is no JSON"),
        (("--args", "1"), "must be a JSON object"),
        (("--args", "{}", "a=1"), "not both"),
        (("1",), "name the arguments, as in a=1, or give --app"),
        (("--priority", "soon"), "priority 'soon' is none of low, normal"),
        (("--priority", "12"), "does not lie between -9 and 9"),
        (("--delay", "soon"), "is no duration"),
        (("--after", "f" * 31), "no job"),
        (("--max-attempts", "0"), "--max-attempts"),
        (("--max-attempts", "9" * 20), "--max-attempts"),
        (("--delay", "9" * 20), "is no duration"),
        (("--key", ""), "it is empty"),
        (("--unique", ""), "it is empty"),
        (("--tag", ""), "it is empty"),
        (("--tenant", ""), "it is empty"),
        (("a=1", "a=2"), "'a' is given twice"),
        (("--wait-timeout", "1"), "--wait, which is not given"),
    ],
)
def test_a_wrong_call_stores_nothing(quay: Quay, arguments: tuple[str, ...], words: str) -> None:
    result = quay.ferryman("enqueue", "app.add", *arguments)

    assert result.exit_code in (2, 4)
    assert words in result.stderr
    assert quay.states() == []


def test_a_unique_key_makes_one_job(quay: Quay) -> None:
    (first,) = quay.lines("enqueue", "app.add", "--unique", "nightly")
    again = quay.ferryman("enqueue", "app.add", "--unique", "nightly")

    assert first["duplicate"] is False
    assert again.stdout.strip() == first["id"]
    assert "has this unique key already" in again.stderr


def test_an_app_checks_the_arguments(quay: Quay) -> None:
    (quay.folder / "counter.py").write_text(APP)

    wrong = quay.ferryman("enqueue", "app.add", "a=one", "--app", "counter:app")
    unknown = quay.ferryman("enqueue", "app.ad", "a=1", "--app", "counter")
    right = quay.ferryman("enqueue", "app.add", "1", "b=2", "--max-attempts", "7", "--app", "counter:app")

    assert wrong.exit_code == 2
    assert "do not fit app.add" in wrong.stderr
    assert unknown.exit_code == 2
    assert "did you mean 'app.add'?" in unknown.stderr
    job = quay.job(JobId(right.stdout.strip()))
    assert (job.queue, job.max_attempts) == ("sums", 7)


def test_a_unique_key_goes_together_with_an_app(quay: Quay) -> None:
    (quay.folder / "monthly.py").write_text(APP)
    command = ("enqueue", "app.add", "a=1", "--app", "monthly:app", "--unique", "nightly")

    first, again = quay.lines(*command)[0], quay.lines(*command)[0]

    assert (first["duplicate"], again["duplicate"]) == (False, True)
    assert first["id"] == again["id"]


def test_a_task_that_runs_at_most_once_takes_no_number_of_attempts(quay: Quay) -> None:
    (quay.folder / "careful.py").write_text(APP.replace('queue="sums"', "at_most_once=True"))

    result = quay.ferryman("enqueue", "app.add", "a=1", "--app", "careful:app", "--max-attempts", "3")

    assert result.exit_code == 2
    assert "app.add runs at most once" in result.stderr
    assert quay.states() == []


@pytest.mark.parametrize("app", [(), ("--app", "patient:app")])
def test_a_number_of_attempts_leaves_the_backoff_to_the_task(quay: Quay, app: tuple[str, ...]) -> None:
    policy = "retry=Retry(backoff=lambda attempt: 60.0, give_up_on=(KeyError,))"
    code = APP.replace('queue="sums"', policy)
    (quay.folder / "patient.py").write_text(f"from ferryman import Retry\n{code}")

    made = quay.ferryman("enqueue", "app.add", "a=1", "--max-attempts", "3", *app).stdout.strip()

    job = quay.job(JobId(made))
    assert job.max_attempts == 3
    assert job.options is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:app", "there is no module 'nowhere'"),
        ("broken:app", "ZeroDivisionError"),
        ("teller:application", "has no attribute 'application'"),
    ],
)
def test_an_app_that_is_not_there_is_explained(quay: Quay, name: str, words: str) -> None:
    (quay.folder / "teller.py").write_text(APP)
    (quay.folder / "broken.py").write_text("1 / 0\n")

    result = quay.ferryman("enqueue", "app.add", "a=1", "--app", name)

    assert result.exit_code == 2
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_the_url_of_the_command_line_outranks_the_app_s(quay: Quay) -> None:
    (quay.folder / "clerk.py").write_text(APP)

    result = quay.ferryman("--url", "sqlite:///other.db", "enqueue", "app.add", "a=1", "--app", "clerk:app")

    assert result.exit_code == 0
    assert quay.states() == []
    assert quay.ferryman("jobs", "list", "--url", "sqlite:///other.db").stdout.count("app.add") == 1


def test_a_result_can_be_waited_for(quay: Quay) -> None:
    worker = quay.start_worker()
    (first,) = quay.lines("enqueue", "app.add", "--unique", "k")
    (claim,) = quay.claim(worker)
    quay.settle(worker, claim, OutcomeKind.SUCCEEDED, result=quay.app.codec.encode(3))

    late = quay.ferryman("enqueue", "app.add", "--queue", "slow", "--wait", "--wait-timeout", "0.01")

    assert quay.ferryman("jobs", "wait", first["id"]).stdout == "3\n"
    assert late.exit_code == 1
    assert len(late.stdout.strip()) == 32
