"""Large payloads lie outside the store: in a directory, and in a service that speaks S3."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest

from ferryman import Context, Ferryman, Settings
from ferryman import app as app_module
from ferryman.blob.open import open_blobs
from ferryman.blob.port import Blobs
from ferryman.clock import ManualClock
from ferryman.codec import Codec
from ferryman.config import BlobSettings
from ferryman.errors import BlobError, ConfigError, JobDied, MissingExtra, PayloadError
from ferryman.io.operation import Aside, Procedure, perform
from ferryman.job import State, new_id
from ferryman.payload import SHARDS, SPARE_MS, read_reference, sweep
from ferryman.store.open import open_store
from ferryman.store.port import Store
from ferryman.store.records import Filter, Retention
from tests.end_to_end.harness import wait_for
from tests.services.s3 import s3_server

LARGE = 200_000
LATER = SPARE_MS + 3_600_000
"""ms from now after which no blob is young any more."""


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


def _sweep(app: Ferryman, blobs: Blobs, after: int = LATER, ahead: int = 0) -> int:
    """By a worker whose clock is ahead of that of the store, which is so many ms later by now."""
    now = int(time.time() * 1000) + after
    store = open_store(app.settings.url, ManualClock(now))
    try:
        return sum(
            perform(store.runner(), sweep(store, blobs, now + ahead, shard)) for shard in range(SHARDS)
        )
    finally:
        store.close()


@pytest.mark.parametrize("wrong", ["no boto3", "no such bucket"])
def test_a_first_place_that_takes_nothing_does_not_become_the_stores_place(
    s3_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def enqueue(url: str) -> str:
        with contextlib.closing(_app(tmp_path, url)) as app:
            app.task(name="size")(len)
            return app.enqueue("size", os.urandom(LARGE)).id

    with monkeypatch.context() as patch:
        if wrong == "no boto3":
            patch.setitem(sys.modules, "boto3", None)
        with pytest.raises((MissingExtra, BlobError)):
            enqueue(s3_url.replace("s3://ferry/", "s3://elsewhere/"))

    assert enqueue(f"file://{tmp_path}/blobs")


def test_what_was_put_is_found_listed_and_forgotten(url: str) -> None:
    blobs = open_blobs(url)
    for store in ("one", "two", "one"):
        blobs.begin(store)

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
    assert _sweep(app, blobs, SPARE_MS // 2) == 0, "young ones are spared"
    assert _sweep(app, blobs, SPARE_MS // 2, ahead=SPARE_MS) == 0, "whatever a worker takes the time to be"
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


def _unmount(root: Path) -> None:
    """What is left where a share was mounted: an empty directory."""
    root.rename(root.with_name("share"))
    root.mkdir()


def test_a_job_waits_while_the_share_with_its_arguments_is_not_mounted(tmp_path: Path) -> None:
    app = _app(tmp_path, f"file://{tmp_path}/blobs")
    job = app.task(name="size")(len).enqueue(os.urandom(LARGE))

    _unmount(tmp_path / "blobs")
    with app.worker():
        while job.status() is State.READY or job.status() is State.RUNNING:
            app.store.runner().wait(0.1)

    record = job.record()
    assert (record.state, record.attempt) == (State.SCHEDULED, 0)
    assert "is it mounted on this machine?" in str(record.reason)
    app.close()


@pytest.mark.parametrize("is_known", [True, False], ids=["this program", "another program"])
def test_nothing_is_put_where_a_share_should_be_mounted(tmp_path: Path, is_known: bool) -> None:
    app = _app(tmp_path, f"file://{tmp_path}/blobs")
    app.task(name="size")(len)
    app.enqueue("size", os.urandom(LARGE))
    if not is_known:
        app.close()
        app = _app(tmp_path, f"file://{tmp_path}/blobs")
        app.task(name="size")(len)

    _unmount(tmp_path / "blobs")
    with pytest.raises(BlobError, match="mounted on this machine"):
        app.enqueue("size", os.urandom(LARGE))

    assert list((tmp_path / "blobs").iterdir()) == []
    assert len(app.store.runner().run(app.store.find(Filter(), 10))) == 1
    app.close()


def test_two_programs_that_put_the_first_payloads_at_once_agree_on_the_name_of_the_store(
    tmp_path: Path,
) -> None:
    apps = [_app(tmp_path, f"file://{tmp_path}/blobs") for _ in range(2)]
    ids = [new_id() for _ in apps]
    data = os.urandom(LARGE)
    stows = [app.payloads.stow(id, "args", data) for app, id in zip(apps, ids, strict=True)]

    payloads = _in_turns(apps[0].store, stows)

    fetched = [
        app.perform(app.payloads.fetch(payload)) for app, payload in zip(apps, payloads[::-1], strict=True)
    ]
    references = [read_reference(payload) for payload in payloads]
    assert fetched == [data, data]
    assert len({reference.name.partition("/")[0] for reference in references if reference}) == 1
    for app in apps:
        app.close()


def _in_turns(store: Store, procedures: list[Procedure[bytes]]) -> list[bytes]:
    """Carry out procedures, one request of each in turn."""
    runner = store.runner()
    answers: list[Any] = [None] * len(procedures)
    results: dict[int, bytes] = {}
    while len(results) < len(procedures):
        for number, procedure in enumerate(procedures):
            if number in results:
                continue
            try:
                request = procedure.send(answers[number])
            except StopIteration as stop:
                results[number] = stop.value
            else:
                answers[number] = request.call() if isinstance(request, Aside) else runner.run(request)
    return [results[number] for number in range(len(procedures))]


def test_arguments_that_were_swept_while_their_job_waited_for_room_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "_STOW_ANEW", 0.0)
    url = f"file://{tmp_path}/blobs"
    app, blobs = _app(tmp_path, url), open_blobs(url)
    app.queue("narrow", max_size=1, overflow="block")

    @app.task(queue="narrow")
    def size(data: bytes) -> int:
        return len(data)

    first = size.enqueue(b"few")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(size.enqueue, os.urandom(LARGE))
        wait_for(lambda: _names(blobs, app))
        assert _sweep(app, blobs) == 1
        wait_for(lambda: _names(blobs, app))
        first.cancel()
        job = waiting.result(timeout=30)
        with app.worker():
            assert job.result(timeout=30) == LARGE
    app.close()


def test_a_sweep_of_a_store_without_large_payloads_leaves_no_trace(tmp_path: Path) -> None:
    app, blobs = _app(tmp_path, f"file://{tmp_path}/blobs"), open_blobs(f"file://{tmp_path}/blobs")

    assert _sweep(app, blobs) == 0

    assert app.store.runner().run(app.store.kv_get("ferryman.blobs")) is None
    app.close()


def test_a_copy_of_a_store_that_got_a_name_of_its_own_sweeps_only_its_own_payloads(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    url = f"file://{tmp_path}/blobs"
    original, blobs = _app(tmp_path, url), open_blobs(url)
    original.task(name="size")(len)
    before = original.enqueue("size", os.urandom(LARGE))
    with contextlib.closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("VACUUM INTO ?", (str(tmp_path / "copy/jobs.db"),))
    since = original.enqueue("size", os.urandom(LARGE))
    copy = _app(tmp_path / "copy", url)
    copy.store.runner().run(copy.store.kv_delete("ferryman.blobs"))
    copy.task(name="size")(len)
    copy.enqueue("size", os.urandom(LARGE))

    assert (_sweep(copy, blobs), _sweep(original, blobs)) == (0, 0)

    assert len(original.perform(original.payloads.fetch(since.record().args))) > LARGE
    assert len(copy.perform(copy.payloads.fetch(copy.job(before.id).record().args))) > LARGE
    original.close()
    copy.close()


def test_a_program_without_the_setting_says_what_is_missing(tmp_path: Path) -> None:
    app = _app(tmp_path, f"file://{tmp_path}/blobs")
    app.task(name="same")(lambda data: data)
    job = app.enqueue("same", data=os.urandom(LARGE))
    other = _app(tmp_path, None)

    with pytest.raises(ConfigError, match=r"set blobs\.url"):
        perform(other.store.runner(), other.payloads.fetch(job.record().args))
    app.close()
    other.close()


def test_arguments_of_exactly_the_size_that_is_allowed_arrive(tmp_path: Path) -> None:
    blobs = BlobSettings(url=f"file://{tmp_path}/blobs", above=10_000, max_payload=100_000)
    app = Ferryman(settings=Settings(url=f"sqlite:///{tmp_path}/jobs.db", blobs=blobs))

    @app.task
    def size(data: bytes) -> int:
        return len(data)

    around = len(app.codec.encode({"data": os.urandom(70_000)})) - 70_000 - 1
    data = os.urandom(100_000 - around)
    with app.worker():
        job = size.enqueue(data)
        result = job.result(timeout=30)

    assert len(app.perform(app.payloads.fetch(job.record().args))) == 100_001, "with the number of the format"
    assert result == len(data)
    app.close()


def test_what_could_not_be_fetched_is_not_put_there_either(tmp_path: Path) -> None:
    blobs = BlobSettings(url=f"file://{tmp_path}/blobs", above=10_000, max_payload=100_000)
    settings = Settings(url=f"sqlite:///{tmp_path}/jobs.db", blobs=blobs)
    app = Ferryman(settings=settings, codec=Codec(max_bytes=1_000_000))
    app.task(name="size")(len)

    with pytest.raises(PayloadError, match=r"100,000 allowed; raise the setting blobs\.max_payload"):
        app.enqueue("size", os.urandom(LARGE))

    assert app.store.runner().run(app.store.find(Filter(), 10)) == []
    app.close()


def test_an_enqueue_whose_payload_cannot_be_stowed_stores_no_job(tmp_path: Path) -> None:
    (tmp_path / "blobs").write_bytes(b"a file where the directory should be")
    app = _app(tmp_path, f"file://{tmp_path}/blobs")
    app.task(name="same")(len)

    with pytest.raises(BlobError, match="cannot be kept in"):
        app.enqueue("same", os.urandom(LARGE))

    assert app.store.runner().run(app.store.find(Filter(), 10)) == []
    app.close()
