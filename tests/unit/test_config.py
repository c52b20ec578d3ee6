"""Configuration: one object, from code, the environment and a file, in this order of precedence."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

import ferryman
from ferryman import Ferryman, FerrymanError, RetentionSettings, WorkerSettings
from ferryman.config import BlobSettings, Settings, load_settings
from ferryman.errors import ConfigError, InvalidValue

FILE = """
url = "sqlite:///of-the-file.db"
max_payload = 1000

[worker]
concurrency = 3
lease = 20

[retention]
dead_days = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ferryman.toml"
    path.write_text(FILE)
    return path


def test_without_any_source_the_defaults_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert load_settings({}) == Settings()


def test_the_file_changes_what_it_names_and_nothing_else(file: Path) -> None:
    settings = load_settings({}, file)

    assert (settings.url, settings.max_payload) == ("sqlite:///of-the-file.db", 1_000)
    assert (settings.worker.concurrency, settings.worker.lease) == (3, 20.0)
    assert settings.worker.heartbeat == WorkerSettings().heartbeat
    assert settings.retention.dead_days == 5


def test_the_environment_has_precedence_over_the_file(file: Path) -> None:
    environment = {"FERRYMAN_URL": "memory://", "FERRYMAN_WORKER_CONCURRENCY": "7"}

    settings = load_settings(environment, file)

    assert (settings.url, settings.worker.concurrency, settings.worker.lease) == ("memory://", 7, 20.0)


def test_the_code_has_the_last_word(file: Path) -> None:
    settings = load_settings({"FERRYMAN_URL": "memory://"}, file, url="sqlite:///of-the-code.db")

    assert settings.url == "sqlite:///of-the-code.db"


def test_what_the_code_leaves_open_is_not_taken_as_said(file: Path) -> None:
    assert load_settings({}, file, url=None).url == "sqlite:///of-the-file.db"


def test_the_environment_can_name_the_file(file: Path) -> None:
    assert load_settings({"FERRYMAN_CONFIG": str(file)}).worker.concurrency == 3


def test_an_app_finds_the_file_of_its_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    monkeypatch.delenv("FERRYMAN_URL", raising=False)

    assert Ferryman().settings.worker.concurrency == 3
    assert Ferryman("memory://").settings.url == "memory://"


@pytest.mark.parametrize(
    ("environment", "text", "said"),
    [
        ({"FERRYMAN_CONFIG": "/nowhere.toml"}, None, "'/nowhere.toml' does not exist"),
        ({}, "url = ", "cannot be read"),
        ({}, "[worker]\nconcurency = 3", "did you mean 'concurrency'"),
        ({}, "[worker]\nconcurrency = 0", "concurrency must lie between 1 and 100,000, not 0"),
        ({}, "[worker]\nconcurrency = 100_001", "concurrency must lie between 1 and 100,000, not 100001"),
        ({}, "[worker]\nexecutors = 1_001", "executors must lie between 0 and 1,000"),
        ({}, "[worker]\nlease = inf", "lease must lie between 0 and 3,153,600,000, not inf"),
        ({}, "[worker]\ngrace = nan", "grace must lie between 0 and"),
        ({}, "[retention]\ndead_days = 36_501", "dead_days must lie between 0 and 36,500"),
        ({}, "compress_above = -1", "compress_above must lie between 0 and"),
        ({}, "[worker]\nlease = 2\nheartbeat = 2", "at most half of lease"),
        ({}, "[retention]\ndead_days = -1", "dead_days must lie between 0 and 36,500, not -1"),
        (
            {"FERRYMAN_WORKER_CONCURRENCY": "many"},
            "",
            "FERRYMAN_WORKER_CONCURRENCY='many' is no whole number",
        ),
        ({"FERRYMAN_WORKER_LEASE": "1m"}, "", "FERRYMAN_WORKER_LEASE='1m' is no number"),
        (
            {"FERRYMAN_URL": "redis://:secret@host", "FERRYMAN_WORKER_CONCURRENCY": "0"},
            "",
            "the environment, in FERRYMAN_WORKER_CONCURRENCY, has a wrong setting: concurrency must lie between 1",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_where_it_stands(
    tmp_path: Path, environment: dict[str, str], text: str | None, said: str
) -> None:
    path = tmp_path / "ferryman.toml"
    if text is not None:
        path.write_text(text)

    with pytest.raises(ConfigError, match=said):
        load_settings(environment, None if text is None else path)


def test_a_queue_setting_that_makes_no_sense_is_refused_at_once() -> None:
    app = Ferryman("memory://")

    with pytest.raises(
        ConfigError, match="overflow must be one of block, reject, drop_oldest, not 'nonsense'"
    ):
        app.queue("q", overflow="nonsense")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["0", "33554433", "1000000000"])
def test_payloads_that_workers_could_not_pass_on_are_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="max_payload must be positive and 33554432 at most"):
        load_settings({"FERRYMAN_MAX_PAYLOAD": size})


def test_a_configuration_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ferryman.toml"
    path.write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match=r"ferryman.toml' is not UTF-8, as TOML must be"):
        load_settings({}, path)


