"""The executor in a process of its own, as a supervisor starts it."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ferryman.job import OutcomeKind
from ferryman.worker.frames import URL_VARIABLE, Kind
from ferryman.worker.slots import monotonic_ms

from .supervising import Child, claim

TASKS = """
import os, signal, subprocess, sys, threading, time

from ferryman.app import App
from ferryman.context import Context

app = App("memory://")

@app.task
def noop(): ...

@app.task
async def anoop(): ...

@app.task
def where() -> dict[str, str]:
    return {"pid": str(os.getpid()), "path": sys.path[0], "argv": str(len(sys.argv)), "cwd": os.getcwd()}

@app.task
def spin(ctx: Context):
    ctx.note("spins")
    while True:
        pass

@app.task
def kill_self(number: int):
    os.kill(os.getpid(), number)

@app.task
def interrupts():
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)

@app.task
def signals_of_children() -> list[bool]:
    code = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    forked = os.fork()
    if not forked:
        os._exit(0 if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL else 1)
    _, status = os.waitpid(forked, 0)
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return [status == 0, started.stdout.strip() == "True"]

@app.task
def url_of_children() -> str:
    code = "import os; print(os.environ.get('FERRYMAN_URL_OF_COMMAND', 'none'))"
    started = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return started.stdout.strip()

@app.task
def spoil_the_thread():
    def watch(frame, event, argument):
        if frame.f_code.co_name == "_obey":
            raise RuntimeError("spoilt")
    sys.setprofile(watch)

@app.task
def leave_a_child_behind(ctx: Context):
    forked = os.fork()
    if not forked:
        time.sleep(60)
        os._exit(0)
    ctx.note(str(forked))
    threading.Event().wait()
"""

Starter = Callable[..., Child]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Starter]:
    (tmp_path / "tasks.py").write_text(TASKS)
    children: list[Child] = []

    def start(target: str = "tasks:app", places: int = 2) -> Child:
        children.append(Child(tmp_path, target, places))
        return children[-1]

    yield start
    for child in children:
        child.close()


def run_many(child: Child) -> None:
    for _ in range(1_000):
        child.run("tasks.noop")


def memory_of(pid: int) -> int:
    """Resident MiB of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) // 1024


def test_a_child_says_hello_runs_jobs_and_drains_with_status_zero(start: Starter, tmp_path: Path) -> None:
    child = start()

    hello = child.frame(Kind.HELLO).body
    outcome = child.run("tasks.where")
    child.assign([claim("tasks.anoop")], "loop")
    child.outcomes(1)
    child.send(Kind.DRAIN)
    child.frame(Kind.BYE)

    assert hello.pid == child.process.pid
    assert {task.name for task in hello.tasks} >= {"tasks.noop", "tasks.anoop"}
    assert outcome.result is not None
    for value in (str(hello.pid), str(tmp_path), "1"):
        assert value.encode() in outcome.result
    assert child.wait() == 0


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_child_is_small_before_the_users_imports(start: Starter) -> None:
    child = start(places=16)
    child.frame(Kind.HELLO)
    child.run("tasks.noop")

    assert memory_of(child.process.pid) < 45


def test_after_sigkill_the_slot_table_tells_what_was_started(start: Starter) -> None:
    child = start()
    child.frame(Kind.HELLO)
    before = monotonic_ms()
    child.assign([claim("tasks.noop") for _ in range(10)])
    child.outcomes(10)
    child.assign([claim("tasks.spin"), claim("tasks.spin"), *(claim("tasks.noop") for _ in range(5))])
    child.notes(2)

    os.kill(child.process.pid, signal.SIGKILL)
    left = child.rest()

    assert left == []
    assert child.wait() == -signal.SIGKILL
    assert child.table.started_upto("thread") == 12
    running = child.table.running("thread")
    assert sorted(each.serial for each in running) == [11, 12]
    assert all(before <= each.started_ms <= monotonic_ms() for each in running)
    assert child.table.started_upto("loop") == 0


