"""Configuration: one object, from code, the environment and a file, in this order of precedence."""

from __future__ import annotations

from pathlib import Path

import pytest

from ferryman import Ferryman, WorkerSettings
from ferryman.config import Settings, load_settings
from ferryman.errors import ConfigError

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
        ({}, "[worker]\nconcurrency = 0", "concurrency must be at least 1"),
        ({}, "[worker]\nlease = 2\nheartbeat = 2", "at most half of lease"),
        ({}, "[retention]\ndead_days = -1", "must not be negative"),
        ({"FERRYMAN_WORKER_CONCURRENCY": "many"}, "", "the environment"),
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

    with pytest.raises(ConfigError, match="'nonsense' is none of block, reject, drop_oldest"):
        app.queue("q", overflow="nonsense")  # type: ignore[arg-type]


@pytest.mark.parametrize("size", ["0", "33554433", "1000000000"])
def test_payloads_that_workers_could_not_pass_on_are_refused(size: str) -> None:
    with pytest.raises(ConfigError, match="max_payload must be positive and 33554432 at most"):
        load_settings({"FERRYMAN_MAX_PAYLOAD": size})