def test_a_directory_in_its_place_is_told_from_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a directory; name the file in it"):
        load_settings({"FERRYMAN_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("variable", "said"),
    [
        ("FERRYMAN_WORKER_CONCURENCY", "did you mean 'FERRYMAN_WORKER_CONCURRENCY'"),
        ("FERRYMAN_WORKER_QUEUES", "after FERRYMAN_WORKER_ there are CONCURRENCY, EXECUTORS, LEASE"),
        ("FERRYMAN_RETENTION_DEAD", "did you mean 'FERRYMAN_RETENTION_DEAD_"),
        ("FERRYMAN_BLOBS_URI", "did you mean 'FERRYMAN_BLOBS_URL'"),
        ("FERRYMAN_ULR", "did you mean 'FERRYMAN_URL'"),
        ("FERRYMAN_CONCURRENCY", "did you mean 'FERRYMAN_WORKER_CONCURRENCY'"),
        ("FERRYMAN_MAX_PAYLOADS", "did you mean 'FERRYMAN_MAX_PAYLOAD'"),
    ],
)
def test_a_variable_that_means_no_setting_is_refused_with_the_one_that_is_meant(
    variable: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=f"the environment has {variable}, which is no setting; .*{said}"):
        load_settings({variable: "3"})


@pytest.mark.parametrize(
    "variable",
    [
        "FERRYMAN_DEBUG", "FERRYMAN_COMPLETE", "FERRYMAN_TEST_REDIS", "FERRYMAN_TEST_WORKER", "FERRYMAN_REDIS_SERVER",
        "FERRYMAN_POSTGRES_BIN", "FERRYMAN_PGBOUNCER", "FERRYMAN_STRESS_SECONDS", "FERRYMAN_URL_OF_COMMAND",
        "FERRYMAN_HOME", "ferryman_worker_x", "_FERRYMAN_COMPLETE",
        # What Kubernetes tells every container of a service that is named ferryman-worker, and of one named ferryman.
        "FERRYMAN_WORKER_SERVICE_HOST", "FERRYMAN_WORKER_SERVICE_PORT", "FERRYMAN_WORKER_SERVICE_PORT_HTTP",
        "FERRYMAN_WORKER_PORT", "FERRYMAN_WORKER_PORT_80_TCP", "FERRYMAN_WORKER_PORT_80_TCP_ADDR",
        "FERRYMAN_SERVICE_HOST", "FERRYMAN_PORT", "FERRYMAN_PORT_6379_TCP_PROTO",
    ],
)  # fmt: skip
def test_a_variable_of_others_is_left_alone(variable: str, tmp_path: Path) -> None:
    assert load_settings({variable: "x"}) == Settings()


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: WorkerSettings(concurrency="4"), "concurrency must be a whole number, not '4'"),  # type: ignore[arg-type]
        (lambda: WorkerSettings(concurrency=0), "concurrency must lie between 1 and 100,000, not 0"),
        (lambda: WorkerSettings(lease=timedelta(minutes=1)), r"lease must be a number .* its total_seconds\(\)"),  # type: ignore[arg-type]
        (lambda: WorkerSettings(heartbeat=0), "heartbeat must be positive and at most half of lease, not 0 of 30 s"),
        (lambda: RetentionSettings(dead_days="7"), "dead_days must be a number"),  # type: ignore[arg-type]
        (lambda: BlobSettings(above=10), "blobs.above must be between 1024 and"),
        (lambda: Settings(url=5), "url must be a text, not 5"),  # type: ignore[arg-type]
        (lambda: Settings(worker={"concurrency": 4}), "worker must be a WorkerSettings, not {'concurrency': 4}"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_settings_made_in_code_are_checked_as_those_of_a_file(make: Callable[[], object], said: str) -> None:
    with pytest.raises(InvalidValue, match=said) as refused:
        make()

    assert isinstance(refused.value, FerrymanError)


def test_the_package_knows_its_version_and_looks_it_up_only_when_asked() -> None:
    loaded = "import ferryman, sys; print('importlib.metadata' in sys.modules)"

    out = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout

    assert ferryman.__version__ == version("ferryman")
    assert out == "False\n"
    with pytest.raises(AttributeError, match="module 'ferryman' has no attribute '__versoin__'"):
        _ = ferryman.__versoin__  # type: ignore[attr-defined]
