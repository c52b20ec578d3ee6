"""The program as shells see it: exit codes, pipes, terminals, signals and what it imports."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ferryman.cli.root import root

from .conftest import Quay

# Whoever starts the tests may have had ^C ignored, which children inherit.
HEED = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PROGRAM = [sys.executable, "-c", f"{HEED}; from ferryman.cli import main; main()"]


def test_help_lists_every_command_and_imports_none() -> None:
    script = (
        "import sys\nfrom ferryman.cli.root import root\n"
        "root.main(['--help'], standalone_mode=False)\n"
        "print(sorted(name for name in sys.modules if name.startswith(('ferryman.cli.', 'rich'))), file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    for name in (
        "worker",
        "enqueue",
        "queues",
        "stats",
        "jobs",
        "dead",
        "workers",
        "why",
        "doctor",
        "pause",
        "completion",
    ):
        assert f"\n  {name} " in done.stdout
    assert done.stderr == "['ferryman.cli.root', 'ferryman.cli.target']\n"


def test_every_listed_command_is_there() -> None:
    context = click.Context(root)

    commands = {name: root.get_command(context, name) for name in root.list_commands(context)}

    assert all(command is not None and command.name == name for name, command in commands.items())


def test_the_worker_command_imports_nothing_that_draws() -> None:
    script = (
        "import sys\nfrom ferryman.cli.root import root\n"
        "root.main(['worker', '--help'], standalone_mode=False)\n"
        "print([name for name in sys.modules if name.startswith(('rich', 'sqlite3'))], file=sys.stderr)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert done.stderr == "[]\n"


@pytest.mark.parametrize(
    "command", [[], ["stats"], ["jobs"], ["jobs", "list"], ["dead", "edit"], ["enqueue"], ["completion"]]
)
def test_every_help_fits_a_terminal(quay: Quay, command: list[str]) -> None:
    shown = quay.ferryman(*command, "-h")

    assert shown.exit_code == 0
    assert all(len(line) <= 100 for line in shown.stdout.splitlines())


def test_a_mistyped_command_is_answered_with_the_nearest(quay: Quay) -> None:
    result = quay.ferryman("queus")

    assert result.exit_code == 2
    assert "did you mean 'queues'?" in result.stderr


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("queues", "--url", "sqlite:///nowhere.db"), 3, "there is no store at nowhere.db"),
        (("queues", "--url", "memory://"), 2, "lives inside one program"),
        (("queues", "--url", "oracle://localhost"), 2, "is none that Ferryman knows"),
        (("jobs", "show", "0" * 32), 4, "has no job"),
        (("jobs", "list", "--state", "failed"), 2, "the states are"),
        (("bench", "--seconds", "nan"), 2, "is no duration"),
        (("bench", "--seconds", "0.01"), 2, "is too short"),
    ],
)
def test_errors_are_one_line_and_a_code(quay: Quay, args: tuple[str, ...], code: int, words: str) -> None:
    result = quay.ferryman(*args)

    assert result.exit_code == code
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


@pytest.fixture
def bare_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, in which there is nothing; nor does the environment name a store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FERRYMAN_URL", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "queues",
        "stats",
        "jobs list",
        "jobs show 0192f3c4a1b2",
        "jobs cancel --all --yes",
        "jobs retry --all --yes",
        "jobs delete --all --yes",
        "jobs wait 0192f3c4a1b2",
        "dead list",
        "dead causes",
        "dead show 0192f3c4a1b2",
        "dead replay --all --yes",
        "dead purge --all --yes",
        "dead edit 0192f3c4a1b2",
        "workers",
        "workers pause --all",
        "workers stop --all",
        "why 0192f3c4a1b2",
        "pause email",
        "resume email",
        "purge email",
        "backup jobs.ferry",
        "move sqlite:///ferryman.db sqlite:///other.db --yes",
    ],
)
def test_a_command_that_finds_no_store_makes_none(command: str, bare_folder: Path) -> None:
    result = CliRunner().invoke(root, command.split(), prog_name="ferryman")

    assert result.exit_code == 3
    assert "there is no store at ferryman.db" in result.stderr
    assert list(bare_folder.iterdir()) == []


@pytest.mark.parametrize("command", ["doctor", "migrate", "migrate --sql", "completion bash", "--help"])
def test_a_command_that_needs_no_store_makes_none(command: str, bare_folder: Path) -> None:
    result = CliRunner().invoke(root, command.split(), prog_name="ferryman")

    assert result.exit_code == 0
    assert list(bare_folder.iterdir()) == []


def test_a_damaged_store_ends_with_three(quay: Quay) -> None:
    Path("notes.txt").write_text("not a database, and long enough to be told from an empty one" * 100)

    result = quay.ferryman("queues", "--url", "sqlite:///notes.txt")

    assert result.exit_code == 3
    assert result.stderr.startswith("ferryman: ")
    assert result.stderr.count("\n") == 1


def test_debug_adds_the_traceback(quay: Quay) -> None:
    result = quay.ferryman("--debug", "jobs", "show", "0" * 32)

    assert "Traceback" in result.stderr
    assert "\nferryman: " in result.stderr


def test_settings_come_from_the_file(quay: Quay, monkeypatch: pytest.MonkeyPatch) -> None:
    quay.enqueue()
    monkeypatch.delenv("FERRYMAN_URL")
    Path("ferryman.toml").write_text('url = "sqlite:///jobs.db"\n')

    assert len(quay.lines("jobs", "list")) == 1


def test_a_reader_that_goes_away_is_no_error(quay: Quay) -> None:
    quay.app.enqueue_jobs([quay.app._job_by_name("app.add", (), {"a": n}) for n in range(1_000)])
    command = [*PROGRAM, "jobs", "list", "--json", "--limit", "1000"]

    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        complaints = process.stderr.read()

    assert json.loads(first)["task"] == "app.add"
    assert complaints == b""
    assert process.returncode == 128 + signal.SIGPIPE


@pytest.mark.parametrize("stream", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_done_without(quay: Quay, stream: str) -> None:
    quay.enqueue()

    done = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {stream}', "sh", *PROGRAM, "jobs", "list"], capture_output=True, check=False
    )

    assert done.returncode == 0
    assert b"Traceback" not in done.stderr


def test_an_output_that_is_full_is_told_in_one_line(quay: Quay) -> None:
    quay.enqueue()
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*PROGRAM, "queues"], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )

    assert done.returncode == 1
    assert done.stderr.startswith("ferryman: ")
    assert "No space left on device" in done.stderr
    assert done.stderr.count("\n") == 1


def test_letters_that_the_output_lacks_are_written_by_their_numbers(quay: Quay) -> None:
    quay.enqueue(queue="日")
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}

    def shown(*command: str) -> bytes:
        return subprocess.run([*PROGRAM, *command], env=environment, capture_output=True, check=True).stdout

    assert b"\\u65e5" in shown("queues")
    assert json.loads(shown("queues", "--json"))["queue"] == "日"


@pytest.mark.parametrize(
    "command",
    [
        ("enqueue", "\udcff"),
        ("enqueue", "app.add", "a=\udcff"),
        ("pause", "\udcff"),
        ("jobs", "list", "--queue", "\udcff"),
        ("dead", "list", "--cause", "\udcff\udcfe"),
        ("\udcff",),
    ],
)
def test_arguments_that_are_no_text_are_refused(quay: Quay, command: tuple[str, ...]) -> None:
    result = quay.ferryman(*command)

    assert result.exit_code == 2
    assert r"\udcff" in result.stderr
    assert "is no text" in result.stderr


def test_an_interrupt_before_the_command_is_quiet() -> None:
    script = (
        "import sys\n"
        "class Slow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'ferryman.cli.root': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Slow())\n"
        "from ferryman.cli import main\nmain()"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 130
    assert done.stderr == "\n"


def _interrupt(process: subprocess.Popen[bytes]) -> None:
    """^C, and again if it came in the instant before the read, where Python does not notice it."""
    while process.poll() is None:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1)


def test_an_interrupt_at_a_question_is_quiet_and_changes_nothing(quay: Quay) -> None:
    quay.enqueue()
    command = [*PROGRAM, "purge", "default"]

    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        question = os.read(process.stderr.fileno(), 1_000)
        _interrupt(process)
        rest = process.stderr.read()

    assert question.startswith(b"Delete 1 job of queue 'default' for good?")
    assert b"Traceback" not in rest
    assert process.returncode == 130
    assert len(quay.states()) == 1


@pytest.mark.parametrize(
    "command",
    [
        ["queues"],
        ["stats"],
        ["stats", "--by", "minute"],
        ["jobs", "list"],
        ["workers"],
        ["dead", "list"],
        ["dead", "causes"],
    ],
)
def test_tables_fit_a_terminal_of_a_hundred_columns(quay: Quay, command: list[str]) -> None:
    quay.dead_letter(
        task="warehouse.inventory.recount_all_the_shelves_of_a_site", queue="a-queue-of-a-long-name"
    )
    quay.enqueue(queue="a-queue-of-a-long-name")
    quay.start_worker("dock-4711-0192f3c4a1b2", queues=["a-queue-of-a-long-name", "default", "email"])

    lines = _at_a_terminal([*PROGRAM, *command], columns=100)

    assert any("\x1b[" in line for line in lines)
    plain = [click.unstyle(line) for line in lines]
    assert all(len(line) <= 100 for line in plain)
    assert re.match(r"^ ?[A-Z]", plain[0])


@pytest.mark.parametrize("columns", [60, 80])
@pytest.mark.parametrize(
    ("command", "kept"),
    [
        (["queues"], ["Queue", "Ready", "Running", "Dead", "Oldest", "Workers", "reports"]),
        (["jobs", "list"], ["Id", "State", "Task", "app.add"]),
        (["dead", "list"], ["Id", "Task", "Cause", "app.add"]),
        (["dead", "causes"], ["Count", "Task", "Cause", "app.add"]),
        (["workers"], ["Id", "State", "Load", "dock-20855-2c9498"]),
        (["stats"], ["Queue / task", "Succeeded", "Failed", "Dead", "Wait p50", "Run p50"]),
        (["stats", "--by", "minute"], ["Minute", "Succeeded", "Failed", "Dead", "Wait p50", "Run p50"]),
    ],
)
def test_a_narrow_terminal_shows_whole_columns_and_the_names_among_them(
    quay: Quay, command: list[str], kept: list[str], columns: int
) -> None:
    quay.dead_letter()
    for queue in ("default", "email", "reports"):
        quay.enqueue(queue=queue)
    quay.start_worker("dock-20855-2c9498")

    lines = [click.unstyle(line) for line in _at_a_terminal([*PROGRAM, *command], columns)]

    assert all(len(line) <= columns for line in lines)
    assert [word for word in kept if not any(word in line for line in lines)] == []
    assert {len(line) for line in lines[2:]} <= {len(lines[1])}


def _at_a_terminal(command: list[str], columns: int) -> list[str]:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "LINES")}
    with subprocess.Popen(command, stdout=theirs, env={**environment, "TERM": "xterm-256color"}) as process:
        os.close(theirs)
        shown = b""
        # The kernel answers with an error once nobody has the other end open any more.
        try:
            while chunk := os.read(ours, 65_536):
                shown += chunk
        except OSError:
            pass
    os.close(ours)
    assert process.returncode == 0
    return shown.decode().splitlines()


@pytest.mark.parametrize(("shell", "words"), [("bash", "complete -o"), ("zsh", "#compdef ferryman"), ("fish", "complete --no-files")])  # fmt: skip
def test_shells_get_their_completion_script(quay: Quay, shell: str, words: str) -> None:
    assert words in quay.ferryman("completion", shell).stdout


def test_a_shell_is_told_the_commands_that_begin_so() -> None:
    environment = {
        **os.environ,
        "_FERRYMAN_COMPLETE": "bash_complete",
        "COMP_WORDS": "ferryman wo",
        "COMP_CWORD": "1",
    }

    done = subprocess.run(PROGRAM, env=environment, capture_output=True, text=True, check=False)

    assert done.stdout.split() == ["plain,worker", "plain,workers"]


def test_a_missing_extra_is_named() -> None:
    script = (
        "import sys\nsys.modules['click'] = None\n"  # What the import system takes as: not installed.
        "from ferryman.cli import main\nmain()"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 2
    assert 'pip install "ferryman[cli]"' in done.stderr
