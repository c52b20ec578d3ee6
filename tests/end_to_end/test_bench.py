"""``ferryman bench``: what it prints and leaves behind, and that a floor does the product's work. No speed is judged."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ferryman import Ferryman, Settings
from ferryman.cli.bench.figures import NAMES, OF_SERVERS, UNITS, Target, make_figure, percentile, target_of
from ferryman.cli.bench.floors.chain import open_chain
from ferryman.cli.bench.floors.sqlite import SqliteFloor
from ferryman.cli.bench.ground import open_ground
from ferryman.cli.bench.relay import Tally
from ferryman.cli.bench.servers import Server
from ferryman.cli.bench.slices import rates
from ferryman.cli.bench.tasks import NOOP, PAYLOAD, make_app
from ferryman.io.postgres.address import parse_url
from ferryman.store.records import Filter
from tests.end_to_end.harness import wait_for
from tests.services import places

PROGRAM = [sys.executable, "-c", "from ferryman.cli import main; main()", "bench"]
SHORT = ["--jobs", "300", "--seconds", "0.1"]
FLOORED = {"enqueue_bulk", "enqueue_batch", "enqueue_one", "drain", "latency_p50", "latency_p99"}
OF_FILES = tuple(name for name in NAMES if name not in OF_SERVERS)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory of its own, and no settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("FERRYMAN_")]:
        monkeypatch.delenv(name)
    return tmp_path


def bench(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PROGRAM, *SHORT, *args], capture_output=True, text=True, timeout=120)


def figures(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len({line["name"] for line in lines}) == len(lines)
    return {line["name"]: line for line in lines}


# -- the command -------------------------------------------------------------------------------------


def test_every_figure_is_a_line_of_json_and_nothing_is_left_behind(folder: Path) -> None:
    # It is named, since of itself it would not take a folder that is in memory.
    done = bench("--json", "--store", f"sqlite:///{folder}/bench.db")

    found = figures(done)
    assert tuple(found) == OF_FILES
    for name, line in found.items():
        assert list(line) == ["name", "store", "value", "unit", "floor", "ratio"]
        assert line["store"] == f"sqlite:///{folder}/bench.db"
        assert line["unit"] == UNITS[name]
        assert line["value"] > 0 or name == "idle_cpu"
        assert (line["floor"] is not None) == (line["ratio"] is not None) == (name in FLOORED)
        if name in FLOORED:
            assert line["ratio"] == pytest.approx(line["value"] / line["floor"], rel=0.01)
    assert list(folder.iterdir()) == []
    assert f"measuring on {folder} (" in done.stderr
    assert "a short run" in done.stderr


def test_a_store_in_memory_has_the_figures_that_need_no_process(folder: Path) -> None:
    done = bench("--store", "memory://", "--json")

    found = figures(done)
    assert set(OF_FILES) - set(found) == {"idle_cpu", "rss_supervisor", "rss_executor"}
    assert all(line["store"] == "memory://" and line["floor"] is None for line in found.values())
    assert "idle_cpu: left out, since a worker on memory:// is no process of its own" in done.stderr
    assert "rss_supervisor, rss_executor: left out" in done.stderr


@pytest.mark.parametrize("place", [places.redis, places.postgres], ids=["redis", "postgresql"])
def test_a_server_is_measured_with_a_store_of_its_own_that_goes_afterwards(
    folder: Path, place: Callable[[Path], str]
) -> None:
    url = place(folder)
    app = Ferryman(url)
    app.task(name="mine")(len)
    mine = app.enqueue("mine", "payload")

    names = {"enqueue_batch", "drain", "steady_rate", "latency_p50", "idle_statements"}
    done = bench("--store", url, "--json", "--only", *names)

    found = figures(done)
    assert names <= set(found)
    assert found["drain"]["floor"] > 0
    assert found["steady_rate"]["floor"] > 0
    assert found["latency_p50"]["floor"] > 0
    assert [job.id for job in app.store.runner().run(app.store.find(Filter(), 10))] == [mine.id]
    app.close()


def test_only_what_is_named_is_measured(folder: Path) -> None:
    done = bench("--json", "--only", "import_time", "latency_p99", "--only", "rss_executor")

    assert tuple(figures(done)) == ("latency_p99", "import_time", "rss_executor")


def test_a_table_shows_the_target_beside_each_figure(folder: Path) -> None:
    done = bench("--only", "enqueue_one", "import_time")

    header, one, import_time = done.stdout.splitlines()
    assert header.split() == ["FIGURE", "VALUE", "UNIT", "FLOOR", "RATIO", "TARGET", "REACHED"]
    assert one.startswith("enqueue_one ")
    assert "≥ 0.6 of the floor" in one
    assert "< 100" in import_time
    assert one.endswith(("yes", "no"))
    assert "enqueueing one by one…" in done.stderr


def test_a_named_file_is_not_touched_and_settings_of_the_place_do_not_count(folder: Path) -> None:
    database = folder / "mine.db"
    database.write_bytes(b"dear to me")
    (folder / "ferryman.toml").write_text('url = "sqlite:///else.db"\nworker = { concurrency = 1 }\n')

    found = figures(bench("--store", "sqlite:///mine.db", "--json", "--only", "enqueue_bulk", "latency_p50"))

    assert {line["store"] for line in found.values()} == {"sqlite:///mine.db"}
    assert database.read_bytes() == b"dear to me"
    assert sorted(each.name for each in folder.iterdir()) == ["ferryman.toml", "mine.db"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--only", "speed"), 2, "'speed' is not one of"),
        (("--store", "oracle://somewhere"), 2, "is none that Ferryman knows"),
        (
            ("--store", "sqlite:////no/such/folder/jobs.db"),
            3,
            "the directory '/no/such/folder' does not exist",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(
    folder: Path, args: tuple[str, ...], code: int, words: str
) -> None:
    done = bench(*args)

    assert done.returncode == code
    assert words in done.stderr
    assert done.stdout == ""


def test_ended_half_way_it_takes_its_worker_and_its_files_along(folder: Path) -> None:
    with subprocess.Popen([*PROGRAM, "--only", "idle_cpu"], stderr=subprocess.DEVNULL) as process:
        (worker,) = wait_for(lambda: _children(process.pid), what="it has started a worker")
        executors = wait_for(lambda: _children(worker), what="the worker has started an executor")

        process.send_signal(signal.SIGTERM)

    assert process.returncode == 143
    assert [pid for pid in (worker, *executors) if Path(f"/proc/{pid}").exists()] == []
    assert list(folder.iterdir()) == []


def _children(pid: int) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


# -- the floor of SQLite -----------------------------------------------------------------------------


@pytest.fixture
def app(folder: Path) -> Iterator[Ferryman]:
    app = make_app(Settings(url=f"sqlite:///{folder / 'product.db'}"))
    yield app
    app.close()


@pytest.fixture
def floor(folder: Path, app: Ferryman) -> Iterator[SqliteFloor]:
    floor = SqliteFloor(f"sqlite:///{folder / 'floor.db'}", app.tasks[NOOP].new_job((PAYLOAD,), {}))
    yield floor
    floor.close()


def test_the_floor_stores_the_rows_that_the_product_stores(
    folder: Path, app: Ferryman, floor: SqliteFloor
) -> None:
    app.tasks[NOOP].enqueue_many([(PAYLOAD,)] * 7)
    floor.enqueue(7)

    assert rows(folder / "floor.db") == rows(folder / "product.db")


def test_the_floor_leaves_the_rows_that_a_worker_leaves(
    folder: Path, app: Ferryman, floor: SqliteFloor
) -> None:
    handles = app.tasks[NOOP].enqueue_many([(PAYLOAD,)] * 7)
    floor.enqueue(7)

    with app.worker():
        for handle in handles:
            handle.result(timeout=10)
    while floor.turn(3):
        pass

    assert rows(folder / "floor.db") == rows(folder / "product.db")


def test_the_floor_syncs_as_the_product_does(folder: Path, app: Ferryman, floor: SqliteFloor) -> None:
    app.store.runner().run(app.store.declare([]))
    product = app.store._database._open_writer()  # type: ignore[attr-defined]

    for pragma in ("journal_mode", "synchronous", "cache_size", "temp_store", "wal_autocheckpoint"):
        ours, theirs = (each.execute(f"PRAGMA {pragma}").fetchone() for each in (product, floor._sql))
        assert ours == theirs, pragma


def rows(file: Path) -> dict[str, list[tuple[Any, ...]]]:
    """All rows of the tables that both write, but for moments, ids of jobs and where in a histogram something fell."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.row_factory = sqlite3.Row
        found = {
            table: [
                tuple(
                    (name, value is None if name == "id" or name.endswith("_at") else value)
                    for name, value in zip(row.keys(), row, strict=True)
                )
                for row in connection.execute(f"SELECT * FROM ferryman_{table} ORDER BY seq")
            ]
            for table in ("job", "body")
        }
        found["lane"] = [tuple(row) for row in connection.execute("SELECT * FROM ferryman_lane")]
        found["stat"] = [
            tuple(row)
            for row in connection.execute(
                "SELECT lane, task, kind, sum(n) FROM ferryman_stat GROUP BY 1, 2, 3 ORDER BY 3"
            )
        ]
    return found


