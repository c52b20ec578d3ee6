"""A call is all or nothing: each command of each verb is made to fail in turn, and whatever was written before it must
be gone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ferryman.errors import StoreCorrupt
from ferryman.io.operation import Operation
from ferryman.store.redis import store as redis_store
from ferryman.store.redis.library import load_library
from tests.services.redis import redis_server

from .redis_trap import VERBS, Trap, job, trapped


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with redis_server(appendonly="no") as server:
        yield server.url


@pytest.fixture
def trap(server_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trap]:
    monkeypatch.setattr(redis_store, "load_library", lambda: trapped(load_library()))
    trap = Trap(server_url)
    trap.client.flushall()
    trap.fill()
    yield trap
    trap.store.close()
    trap.client.close()


@pytest.mark.parametrize("verb", VERBS)
def test_a_call_that_fails_at_any_of_its_commands_has_changed_nothing(trap: Trap, verb: str) -> None:
    asked = VERBS[verb](trap)
    operations = asked if isinstance(asked, list) else [asked]
    before = trap.all_there_is()

    command = 1
    while trap.fails_at(command, operations):
        assert trap.all_there_is() == before, f"command {command}"
        command += 1

    assert command > 3
    assert trap.all_there_is() != before


FOREIGN = [
    "alive",
    "all",
    "count:ready",
    "deadline",
    "job",
    "key",
    "life",
    "queue",
    "ready:default:0",
    "seq",
    "unique",
]
USUAL = ("enqueue jobs of every kind", "claim", "settle", "settle and claim", "heartbeat", "rescue", "prune")
STEERING = ("cancel", "replay", "reprioritise", "delete")


def refusal(trap: Trap, asked: Operation[Any] | list[Operation[Any]]) -> str | None:
    """What the store says of its data, if it refuses to do this; nothing may have changed then."""
    before = trap.all_there_is()
    try:
        trap.store.runner().run_all(asked if isinstance(asked, list) else [asked])
    except StoreCorrupt as error:
        return str(error) if trap.all_there_is() == before else "it was done by halves"
    return None


@pytest.mark.parametrize("name", FOREIGN)
def test_a_key_of_another_type_is_named_and_nothing_is_changed(trap: Trap, name: str) -> None:
    key = f"{{ferryman}}:{name}"
    operations = [VERBS[verb](trap) for verb in (*USUAL, *STEERING)]
    whole = trap.client.dump(key)
    answers = []
    for asked in operations:
        trap.client.delete(key)
        trap.client.geoadd(key, (1, 1, "x")) if name == "seq" else trap.client.set(key, "another program's")
        answers.append(refusal(trap, asked))

    trap.client.restore(key, 0, whole, replace=True)
    refusals = [answer for answer in answers if answer is not None]
    assert refusals
    assert all(f"{key} is a" in answer for answer in refusals)
    assert trap.run(trap.store.enqueue([job()]))


@pytest.mark.parametrize("name", ["job", "life", "queue", "count:ready", "key", "unique"])
def test_values_that_no_verb_has_written_are_an_error_and_nothing_is_changed(trap: Trap, name: str) -> None:
    key = f"{{ferryman}}:{name}"
    answers = []
    for asked in [VERBS[verb](trap) for verb in (*USUAL, *STEERING)]:
        for field in trap.client.hkeys(key):
            trap.client.hset(key, field, b"gar\xffbage")
        answers.append(refusal(trap, asked))

    refusals = [answer for answer in answers if answer is not None]
    assert refusals
    assert all("something else writes there" in answer for answer in refusals)
