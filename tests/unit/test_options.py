"""Options of tasks and jobs: what makes no sense is refused with its name, before anything is stored."""

from __future__ import annotations

import math
import uuid
from typing import Any

import pytest

from ferryman import Ferryman, Retry
from ferryman.errors import BadArguments, ConfigError
from ferryman.options import Unique


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"delay": -1}, "delay must lie between 0 and 3,153,600,000 seconds"),
        ({"delay": math.inf}, "delay must lie"),
        ({"ttl": math.nan}, "ttl must lie"),
        ({"timeout": 1e300}, "timeout must lie"),
        ({"result_ttl": 2**63}, "result_ttl must lie"),
        ({"unique": math.inf}, "unique must lie"),
        ({"unique": Unique(period=-1)}, "unique must lie"),
        ({"priority": 1.0}, "priority 1.0 is no whole number"),
        ({"key": "k", "room": 0}, "room must lie between 1 and 2,147,483,647"),
        ({"key": "k", "room": 2**31}, "room must lie"),
        ({"max_memory": -1}, "max_memory must not be negative"),
    ],
    ids=str,
)
def test_numbers_that_no_store_could_keep_are_refused(options: dict[str, Any], words: str) -> None:
    app = Ferryman("memory://")

    with pytest.raises(ConfigError, match=words):

        @app.task(**options)
        def work() -> None: ...


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"key": "k" * 1_001}, "key 'kkkk.* has 1,001 bytes, and 1,000 is the most"),
        ({"unique": "ä" * 501}, "unique 'ää.* has 1,002 bytes"),
        ({"unique": Unique("u" * 1_001)}, "unique 'uu.* has 1,001 bytes"),
        ({"tenant": "t" * 1_001}, "tenant 'tt.* has 1,001 bytes"),
        ({"tags": ["a", "b" * 1_001]}, "tag 'bb.* has 1,001 bytes"),
        ({"name": "n" * 1_001}, "name 'nn.* has 1,001 bytes"),
    ],
    ids=["key", "unique", "Unique", "tenant", "tags", "name"],
)
def test_texts_that_are_too_long_for_the_index_of_some_store_are_refused_by_all(
    options: dict[str, Any], words: str
) -> None:
    app = Ferryman("memory://")

    with pytest.raises(ConfigError, match=words):

        @app.task(**options)
        def work() -> None: ...


@pytest.mark.parametrize("key", ["{who}", lambda who: who], ids=["format", "function"])
def test_so_is_a_key_that_is_made_from_arguments(key: Any) -> None:
    app = Ferryman("memory://")

    @app.task(key=key)
    def greet(who: str) -> None: ...

    greet.enqueue("w" * 1_000)
    with pytest.raises(BadArguments, match=r"key 'ww.* has 1,001 bytes, and 1,000 is the most"):
        greet.enqueue("w" * 1_001)


@pytest.mark.parametrize(("made", "key"), [(None, None), (7, "7"), (uuid.UUID(int=1), str(uuid.UUID(int=1)))])
def test_what_a_function_gives_as_a_key_is_taken_as_text_and_none_as_no_key(
    made: Any, key: str | None
) -> None:
    app = Ferryman("memory://")

    @app.task(key=lambda who: made)
    def greet(who: str) -> None: ...

    assert greet.enqueue("w").record().key == key


@pytest.mark.parametrize("attempts", [0, 2**31])
def test_so_is_a_number_of_attempts(attempts: int) -> None:
    with pytest.raises(ValueError, match="max_attempts must lie between 1 and 2,147,483,647"):
        Retry(max_attempts=attempts)


def test_the_largest_numbers_of_all_are_kept() -> None:
    app = Ferryman("memory://")

    @app.task(retry=Retry(max_attempts=2**31 - 1), key="k", room=2**31 - 1)
    def work() -> None: ...

    job = work.options(delay=3_153_600_000, ttl=3_153_600_000).enqueue().record()
    assert job.max_attempts == 2**31 - 1
    assert job.run_at > job.enqueued_at


@pytest.mark.parametrize("weight", [0, -1.0, 1e-310, 1e7, math.inf, math.nan])
def test_so_is_a_weight_whose_share_cannot_be_reckoned_with(weight: float) -> None:
    app = Ferryman("memory://")

    with pytest.raises(
        ConfigError, match=r"'imports': the weight of 'acme' must lie between 0\.000001 and 1,000,000"
    ):
        app.queue("imports", fair=True, weights={"bolt": 1, "acme": weight})


def test_a_key_that_is_neither_a_text_nor_a_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="key must be a text or a function, not 5"):
        Ferryman("memory://").task(key=5)(lambda: None)  # type: ignore[call-overload]


def test_tenants_and_tags_that_are_numbers_are_taken_as_texts() -> None:
    app = Ferryman("memory://")

    @app.task(tenant=7, tags=[8])  # type: ignore[call-overload, untyped-decorator]
    def work() -> None: ...

    (job,) = app.store.runner().run(app.store.get([work.enqueue().id]))

    assert job is not None
    assert (job.tenant, job.tags) == ("7", ("8",))
