"""What is wrong is named, with the remedy; nothing that was acknowledged is lost by it."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ferryman import Ferryman, FerrymanError, State, StoreError
from ferryman.config import MOST_IN_STORE
from ferryman.errors import (
    BadArguments,
    PayloadError,
    StoreCorrupt,
    StoreUnavailable,
    StoreVersionError,
    UnknownTask,
)
from ferryman.job import NewJob, new_id
from tests.end_to_end.harness import Harbour, wait_for

MARK = """
@app.task
def mark(n: int) -> int:
    return n

@app.task
def blob(data: bytes) -> int:
    return len(data)

@app.task(retry=Retry(max_attempts=4, base=0.01))
def weird() -> object:
    return threading.Lock()

@app.task
def huge(megabytes: int) -> bytes:
    return os.urandom(megabytes << 20)
"""


def in_child(work: Callable[[], object], before: Callable[[], None] = lambda: None) -> str:
    """What `work` raised in a forked child, as ``Type: message``; empty if it did not."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = ""
        try:
            before()
            work()
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    return said


# -- the call --------------------------------------------------------------------------------------


def test_wrong_calls_are_refused_at_enqueue_and_nothing_is_stored(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    enqueue = tasks.mark.enqueue

    with pytest.raises(BadArguments, match=r"tasks.mark\(n: int\).*cannot be called"):
        enqueue()
    with pytest.raises(BadArguments, match="cannot be called"):
        enqueue(1, 2)
    with pytest.raises(BadArguments, match=r"tasks.mark.*int"):
        enqueue("one")
    with pytest.raises(BadArguments, match="cannot be called"):
        enqueue(m=1)
    with pytest.raises(PayloadError, match=r"the arguments of tasks.mark"):
        enqueue(threading.Lock())
    with pytest.raises(UnknownTask, match=r"no task 'tasks.nark'.*tasks.mark"):
        harbour.app.enqueue("tasks.nark", 1)
    with pytest.raises(FerrymanError):
        tasks.mark.enqueue_many([(1,), ("two",), (3,)])

    assert harbour.counts() == {}


def test_payloads_that_are_too_large_are_refused_with_the_setting_that_says_so(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)

    with pytest.raises(PayloadError, match="5,242,891 bytes are more than the 4,194,304 allowed"):
        tasks.blob.enqueue(os.urandom(5 << 20))

    assert harbour.counts() == {}


def test_results_that_cannot_be_kept_make_dead_letters_that_ran_once(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    weird, huge = tasks.weird.enqueue(), tasks.huge.enqueue(5)

    harbour.start_worker("--executors", "1")
    wait_for(harbour.settled(dead=2))

    assert {job.attempt for job in harbour.jobs()} == {1}
    for handle in (weird, huge):
        assert "the task ran to its end, but its result is lost" in (harbour.job(handle.id).reason or "")


def test_jobs_with_arguments_that_no_task_takes_are_dead_letters_at_once(harbour: Harbour) -> None:
    harbour.load(MARK)
    producer = Ferryman(harbour.url)
    handle = producer.enqueue("tasks.mark", m="what")
    producer.close()

    harbour.start_worker("--executors", "1")
    wait_for(harbour.settled(dead=1))

    job = harbour.job(handle.id)
    assert job.attempt == 1
    assert "PayloadError" in (job.reason or "")


# -- the store -------------------------------------------------------------------------------------


def refused(harbour: Harbour, *words: str, code: int = 3, command: tuple[str, ...] = ("queues",)) -> None:
    """The command line refuses, names these things and answers with this code."""
    answer = harbour.command(*command)
    assert answer.returncode == code, answer
    assert "Traceback" not in answer.stderr
    for word in words:
        assert word in answer.stderr


def test_a_database_in_a_directory_that_is_not_there(harbour: Harbour) -> None:
    harbour.load(MARK)
    harbour.url = f"sqlite:///{harbour.folder}/missing/jobs.db"
    app = Ferryman(harbour.url)

    with pytest.raises(StoreUnavailable, match="missing' of the database does not exist; make it"):
        app.enqueue("mark", n=1)

    refused(harbour, "missing")
    refused(harbour, "missing", command=("worker", "tasks:app"))


def test_a_file_that_is_no_database(harbour: Harbour) -> None:
    harbour.load(MARK)
    harbour.database.write_text("These are my notes, not a database. " * 100)
    before = harbour.database.read_bytes()

    with pytest.raises(StoreCorrupt, match=r"damaged or no SQLite database.*move it away"):
        harbour.app.enqueue("tasks.mark", 1)
    refused(harbour, "jobs.db", "no SQLite database")
    refused(harbour, "jobs.db", "no SQLite database", command=("worker", "tasks:app"))

    assert harbour.database.read_bytes() == before
    harbour.database.unlink()


def test_a_database_of_the_layout_before_the_first_release(harbour: Harbour) -> None:
    with contextlib.closing(sqlite3.connect(harbour.database)) as connection:
        connection.execute("CREATE TABLE job (seq INTEGER PRIMARY KEY)")
        connection.execute("PRAGMA application_id=0x46455259")

    with pytest.raises(StoreVersionError, match=r"before its first release.*move the file away"):
        harbour.app.enqueue("mark", n=1)
    refused(harbour, "before its first release")
    harbour.database.unlink()


def test_a_database_of_a_newer_version(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(1)
    harbour.app.close()
    with contextlib.closing(sqlite3.connect(harbour.database)) as connection:
        (version,) = connection.execute("SELECT value FROM ferryman_meta WHERE name = 'schema'").fetchone()
        connection.execute("UPDATE ferryman_meta SET value = 99 WHERE name = 'schema'")
        connection.commit()

    with pytest.raises(StoreVersionError, match=r"version 99.*install the newer"):
        tasks.mark.enqueue(2)
    refused(harbour, "version 99")
    refused(harbour, "version 99", command=("worker", "tasks:app"))

    with contextlib.closing(sqlite3.connect(harbour.database)) as connection:
        connection.execute("UPDATE ferryman_meta SET value = ? WHERE name = 'schema'", (version,))
        connection.commit()
    assert harbour.counts() == {"ready": 1}


def test_a_corrupt_database(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue_many([(n,) for n in range(2_000)])
    harbour.app.close()
    content = bytearray(harbour.database.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    harbour.database.write_bytes(content)

    with pytest.raises(StoreCorrupt, match="restore it from a backup"):
        tasks.mark.enqueue(1)
    refused(harbour, "damaged")
    harbour.database.unlink()


NOBODY = 65534


def as_nobody() -> None:
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def open_to_all(folder: Path) -> None:
    for each in (folder, *folder.parents):
        with contextlib.suppress(PermissionError):
            each.chmod(each.stat().st_mode | 0o555)


def test_a_database_that_may_not_be_written_to(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(1)
    harbour.app.close()
    harbour.database.chmod(0o444)
    harbour.folder.chmod(0o555)
    open_to_all(harbour.folder)
    drop = as_nobody if os.getuid() == 0 else lambda: None

    said = in_child(lambda: tasks.mark.enqueue(2), drop)

    harbour.folder.chmod(0o755)
    harbour.database.chmod(0o644)
    assert said.startswith("StoreReadOnly: "), said
    assert "jobs.db' cannot be written to; give this user the right to write" in said
    assert harbour.counts() == {"ready": 1}


def test_a_directory_in_which_no_database_may_be_made(harbour: Harbour) -> None:
    harbour.folder.chmod(0o555)
    open_to_all(harbour.folder)
    drop = as_nobody if os.getuid() == 0 else lambda: None

    said = in_child(lambda: Ferryman(harbour.url).enqueue("mark", n=1), drop)

    harbour.folder.chmod(0o755)
    assert said.startswith(("StoreUnavailable: ", "StoreReadOnly: ")), said
    assert "check the path and the rights" in said or "give this user the right" in said


def limit_file_size(database: Path, more: int) -> None:
    """Files can grow by so many bytes from here on, as on a disk that is nearly full."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    size = max(file.stat().st_size for file in database.parent.glob("jobs.db*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, resource.RLIM_INFINITY))


def test_a_disk_that_gets_full_refuses_jobs_and_keeps_those_it_has(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(1)
    harbour.app.close()
    told = harbour.folder / "told"

    def fill() -> None:
        with told.open("w") as stream:
            limit_file_size(harbour.database, 300_000)
            for _ in range(1_000):
                handle = tasks.blob.enqueue(os.urandom(5_000))
                stream.write(f"{handle.id}\n")
                stream.flush()

    said = in_child(fill)

    acknowledged = told.read_text().split()
    stored = {str(job.id) for job in harbour.jobs()}
    assert said.startswith(("StoreFull: ", "StoreUnavailable: ")), said
    assert "nothing was stored" in said
    assert len(acknowledged) > 10
    assert set(acknowledged) < stored
    assert len(stored) == 1 + len(acknowledged)
    tasks.mark.enqueue(2)


def test_a_worker_on_a_full_disk_waits_and_goes_on_when_there_is_room(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue_many([(n,) for n in range(200)])
    worker = harbour.start_worker("--executors", "1")
    wait_for(harbour.settled(succeeded=200))
    limits = resource.prlimit(worker.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, (4_096, limits[1]))

    handles = tasks.mark.enqueue_many([(n,) for n in range(200, 400)])
    wait_for(lambda: "the store does not answer, will try again" in worker.log)
    assert worker.process.poll() is None
    resource.prlimit(worker.pid, resource.RLIMIT_FSIZE, limits)
    wait_for(harbour.settled(succeeded=400))

    assert "the store answers again" in worker.log
    assert [handle.result(timeout=1) for handle in handles] == list(range(200, 400))
    assert {job.attempt for job in harbour.jobs()} == {1}


def test_a_database_that_another_connection_holds_for_a_while(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(1)
    worker = harbour.start_worker("--executors", "1")
    wait_for(harbour.settled(succeeded=1))

    with contextlib.closing(sqlite3.connect(harbour.database, isolation_level=None)) as foreign:
        foreign.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=tasks.mark.enqueue, args=(2,))
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        assert worker.process.poll() is None
        foreign.execute("ROLLBACK")
    thread.join(5)

    wait_for(harbour.settled(succeeded=2))


def test_a_database_that_was_removed_under_a_worker(harbour: Harbour) -> None:
    tasks = harbour.load(MARK)
    tasks.mark.enqueue(1)
    worker = harbour.start_worker("--executors", "1")
    wait_for(harbour.settled(succeeded=1))

    for file in harbour.folder.glob("jobs.db*"):
        file.unlink()
    wait_for(lambda: "was removed or replaced while it was in use" in worker.log, timeout=8)

    with pytest.raises(StoreError, match="removed or replaced"):
        tasks.mark.enqueue(2)


# -- the app ---------------------------------------------------------------------------------------

APPS = {
    "nowhere:app": ("", "nowhere"),
    "broken:app": ("import a_module_that_is_not_there\n", "a_module_that_is_not_there"),
    "crooked:app": ("def f(:\n", "SyntaxError"),
    "other:app": ("appp = Ferryman()\ndel app\n", "did you mean appp"),
    "number:number": ("number = 7\n", "is no Ferryman app, but an int"),
    "raises:app": ("raise RuntimeError('the moon is full')\n", "the moon is full"),
    "exits:app": ("raise SystemExit(3)\n", "exits"),
    "dies:app": ("os._exit(5)\n", "ended while it loaded the app"),
    "crashes:app": ("os.kill(os.getpid(), 11)\n", "ended while it loaded the app"),
}


@pytest.mark.parametrize("target", APPS)
def test_an_app_that_cannot_be_loaded_ends_the_worker_with_its_reason(harbour: Harbour, target: str) -> None:
    source, word = APPS[target]
    if source:
        harbour.write(source, target.partition(":")[0])

    answer = harbour.command("worker", target)

    assert answer.returncode == 2, answer
    assert word in answer.stderr
    assert answer.stderr.count("Traceback") <= 1


def test_a_worker_of_a_store_that_no_other_process_can_see_says_so(harbour: Harbour) -> None:
    harbour.load(MARK)

    answer = harbour.command("worker", "tasks:app", env={"FERRYMAN_URL": "memory://"})

    assert answer.returncode == 2, answer
    assert "memory://" in answer.stderr


def test_the_url_of_the_command_line_has_precedence_over_the_code(harbour: Harbour) -> None:
    harbour.write("app = Ferryman('sqlite:///elsewhere.db')\n@app.task\ndef mark(n: int) -> int: return n\n")

    worker = harbour.start_worker("--url", harbour.url)

    assert not (harbour.folder / "elsewhere.db").exists()
    assert worker.stop() == 0


def test_settings_that_make_no_sense_are_named(harbour: Harbour) -> None:
    harbour.load(MARK)

    assert "heartbeat" in harbour.command("worker", "tasks:app", "--heartbeat", "10", "--lease", "5").stderr
    answer = harbour.command("worker", "tasks:app", env={"FERRYMAN_WORKER_CONCURRENCY": "many"})

    assert answer.returncode == 2
    assert "FERRYMAN_WORKER_CONCURRENCY='many'" in answer.stderr


def test_a_job_whose_task_is_unknown_is_kept_and_says_why(harbour: Harbour) -> None:
    harbour.load(MARK)
    producer = Ferryman(harbour.url)
    handle = producer.enqueue("tasks.gone", n=1)
    producer.close()
    harbour.start_worker("--executors", "1")

    wait_for(harbour.in_state(handle.id, State.SCHEDULED))

    job = harbour.job(handle.id)
    assert job.attempt == 0
    assert "has no task 'tasks.gone'" in (job.reason or "")
    why = harbour.command("why", handle.id)
    assert "tasks.gone" in why.stdout


def test_arguments_that_no_executor_can_be_sent_are_a_dead_letter_and_nothing_else_suffers(
    harbour: Harbour,
) -> None:
    tasks = harbour.load(MARK)
    monster = NewJob(id=new_id(), task="blob", args=os.urandom(MOST_IN_STORE + 1))
    harbour.run(harbour.app.store.enqueue([monster]))
    small = tasks.mark.enqueue(1)

    harbour.start_worker("--concurrency", "2")
    wait_for(harbour.settled(dead=1, succeeded=1))

    assert harbour.job(small.id).state is State.SUCCEEDED
    history = harbour.run(harbour.app.store.history(monster.id))
    assert history is not None
    (attempt,) = history.attempts
    assert attempt.error is not None
    assert "larger than the 33,554,432 bytes" in attempt.error.message
