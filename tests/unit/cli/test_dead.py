"""Dead letters: listed, explained, mended and replayed."""

from __future__ import annotations

import sys

import pytest

from ferryman.job import ErrorInfo, State

from .conftest import APP, Quay

TIMEOUT = ErrorInfo("TimeoutError", "no answer\nfrom the other side")


def test_dead_letters_are_listed_with_their_causes(quay: Quay) -> None:
    job = quay.dead_letter()
    quay.enqueue()

    (letter,) = quay.lines("dead", "list")

    assert (letter["id"], letter["reason"]) == (job, "ValueError: boom")
    assert "ValueError: boom" in quay.ferryman("dead", "list").stdout


def test_causes_count_what_died_alike(quay: Quay) -> None:
    for error in (TIMEOUT, TIMEOUT, None):
        quay.dead_letter(error)

    causes = quay.lines("dead", "causes")

    assert [(cause["cause"], cause["count"]) for cause in causes] == [
        ("TimeoutError: no answer", 2),
        ("ValueError: boom", 1),
    ]
    assert causes[0]["first_ms"] <= causes[0]["last_ms"]


def test_letters_of_one_cause_are_replayed(quay: Quay) -> None:
    late, wrong = quay.dead_letter(TIMEOUT), quay.dead_letter()

    result = quay.ferryman("dead", "replay", "--cause", "TimeoutError: no answer", "--yes")

    assert result.stdout == "1 job will run again\n"
    assert (quay.job(late).state, quay.job(wrong).state) == (State.READY, State.DEAD)


def test_all_letters_are_replayed_after_a_yes(quay: Quay) -> None:
    jobs = [quay.dead_letter() for _ in range(3)]

    result = quay.ferryman("dead", "replay", "--all", input="y\n")

    assert "Replay 3 jobs?" in result.stderr
    assert {quay.job(job).state for job in jobs} == {State.READY}


def test_purging_deletes_letters_and_nothing_else(quay: Quay) -> None:
    quay.dead_letter()
    job = quay.enqueue()

    assert quay.ferryman("dead", "purge", "--all", "--yes").stdout == "1 job deleted\n"
    assert quay.job(job).state is State.READY
    assert quay.ferryman("dead", "purge", job, "--yes").exit_code == 1


def test_a_job_that_is_no_letter_is_not_shown_as_one(quay: Quay) -> None:
    job = quay.enqueue()

    result = quay.ferryman("dead", "show", job)

    assert result.exit_code == 4
    assert "is no dead letter: it is ready" in result.stderr


def test_arguments_are_edited_and_the_job_replayed(quay: Quay) -> None:
    job = quay.dead_letter(arguments={"a": "one"})

    result = quay.ferryman("dead", "edit", job, "--args", '{"a": 1}', "--replay")

    assert result.exit_code == 0
    assert quay.job(job).state is State.READY
    assert quay.lines("jobs", "show", job)[0]["arguments"] == {"a": 1}


def test_arguments_are_edited_in_the_user_s_editor(quay: Quay, monkeypatch: pytest.MonkeyPatch) -> None:
    job = quay.dead_letter(arguments={"a": "one", "b": 2})
    script = quay.folder / "editor.py"
    script.write_text(
        "import pathlib, sys\nfile = pathlib.Path(sys.argv[1])\n"
        "file.write_text(file.read_text().replace('\"one\"', '1'))\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {script}")

    result = quay.ferryman("dead", "edit", job)

    assert result.stdout == f"{job} has new arguments\n"
    assert quay.job(job).state is State.DEAD
    assert quay.lines("jobs", "show", job)[0]["arguments"] == {"a": 1, "b": 2}


def test_an_editor_that_changes_nothing_leaves_the_job_alone(
    quay: Quay, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = quay.dead_letter()
    monkeypatch.setenv("EDITOR", "true")

    result = quay.ferryman("dead", "edit", job)

    assert result.exit_code == 0
    assert result.stderr == "nothing was changed\n"


def test_an_editor_that_fails_is_named_and_leaves_the_job_alone(
    quay: Quay, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = quay.dead_letter()
    monkeypatch.setenv("EDITOR", "false")

    result = quay.ferryman("dead", "edit", job)

    assert result.exit_code == 2
    assert result.stderr.startswith("ferryman: the editor cannot be used (false: ")


@pytest.mark.parametrize("text", ["{", "[1]", "1"])
def test_arguments_that_are_no_object_are_refused(quay: Quay, text: str) -> None:
    job = quay.dead_letter()

    result = quay.ferryman("dead", "edit", job, "--args", text)

    assert result.exit_code == 2
    assert "must be one JSON object" in result.stderr


def test_edited_arguments_are_checked_against_the_task_of_an_app(quay: Quay) -> None:
    (quay.folder / "ledger.py").write_text(APP)
    job = quay.dead_letter()

    wrong = quay.ferryman("dead", "edit", job, "--args", '{"a": "x"}', "--app", "ledger:app")
    right = quay.ferryman("dead", "edit", job, "--args", '{"a": 5}', "--app", "ledger:app")

    assert wrong.exit_code == 2
    assert "Expected `int`" in wrong.stderr
    assert right.exit_code == 0


def test_arguments_with_bytes_are_not_given_to_an_editor(quay: Quay) -> None:
    job = quay.dead_letter(arguments={"data": b"\x00"})

    result = quay.ferryman("dead", "edit", job)

    assert result.exit_code == 2
    assert "hold bytes, which JSON cannot" in result.stderr
