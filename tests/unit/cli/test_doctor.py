"""The doctor: what it finds, and what it says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferryman.cli.checks import file_system_of

from .conftest import Quay

MOUNTS = """\
/dev/vda1 / ext4 rw 0 0
server:/export /srv nfs4 rw 0 0
tmpfs /srv/fast tmpfs rw 0 0
/dev/vdb /srv/two\\040words xfs rw 0 0
"""


def findings(quay: Quay, level: str) -> list[str]:
    """What is wrong, as `name: finding`."""
    result = quay.ferryman("doctor")
    sign = {"ok": "✓", "warning": "!", "problem": "✗"}[level]
    return [line[2:] for line in result.stdout.splitlines() if line.startswith(sign)]


def test_a_sound_set_up_has_no_problem(quay: Quay) -> None:
    quay.start_worker()

    result = quay.ferryman("doctor")

    assert result.exit_code == 0, result.stdout
    assert "✓ store: opens, reads and writes" in result.stdout
    assert "✓ workers: 1 alive, with 4 places" in result.stdout
    assert "✓ dead letters: none" in result.stdout


def test_ready_jobs_without_any_worker_are_a_problem(quay: Quay) -> None:
    quay.enqueue()

    result = quay.ferryman("doctor")

    assert result.exit_code == 1
    assert "✗ workers: none is alive, and 1 job is ready" in result.stdout
    assert "→ start one: ferryman worker app:app" in result.stdout


def test_a_queue_that_no_worker_serves_is_a_problem(quay: Quay) -> None:
    quay.start_worker(queues=["email"])
    quay.enqueue(queue="reports")

    assert findings(quay, "problem") == ["queues: no worker serves 'reports', which has 1 job ready"]


def test_a_task_that_no_worker_knows_is_a_problem(quay: Quay) -> None:
    quay.start_worker(tasks=["app.sub"])
    quay.enqueue()

    assert findings(quay, "problem") == ["tasks: jobs are ready whose task no worker knows: app.add"]


def test_paused_backlog_and_dead_letters_are_warnings(quay: Quay) -> None:
    quay.dead_letter()
    quay.start_worker()
    quay.enqueue()
    quay.run(quay.app.store.pause(["default"], True))

    warnings = findings(quay, "warning")

    assert "queues: 'default' is paused, with 1 job ready" in warnings
    assert "dead letters: 1, most often app.add: ValueError: boom" in warnings
    assert quay.ferryman("doctor").exit_code == 0


def test_a_store_that_is_not_there_yet_is_not_made(quay: Quay) -> None:
    result = quay.ferryman("doctor", "--url", "sqlite:///new.db")

    assert result.exit_code == 0
    assert "! file: new.db does not exist yet" in result.stdout
    assert not Path("new.db").exists()


def test_a_directory_that_is_not_there_is_a_problem(quay: Quay) -> None:
    result = quay.ferryman("doctor", "--url", "sqlite:///nowhere/new.db")

    assert result.exit_code == 1
    assert "→ mkdir -p" in result.stdout


def test_a_file_that_is_no_store_is_a_problem(quay: Quay) -> None:
    Path("notes.txt").write_text("not a database, and long enough to be told from an empty one" * 100)

    result = quay.ferryman("doctor", "--url", "sqlite:///notes.txt")

    assert result.exit_code == 1
    assert "✗ store: " in result.stdout


def test_a_wrong_setting_is_a_problem(quay: Quay) -> None:
    Path("ferryman.toml").write_text("[worker]\nconcurency = 3\n")

    result = quay.ferryman("doctor")

    assert result.exit_code == 1
    assert "did you mean 'concurrency'?" in result.stdout


def test_programs_get_an_object_for_each_check(quay: Quay) -> None:
    checks = quay.lines("doctor")

    assert {"level", "name", "finding", "remedy"} == set(checks[0])
    assert {check["level"] for check in checks} <= {"ok", "warning"}


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("/home", "ext4"),
        ("/srv", "nfs4"),
        ("/srv/jobs", "nfs4"),
        ("/srv/fast/x", "tmpfs"),
        ("/srv/two words", "xfs"),
    ],
)
def test_a_file_lies_on_the_innermost_mount(folder: str, kind: str) -> None:
    assert file_system_of(Path(folder), MOUNTS) == kind


def test_an_app_that_cannot_be_loaded_is_a_problem_of_its_own(quay: Quay) -> None:
    result = quay.ferryman("doctor", "--app", "nowhere:app")

    assert result.exit_code == 1
    assert "✗ app: there is no module 'nowhere'" in result.stdout
    assert "→ mend the module, or name another with --app" in result.stdout


def test_what_lies_beside_the_file_counts_as_its_size(quay: Quay) -> None:
    quay.app.close()
    Path("jobs.db-wal").write_bytes(bytes(2 * 1024**2))

    (found,) = [line for line in findings(quay, "ok") if line.startswith("file: ")]

    assert found == "file: jobs.db, 2 MiB"
