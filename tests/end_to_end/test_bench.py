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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ferryman import Ferryman, Settings
from ferryman.cli.bench.figures import NAMES, OF_SERVERS, UNITS, Target, make_figure, percentile, target_of
from ferryman.cli.bench.floors.sqlite import SqliteFloor
from ferryman.cli.bench.slices import rates
from ferryman.cli.bench.tasks import NOOP, PAYLOAD, make_app
from ferryman.store.port import Filter
from tests.end_to_end.harness import wait_for
from tests.services import places

PROGRAM = [sys.executable, "-c", "from ferryman.cli import main; main()", "bench"]
SHORT = ["--jobs", "300", "--seconds", "0.1"]
FLOORED = {"enqueue_bulk", "enqueue_batch", "enqueue_one", "drain"}
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
    done = bench("--json")

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

    done = bench("--store", url, "--json", "--only", "enqueue_batch", "drain", "latency_p50", "steady_rate")

    found = figures(done)
    assert {"enqueue_batch", "drain", "latency_p50", "steady_rate"} <= set(found)
    assert found["drain"]["floor"] > 0
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
