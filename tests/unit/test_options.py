"""Options of tasks and jobs: what makes no sense is refused with its name, before anything is stored."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ferryman import Ferryman, Retry
from ferryman.errors import ConfigError
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
