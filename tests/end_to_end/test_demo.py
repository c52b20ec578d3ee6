"""``ferryman demo``, as a person starts it; and the account that it gives, which must notice what is wrong."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from ferryman.app import App
from ferryman.cli.demo.account import draw_up
from ferryman.cli.demo.catalogue import app as catalogue
from ferryman.cli.demo.catalogue import catalogue_file
from ferryman.cli.demo.run import Jobs, enqueue_files
from ferryman.cli.demo.sources import find_sources, standard_library
from ferryman.job import State
from ferryman.store.records import Filter
from tests.end_to_end.harness import wait_for

# A test run in the background of a shell ignores ^C, and so would all that it starts.
_PROGRAM = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from ferryman.cli import main
main()
"""


class Place:
    """An empty working directory, and a folder in which temporary files are made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.environment = {
            name: text for name, text in os.environ.items() if not name.startswith("FERRYMAN_")
        } | {"TMPDIR": str(self.temporary), "TERM": "xterm", "COLUMNS": "100", "LINES": "40"}

    def start(self, *args: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *args],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *args: str, code: int = 0) -> str:
        process = self.start(*args)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == code, f"{output}\n{errors}"
        return output + errors

    def demo(self, *args: str, code: int = 0) -> Any:
        return json.loads(self.run("demo", *args, "--json", code=code))

    def write(self, **files: bytes) -> str:
        """Make a folder of Python files to catalogue."""
        sources = self.folder / "sources"
        sources.mkdir(exist_ok=True)
        for name, data in files.items():
            (sources / f"{name}.py").write_bytes(data)
        return str(sources)

    def leftovers(self) -> list[str]:
        """Folders of demos. (The one in which workers keep their bells is everybody's.)"""
        return [path.name for path in self.temporary.glob("ferryman-demo-*")]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """The demo's app, on a store of this test's."""
    before = catalogue.settings
    catalogue.settings = msgspec.structs.replace(before, url=f"sqlite:///{tmp_path / 'demo.db'}")
    yield catalogue
    catalogue.close()
    catalogue.settings = before


def _many(count: int) -> dict[str, bytes]:
    return {f"module_{number}": f"def f{number}(): pass\n".encode() for number in range(count)}


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# -- as a person sees it -------------------------------------------------------------------------------


def test_every_file_is_counted_once_though_an_executor_is_killed(place: Place) -> None:
    account = place.demo("--files", "250")

    assert account["ok"]
    # A standard library that has no broken file, as Debian's, gets a few damaged copies.
    files = 250 + len(account["damaged_copies"])
    assert account["counted"] + account["dead"] == account["files"] == files
    assert account["missing"] == account["repeated"] == account["unjust"] == []
    assert account["kill"]["pid"] > 0
    assert not _is_alive(account["kill"]["pid"])
    # Each file that the executor was at made one attempt more.
    assert account["attempts"] >= account["files"] + len(account["kill"]["again"])
    assert account["functions"] > 0
    assert place.leftovers() == []


def test_broken_files_end_as_dead_letters_by_what_is_wrong_with_them(place: Place) -> None:
    folder = place.write(
        good=b"class A:\n    def f(self): pass\n",
        bad_syntax=b"def torn(\n",
        bad_encoding=b"# coding: uft-8\n",
    )

    account = place.demo("--folder", folder, "--no-kill")

    assert account["ok"]
    assert (account["counted"], account["functions"], account["classes"]) == (1, 1, 1)
    fatal, retried = sorted(account["dead_letters"], key=lambda letter: int(letter["attempts"]))
    assert (fatal["attempts"], retried["attempts"]) == (1, 3)
    assert fatal["cause"].startswith("SyntaxError: '(' was never closed")
    assert retried["cause"] == "UnicodeError: unknown encoding: uft-8"
    assert {group["cause"] for group in account["causes"]} == {fatal["cause"], retried["cause"]}
    assert account["kill"] is None


def test_where_nothing_is_broken_damaged_copies_are_added_and_the_demo_says_so(place: Place) -> None:
    folder = place.write(**_many(6))
    before = {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    output = place.run("demo", "--folder", folder, "--no-kill")

    assert "none of them is broken, so 4 damaged copies are added" in output
    assert "6 in the report + 4 dead letters = 10" in output
    assert {path.name: path.read_bytes() for path in Path(folder).iterdir()} == before


def test_into_a_pipe_goes_plain_text(place: Place) -> None:
    folder = place.write(**_many(3))

    output = place.run("demo", "--folder", folder, "--no-kill")

    assert "\x1b" not in output
    assert "\r" not in output
    assert "Yes: none is missing, none is there twice" in output


def test_at_a_terminal_there_is_a_bar_and_no_line_is_too_wide(place: Place) -> None:
    folder = place.write(**_many(30))
    ours, theirs = pty.openpty()

    process = place.start("demo", "--folder", folder, "--no-kill", stdout=theirs)
    os.close(theirs)
    output = _read_all(ours)
    _, errors = process.communicate(timeout=30)

    assert process.returncode == 0, errors
    assert re.search(r"\d+/34", output)
    assert "jobs/s" in output
    shown = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in output.splitlines()]
    assert max(len(line) for line in shown if "module_" in line) <= 100


def _read_all(fd: int) -> str:
    chunks: list[bytes] = []
    while True:
        try:
            chunk = os.read(fd, 65_536)
        except OSError:  # So Linux says that nobody can write there any more.
            chunk = b""
        if not chunk:
            os.close(fd)
            return b"".join(chunks).decode()
        chunks.append(chunk)


def test_the_store_that_a_url_names_stays_and_can_be_looked_at(place: Place) -> None:
    folder = place.write(good=b"pass\n", bad=b"def torn(\n")

    place.run("demo", "--folder", folder, "--no-kill", "--url", "sqlite:///jobs.db")

    (letter,) = [json.loads(line) for line in _lines(place, "dead", "list")]
    assert letter["reason"].startswith("SyntaxError")
    assert "torn(" in place.run("jobs", "show", letter["id"], "--url", "sqlite:///jobs.db")
    again = place.demo("--folder", folder, "--no-kill", "--url", "sqlite:///jobs.db")
    assert (again["counted"], again["dead"], again["causes"][0]["count"]) == (1, 1, 1)


def _lines(place: Place, *args: str) -> list[str]:
    return place.run(*args, "--url", "sqlite:///jobs.db", "--json").splitlines()


def test_with_keep_the_folder_stays_and_is_named(place: Place) -> None:
    folder = place.write(**_many(2))

    output = place.run("demo", "--folder", folder, "--no-kill", "--keep")

    (name,) = place.leftovers()
    assert f"Kept: {place.temporary / name}" in output
    assert (place.temporary / name / "demo.db").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_stops_its_worker_and_leaves_nothing_behind(place: Place, number: int) -> None:
    process = place.start("demo", "--files", "1000")
    assert process.stdout is not None
    line = next(line for line in process.stdout if "started a worker" in line)
    worker = int(re.findall(r"process (\d+)", line)[0])
    wait_for(lambda: _executors(worker), what="an executor was started")
    children = _executors(worker)

    process.send_signal(number)
    process.communicate(timeout=30)

    assert process.returncode == (130 if number == signal.SIGINT else 143)
    assert not _is_alive(worker)
    wait_for(lambda: not any(map(_is_alive, children)), what="the executors are gone")
    assert place.leftovers() == []


def _executors(worker: int) -> list[int]:
    listed = Path(f"/proc/{worker}/task/{worker}/children")
    return [int(word) for word in listed.read_text().split()]


def test_what_an_earlier_demo_left_undone_is_not_mixed_up_with_the_next(place: Place, app: App) -> None:
    catalogue_file.enqueue("nowhere.py")

    output = place.run("demo", "--url", app.settings.url, code=2)

    assert "an earlier demo has left 1 jobs" in output
    assert f"ferryman --url {app.settings.url} purge demo" in output


def test_a_job_that_goes_missing_on_the_way_makes_the_demo_fail(place: Place, app: App) -> None:
    process = place.start("demo", "--files", "300", "--no-kill", "--url", app.settings.url)
    succeeded = Filter(queues=("demo",), states=(State.SUCCEEDED,))
    runner = app.store.runner()
    wait_for(lambda: runner.run(app.store.find(succeeded, 1)), timeout=30, what="a job is done")

    assert runner.run(app.store.delete(succeeded, 1)) == 1
    output, errors = process.communicate(timeout=60)

    assert process.returncode == 1, output + errors
    assert "1 files are missing" in output
    assert "Kept:" in output


# -- the account ---------------------------------------------------------------------------------------


def _done(app: App, files: Sequence[str]) -> Jobs:
    """Jobs for these files, all of them done."""
    jobs = enqueue_files(files)
    with app.worker(concurrency=2):  # type: ignore[attr-defined]
        jobs.report.result(timeout=30)
    return jobs


@pytest.fixture
def two_files(place: Place) -> list[str]:
    folder = Path(place.write(one=b"x = 1\n", two=b"def f(): pass\n"))
    return [str(folder / "one.py"), str(folder / "two.py")]


def test_an_account_is_right_when_each_file_is_there_once(app: App, two_files: list[str]) -> None:
    account = draw_up(app, _done(app, two_files), None)

    assert account.is_right
    assert list(account.catalogue.paths) == two_files


def test_an_account_names_a_file_that_is_there_twice_and_the_one_in_whose_stead(
    app: App, two_files: list[str]
) -> None:
    one, two = two_files
    jobs = _done(app, [one, one])._replace(files=[one, two])

    account = draw_up(app, jobs, None)

    assert not account.is_right
    assert account.repeated == [one]
    assert account.missing == [two]


def test_an_account_names_a_file_that_died_without_being_broken(app: App, two_files: list[str]) -> None:
    one, two = two_files
    Path(two).write_bytes(b"def torn(\n")
    jobs = _done(app, [one, two])
    Path(two).write_bytes(b"def mended(): pass\n")

    account = draw_up(app, jobs, None)

    assert account.unjust == [two]
    assert not account.is_right


def test_an_account_names_a_file_whose_job_was_cancelled(app: App, two_files: list[str]) -> None:
    jobs = enqueue_files(two_files)
    jobs.handles[0].cancel()
    with app.worker(concurrency=2):  # type: ignore[attr-defined]
        jobs.report.result(timeout=30)

    assert draw_up(app, jobs, None).missing == two_files[:1]


# -- which files ---------------------------------------------------------------------------------------


def test_a_sample_holds_broken_files_and_is_spread_over_the_library(tmp_path: Path) -> None:
    sources = find_sources(standard_library(), 40, tmp_path)

    files = [path for path in sources.files if path not in sources.damaged]
    assert len(files) == len(set(files)) == 40
    assert len({path.relative_to(sources.root).parts[0][0].lower() for path in files}) > 5
    assert sources.damaged or any(path.name.startswith("bad") for path in files)
    assert not any("site-packages" in path.parts for path in files)


def test_a_copy_with_each_kind_of_damage_cannot_be_catalogued(place: Place, tmp_path: Path) -> None:
    folder = Path(place.write(**_many(5)))

    sources = find_sources(folder, None, tmp_path)

    assert len(sources.damaged) == 4
    for copy in sources.damaged:
        with pytest.raises((SyntaxError, ValueError)):
            catalogue_file(str(copy))