# -- the floor of latencies --------------------------------------------------------------------------


def test_a_row_goes_from_process_to_process_and_is_taken_once(folder: Path) -> None:
    before = _children(os.getpid())

    with open_chain(f"sqlite:///{folder / 'floor.db'}") as chain:
        assert chain is not None
        began = time.monotonic_ns()
        passed = [chain.pass_one() for _ in range(3)]
        elapsed = (time.monotonic_ns() - began) / 1e6

    assert min(passed) > 0
    assert sum(passed) < elapsed
    with contextlib.closing(sqlite3.connect(folder / "floor.db")) as connection:
        assert connection.execute("SELECT taken, length(payload) FROM entry").fetchall() == [(1, 100)] * 3
    assert _children(os.getpid()) == before


def test_the_processes_of_a_floor_end_when_the_one_that_started_them_is_killed(folder: Path) -> None:
    program = (
        "import sys; from ferryman.cli.bench.floors.chain import open_chain\n"
        f"with open_chain('sqlite:///{folder / 'floor.db'}'): print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        both = _children(process.pid)

        process.kill()

    assert len(both) == 2
    wait_for(lambda: not any(map(_runs, both)), what="the floor's processes have ended")


def _runs(pid: int) -> bool:
    """Zombies, which nobody here can wait for, do not."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


# -- what an idle worker asks ------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1_000])
def test_each_question_is_counted_once_however_the_bytes_are_cut(size: int) -> None:
    startup = b"\x00\x00\x00\x10\x00\x03\x00\x00user\x00QS\x00"
    with_parameters = b"".join(_message(letter, b"S" * 9) for letter in (b"P", b"B", b"D", b"E"))
    sent = startup + _message(b"p", b"QSQS\x00") + _message(b"Q", b"SELECT 'S'\x00")
    sent += _message(b"P", b"prepared") + _message(b"S")
    sent += with_parameters + _message(b"S") + with_parameters * 3 + _message(b"S") + _message(b"X")
    tally = Tally()

    for at in range(0, len(sent), size):
        tally.feed(sent[at : at + size])

    assert tally.asked == 3


def _message(letter: bytes, body: bytes = b"") -> bytes:
    return letter + (len(body) + 4).to_bytes(4, "big") + body


def test_what_one_worker_asks_is_counted_and_nothing_else(folder: Path) -> None:
    url = places.postgres(folder)

    with open_ground(url) as ground:
        assert isinstance(ground, Server)
        with ground.listen_in(url) as statements:
            assert statements is not None
            relayed, beside = parse_url(statements.url), parse_url(url)
            with psycopg.connect(relayed.conninfo, autocommit=True) as counted:
                with psycopg.connect(beside.conninfo, autocommit=True) as other:
                    counted.execute("SELECT 1")
                    counted.execute("SELECT %s", ["x" * 200_000])
                    other.execute("SELECT 1")
                    with counted.pipeline():
                        counted.execute("SELECT 2")
                        counted.execute("SELECT 3")
                row = counted.execute("SELECT length(%s)", ["ü" * 100_000]).fetchone()
            asked = statements.asked()

    assert row == (100_000,)
    assert asked == 4
    assert relayed.schema == beside.schema


def test_statements_are_not_counted_where_the_connection_must_be_encrypted(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"{places.postgres(folder)}&sslmode=require"

    with open_ground(url) as ground:
        assert isinstance(ground, Server)
        with ground.listen_in(url) as statements:
            assert statements is None

    assert "encrypted (sslmode=require)" in capfd.readouterr().err


# -- the sums ----------------------------------------------------------------------------------------


def test_rates_are_taken_of_each_work_by_turns() -> None:
    turns: list[str] = []

    def work(name: str, jobs: int) -> int:
        turns.append(name)
        return jobs

    slow, fast = rates([lambda: work("slow", 1), lambda: work("fast", 1_000_000)], seconds=0.02)

    assert 0 < slow < fast
    changes = sum(before != after for before, after in itertools.pairwise(turns))
    assert changes >= 10


def test_a_percentile_is_one_of_the_samples() -> None:
    samples = [5.0, 1.0, 4.0, 2.0, 3.0]

    assert percentile(samples, 0.5) == 3.0
    assert percentile(samples, 0.99) == 5.0
    assert percentile(samples[:1], 0.5) == 5.0


@pytest.mark.parametrize(
    ("target", "value", "floor", "met"),
    [
        (Target(40_000, "at least"), 40_000.0, None, True),
        (Target(40_000, "at least"), 39_990.0, None, False),
        (Target(1.5, "at most"), 1.5, None, True),
        (Target(1, "below"), 1.0, None, False),
        (Target(0.5, "at least", "ratio"), 5.0, 10.0, True),
        (Target(0.5, "at least", "ratio"), 4.0, 10.0, False),
        (Target(0.5, "at least", "ratio"), 4.0, None, None),
    ],
)
def test_a_target_knows_whether_it_is_met(
    target: Target, value: float, floor: float | None, met: bool | None
) -> None:
    assert target.is_met(make_figure("drain", "sqlite:///jobs.db", value, floor)) is met


@pytest.mark.parametrize("name", [name for name in OF_FILES if name != "enqueue_async"])
def test_each_figure_has_its_target_on_sqlite(name: str) -> None:
    assert target_of(make_figure(name, "sqlite:///jobs.db", 1.0)) is not None


def test_a_store_without_targets_has_those_that_hold_everywhere() -> None:
    assert target_of(make_figure("drain", "memory://", 1.0)) is None
    assert target_of(make_figure("import_time", "memory://", 1.0)) is not None
