"""Large payloads lie outside the store: in a directory, and in a service that speaks S3."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from ferryman import Context, Ferryman, Settings
from ferryman.blob.open import open_blobs
from ferryman.blob.port import Blobs
from ferryman.config import BlobSettings
from ferryman.errors import BlobError, ConfigError, JobDied, PayloadError
from ferryman.io.operation import perform
from ferryman.job import State
from ferryman.payload import SHARDS, SPARE_MS, read_reference, sweep
from ferryman.store.records import Filter, Retention
from tests.services.s3 import s3_server

LARGE = 200_000
LATER = 10**15
"""A moment at which no blob is young any more."""


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch, s3_server() as server:
        patch.setenv("AWS_ACCESS_KEY_ID", "ferryman")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        boto3.client("s3", endpoint_url=server.url, region_name="us-east-1").create_bucket(Bucket="ferry")
        yield f"s3://ferry/cargo?endpoint={server.url}&region=us-east-1"


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/blobs"
    found: str = request.getfixturevalue("s3_url")
    return found


def _app(folder: Path, url: str | None, above: int = 10_000) -> Ferryman:
    return Ferryman(
        settings=Settings(url=f"sqlite:///{folder}/jobs.db", blobs=BlobSettings(url=url, above=above))
    )


def _names(blobs: Blobs, app: Ferryman) -> set[str]:
    """All blobs of the app's store."""
    entry = app.store.runner().run(app.store.kv_get("ferryman.blobs"))
    return set() if entry is None else {found.name for found in blobs.list(entry.value.decode())}


def _sweep(app: Ferryman, blobs: Blobs, now: int = LATER) -> int:
    return sum(perform(app.store.runner(), sweep(app.store, blobs, now, shard)) for shard in range(SHARDS))


def test_what_was_put_is_found_listed_and_forgotten(url: str) -> None:
    blobs = open_blobs(url)

    blobs.put("one/ab/x.args", b"old")
    blobs.put("one/ab/x.args", b"new")
    blobs.put("two/ab/y.args", b"")

    assert blobs.get("one/ab/x.args", 10) == b"new"
    assert blobs.get("one/ab/x.args", 1) == b"ne"
    assert blobs.get("one/ab/z.args", 10) is None
    assert [found.name for found in blobs.list("one")] == ["one/ab/x.args"]
    blobs.delete(["one/ab/x.args", "one/ab/z.args"])
    assert blobs.get("one/ab/x.args", 10) is None
    assert blobs.get("two/ab/y.args", 10) == b""


