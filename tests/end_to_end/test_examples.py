"""The examples run as a newcomer would run them, and tell what their first lines promise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
import redis

from tests.services.shared import postgres_url, redis_url

EXAMPLES = Path(__file__).parents[2] / "examples"


def transcript(name: str, folder: Path, *arguments: str) -> str:
    """What an example prints; it must end well and complain about nothing."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert not list(folder.iterdir()), "it leaves something behind"
    return done.stdout


def test_the_queue_in_memory_tells_its_story(tmp_path: Path) -> None:
    told = transcript("p1_in_memory_queue", tmp_path)

    begun = re.findall(
        r"\[Worker (\d)\] Processing job (email-\d+): Sending email to (\w+)@example.com(.*)", told
    )
    ended = re.findall(r"\[Worker (\d)\] Completed job (email-\d+) in (\d+)ms", told)
    # Two workers are free for the first two emails, so either can be quicker to say so.
    assert {to for _, _, to, _ in begun[:2]} == {"other", "user"}
    assert (begun[2][1:]) == ("email-003", "delayed", " (was delayed 500ms)")
    assert {(worker, job) for worker, job, *_ in begun} == {(worker, job) for worker, job, _ in ended}
    least = {"other": 150, "user": 200, "delayed": 120}
    took = {job: int(ms) for _, job, ms in ended}
    assert all(least[to] <= took[job] < 1_500 for _, job, to, _ in begun)
    assert told.endswith("3 emails sent, 0 failed\n")


def test_producer_and_consumers_tell_their_story(tmp_path: Path) -> None:
    told = transcript("st_producer_consumer", tmp_path)

    assert (held := re.search(r"it took ([\d.]+) s to hand in 20 reports", told))
    assert float(held[1]) > 0.1
    assert "Report 7 came through at its third attempt: 'report 7: 49 rows'" in told
    assert "Report 13 is with the dead letters after 3 attempts: ValueError: report 13 has no data" in told
    assert (stop := re.search(r"5 more: (\d) were finished, (\d) went back, with no attempt spent", told))
    assert int(stop[1]) + int(stop[2]) == 5
    assert int(stop[2]) >= 1
    assert "all 25 reports accounted for, 24 done, 1 dead, none run twice without need" in told


def test_the_worker_pool_tells_its_story(tmp_path: Path) -> None:
    told = transcript("p6_worker_pool", tmp_path)

    assert (killed := re.search(r"kill -9 (\w+), with (\d+) jobs in hand", told))
    assert (recovered := re.search(r"Recovered (\d+) jobs from dead worker (\w+) after ([\d.]+)s", told))
    assert (recovered[2], recovered[1]) == (killed[1], killed[2])
    assert float(recovered[3]) < 2
    before, after = told.split("kill -9")
    assert re.search(r"Pending: \d+ \| Active: \d+ \| Completed: \d+ \| Failed: 0", before)
    assert before.count("active") == 2
    assert "Pending: 0 | Active: 0 | Completed: 80 | Failed: 0" in after
    assert re.search(rf"║ {killed[1]} +║ 0/4 +║ DEAD ", after)
    assert re.search(r"║ \w+ +║ 0/4 +║ active +║ [\d.]+s ago +║ \d+ ", after)
    assert (end := re.search(r"80 of 80 images resized; (\d+) of them were begun twice", told))
    assert int(end[1]) <= int(killed[2])


def test_the_queue_on_redis_tells_its_story(tmp_path: Path) -> None:
    told = transcript("p2_redis_queue", tmp_path, redis_url())

    emails, listing = told.split("$ redis-cli")
    workers = re.findall(r"\[Worker (\d+)\] Connected to redis://", emails)
    begun = re.findall(r"\[Worker (\d+)\] Processing ([\w-]+)@example.com: \w+(.*)", emails)
    ended = re.findall(r"\[Worker (\d+)\] Completed ([\w-]+)@example.com in (\d+)ms", emails)
    assert len(workers) == 2
    assert {worker for worker, *_ in begun} == set(workers)
    assert {(worker, to) for worker, to, _ in begun} == {(worker, to) for worker, to, _ in ended}
    order = [to for _, to, _ in begun]
    assert sorted(order) == ["later", "user-1", "user-2", "user-3", "user-4", "vip"]
    assert order.index("vip") < order.index("user-4"), "it has not overtaken anybody"
    notes = {to: note for _, to, note in begun}
    assert notes["vip"] == " (priority: 5)"
    assert notes["later"] == " (was delayed 600ms)"
    assert all(int(ms) >= 120 for *_, ms in ended)
    (prefix,) = set(re.findall(r"^\{([\w-]+)\}:", listing, re.MULTILINE))
    assert f"{{{prefix}}}:" in listing
    for key, kind, size in [("job", "hash", 7), ("scheduled", "zset", 1), ("succeeded", "zset", 6)]:
        assert re.search(rf"^\{{{prefix}\}}:{key} +{kind} +{size} entries$", listing, re.MULTILINE)
    assert told.endswith("6 emails sent; 1 waits for tomorrow\n")
    with redis.Redis.from_url(redis_url()) as client:
        assert not list(client.scan_iter(match=f"*{prefix}*"))


def test_the_payment_service_tells_its_story(tmp_path: Path) -> None:
    told = transcript("p8_payments", tmp_path, postgres_url(), redis_url())

    story, query = told.split("$ psql", 1)
    # The first one was undone by the kill.
    undone, charge = re.findall(r"Charged 99\.99 as (ch_\w+)", story)
    key = "payment:order-123:99.99"
    assert len(re.findall(rf"Processing order-123 \(idempotency_key={re.escape(key)}\)", story)) == 4
    assert (kill := re.search(r"kill -9 (\d+), .*: 0 charges in the database", story))
    assert f"[Worker {kill[1]}]" not in story[kill.end() :]
    assert f"Result: transaction {charge} created\n" in story
    assert story.count("DUPLICATE DETECTED: returning the cached result\n") == 2
    assert story.count(f"Result: transaction {charge} (cached)\n") == 2
    assert story.count("[Outbox] Published payment.completed\n") >= 1
    assert story.count(f"[Mail] Receipt sent for {charge}\n") == 1
    assert "was seen before" in story
    assert undone not in query
    assert f"\norder-123 | 99.99 | {charge}\n" in query
    assert re.search(rf"\nonce:{re.escape(key)} \| \d{{4}}-\d\d-\d\d \d\d:\d\d\n", query)
    assert f'{{"order":"order-123","transaction":"{charge}"}}\n' in query
    assert told.endswith("1 charge, 1 idempotency key, 1 event after the window\n")
    assert (stream := re.search(r"redis-cli XRANGE (\w+):payment.completed", query))
    with redis.Redis.from_url(redis_url()) as client:
        assert not list(client.scan_iter(match=f"{stream[1]}*"))
    with psycopg.connect(postgres_url()) as connection:
        assert not connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", [stream[1]]).fetchall()


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_each_example_shows_its_output_at_its_top(example: Path) -> None:
    told = ast.get_docstring(ast.parse(example.read_text()))

    assert told is not None
    assert f"$ python examples/{example.name}" in told