def test_a_child_ends_at_once_when_its_supervisor_closes_the_socket(start: Starter) -> None:
    child = start()
    child.frame(Kind.HELLO)
    child.assign([claim("tasks.spin")])
    child.notes(1)

    child.sock.close()

    assert child.wait() == 1


def test_the_death_of_a_child_is_seen_though_a_task_left_a_fork_behind(start: Starter) -> None:
    child = start()
    child.frame(Kind.HELLO)
    child.assign([claim("tasks.leave_a_child_behind")])
    (note,) = child.notes(1)

    os.kill(child.process.pid, signal.SIGKILL)
    left = child.rest()

    assert left == []
    os.kill(int(note.text or ""), signal.SIGKILL)


def test_interrupts_and_terminations_are_left_to_the_supervisor(start: Starter) -> None:
    child = start()
    child.frame(Kind.HELLO)

    child.run("tasks.interrupts")

    assert child.run("tasks.noop").kind is OutcomeKind.SUCCEEDED


def test_programs_that_tasks_start_can_be_terminated(start: Starter) -> None:
    child = start()
    child.frame(Kind.HELLO)

    outcome = child.run("tasks.signals_of_children")

    assert outcome.result == b"\x01\x92\xc3\xc3"


def test_programs_that_tasks_start_do_not_inherit_the_url_of_the_command(
    start: Starter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "sqlite:///of-the-command.db")
    child = start()

    hello = child.frame(Kind.HELLO).body
    outcome = child.run("tasks.url_of_children")

    assert hello.url == "sqlite:///of-the-command.db"
    assert outcome.result is not None
    assert b"none" in outcome.result


def test_a_child_that_hogs_its_interpreter_still_answers_a_ping(start: Starter) -> None:
    child = start(places=4)
    child.frame(Kind.HELLO)
    child.assign([claim("tasks.spin") for _ in range(3)])
    child.notes(3)

    child.send(Kind.PING, 5)

    assert child.frame(Kind.PONG).body == 5
    assert child.run("tasks.noop").kind is OutcomeKind.SUCCEEDED


def test_an_app_that_cannot_be_imported_is_told_with_its_whole_story(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        textwrap.dedent("""
        from ferryman.app import App
        app = App("memory://")
        def deep():
            import surely_not_installed
        deep()
        """)
    )

    child = start("broken:app")
    story = child.frame(Kind.BROKEN).body

    assert story.startswith("the module 'broken' was found, but importing it raised ModuleNotFoundError: ")
    assert "broken.py" in story
    assert "in deep" in story
    assert "importlib" not in story
    assert child.wait() == 2


def test_a_missing_attribute_is_told_with_the_near_miss(start: Starter) -> None:
    child = start("tasks:ap")

    story = child.frame(Kind.BROKEN).body

    assert story == "the module 'tasks' has no attribute 'ap'; did you mean app?"


def test_a_task_whose_annotations_make_no_sense_is_told(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "from ferryman.app import App\n"
        "app = App('memory://')\n"
        "@app.task\n"
        "def f(x: 'list[int] | dict[int, str] | set[int]'): ...\n"
    )

    child = start("odd:app")

    assert "the app odd:app cannot be run" in child.frame(Kind.BROKEN).body


def test_an_untouched_log_goes_to_stderr(start: Starter, tmp_path: Path) -> None:
    (tmp_path / "logs.py").write_text(
        "import logging\n"
        "from ferryman.app import App\n"
        "app = App('memory://')\n"
        "@app.task\n"
        "def f(): logging.getLogger('mine').info('a line of mine')\n"
    )
    child = start("logs:app")
    child.frame(Kind.HELLO)

    child.run("logs.f")
    child.send(Kind.DRAIN)
    child.frame(Kind.BYE)
    _, errors = child.process.communicate(timeout=30)

    assert b"INFO mine" in errors
    assert b"a line of mine" in errors


def test_an_executor_that_cannot_listen_any_more_ends(start: Starter) -> None:
    child = start()
    child.run("tasks.spoil_the_thread")

    # Sooner or later it is that thread that listens.
    with pytest.raises(EOFError):
        run_many(child)

    assert child.wait() == 1