def test_large_arguments_and_results_go_round_the_store(url: str, tmp_path: Path) -> None:
    app = _app(tmp_path, url)

    @app.task
    def double(text: str) -> str:
        return text * 2

    @app.task
    async def adouble(text: str) -> str:
        return text * 2

    text = os.urandom(LARGE // 2).hex()
    with app.worker():
        jobs = [double.enqueue(text), adouble.enqueue(text), double.enqueue("few")]
        results = [job.result(timeout=30) for job in jobs]

    assert results == [text * 2, text * 2, "fewfew"]
    large, _, small = [job.record() for job in jobs]
    assert len(large.args) < 200
    assert len(large.result or b"") < 200
    assert read_reference(large.args) is not None
    assert read_reference(small.args) is None
    assert len(_names(open_blobs(url), app)) == 4
    app.close()


def test_an_event_loop_stows_and_fetches_as_well(url: str, tmp_path: Path) -> None:
    app = _app(tmp_path, url)

    @app.task
    async def same(data: bytes) -> bytes:
        return data

    async def live() -> list[bytes]:
        jobs = [await same.aenqueue(data) for data in (b"x" * 11, os.urandom(LARGE))]
        return [await job.aresult(timeout=30) for job in jobs]

    with app.worker():
        small, large = asyncio.run(live())

    assert (small, len(large)) == (b"x" * 11, LARGE)
    app.close()


def test_a_child_gets_the_large_results_of_its_parents(url: str, tmp_path: Path) -> None:
    app = _app(tmp_path, url)

    @app.task
    def make(letter: str) -> bytes:
        return os.urandom(LARGE)

    @app.task
    def join(ctx: Context) -> int:
        return sum(map(len, ctx.results(bytes)))

    with app.worker():
        parents = [make.enqueue("a"), make.enqueue("b")]
        total = join.options(after=parents).enqueue().result(timeout=30)

    assert total == 2 * LARGE
    app.close()


def test_payloads_of_jobs_that_are_gone_are_swept(url: str, tmp_path: Path) -> None:
    app, blobs = _app(tmp_path, url), open_blobs(url)

    @app.task
    def same(data: bytes) -> bytes:
        return data

    with app.worker():
        gone = same.enqueue(os.urandom(LARGE))
        gone.result(timeout=30)
    kept = same.enqueue(os.urandom(LARGE))
    before = _names(blobs, app)

    assert _sweep(app, blobs) == 0
    app.store.runner().run(app.store.prune(Retention(succeeded=0), 10))
    assert _sweep(app, blobs, int(time.time() * 1000) + SPARE_MS // 2) == 0, "young ones are spared"
    assert _sweep(app, blobs) == 2

    after = _names(blobs, app)
    assert len(before) == 3
    assert {kept.id in name for name in after} == {True}
    assert not any(gone.id in name for name in after)
    app.close()


def test_a_result_whose_time_is_over_is_swept_while_its_job_stays(url: str, tmp_path: Path) -> None:
    app, blobs = _app(tmp_path, url), open_blobs(url)

    @app.task(result_ttl=0.001)
    def make() -> bytes:
        return os.urandom(LARGE)

    with app.worker():
        job = make.enqueue()
        while job.status() is not State.SUCCEEDED:
            app.store.runner().wait(0.1)
    app.store.runner().wait(0.01)

    assert len(_names(blobs, app)) == 1
    assert _sweep(app, blobs) == 1
    assert job.status() is State.SUCCEEDED
    app.close()


def test_two_stores_in_one_place_do_not_sweep_each_others_payloads(url: str, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    one, two, blobs = _app(tmp_path, url), _app(tmp_path / "other", url), open_blobs(url)
    for app in (one, two):
        app.task(name="same")(len)
        app.enqueue("same", os.urandom(LARGE))

    assert _sweep(one, blobs) == 0
    one.store.runner().run(one.store.delete(Filter(), 10))
    assert (_sweep(one, blobs), _sweep(two, blobs)) == (1, 0)
    assert len(_names(blobs, two)) == 1
    one.close()
    two.close()


def test_a_store_keeps_no_name_that_it_got_in_a_transaction_that_was_rolled_back(tmp_path: Path) -> None:
    app, blobs = _app(tmp_path, f"file://{tmp_path}/blobs"), open_blobs(f"file://{tmp_path}/blobs")
    same = app.task(name="same")(len)
    app.store.runner().run(app.store.lanes())
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        same.options(using=connection).enqueue(os.urandom(LARGE))
        connection.rollback()

    job = same.enqueue(os.urandom(LARGE))

    reference = read_reference(job.record().args)
    assert reference is not None
    assert _names(blobs, app) == {reference.name}
    app.close()


def test_a_payload_that_is_gone_or_damaged_makes_the_job_a_dead_letter(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/blobs"
    app, blobs = _app(tmp_path, url), open_blobs(url)

    @app.task
    def size(data: bytes) -> int:
        return len(data)

    jobs = [size.enqueue(os.urandom(LARGE)) for _ in range(2)]
    references = [read_reference(job.record().args) for job in jobs]
    assert references[0] is not None
    assert references[1] is not None
    blobs.delete([references[0].name])
    blobs.put(references[1].name, b"x" * references[1].size)
    with app.worker():
        causes = []
        for job in jobs:
            with pytest.raises(JobDied) as died:
                job.result(timeout=30)
            causes.append(died.value.cause)

    assert "is not (any more) in" in causes[0]
    assert "is not what was put there" in causes[1]
    app.close()


def test_a_job_waits_while_the_place_of_its_arguments_is_away(tmp_path: Path) -> None:
    app = _app(tmp_path, f"file://{tmp_path}/blobs")

    @app.task
    def size(data: bytes) -> int:
        return len(data)

    job = size.enqueue(os.urandom(LARGE))
    (tmp_path / "blobs").rename(tmp_path / "away")
    with app.worker():
        while job.status() is not State.SCHEDULED:
            app.store.runner().wait(0.1)

    record = job.record()
    assert record.attempt == 0
    assert "is it mounted on this machine?" in str(record.reason)
    app.close()


def test_a_program_without_the_setting_says_what_is_missing(tmp_path: Path) -> None:
    app = _app(tmp_path, f"file://{tmp_path}/blobs")
    app.task(name="same")(lambda data: data)
    job = app.enqueue("same", data=os.urandom(LARGE))
    other = _app(tmp_path, None)

    with pytest.raises(PayloadError, match=r"set blobs\.url"):
        perform(other.store.runner(), other.payloads.fetch(job.record().args))
    app.close()
    other.close()


def test_a_reference_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    blobs = open_blobs(f"file://{tmp_path}/blobs")
    (tmp_path / "secret").write_bytes(b"secret")

    for name in ("../secret", "/etc/passwd", "a/../../secret"):
        with pytest.raises(BlobError, match="no name of a blob"):
            blobs.get(name, 100)


def test_an_enqueue_whose_payload_cannot_be_stowed_stores_no_job(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_bytes(b"a file where the directory should be")
    app = _app(tmp_path, f"file://{tmp_path}/blobs")
    app.task(name="same")(len)

    with pytest.raises(BlobError, match="cannot be kept in"):
        app.enqueue("same", os.urandom(LARGE))

    assert app.store.runner().run(app.store.find(Filter(), 10)) == []
    app.close()


@pytest.mark.parametrize("url", ["ftp://x/y", "file://host/path", "s3://", "s3://b/p?colour=red", "nonsense"])
def test_a_url_that_names_no_place_is_an_error_that_says_what_would(url: str) -> None:
    with pytest.raises(ConfigError, match=r"s3://|endpoint"):
        open_blobs(url)


def test_a_service_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    blobs = open_blobs("s3://ferry/cargo?endpoint=http://127.0.0.1:9&region=us-east-1")

    with pytest.raises(BlobError, match="s3://ferry/cargo"):
        blobs.put("a", b"b")
