"""The retry policy: delays, errors told apart, and what of it can be written down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ferryman.options import Overrides
from ferryman.policy.retry import Retry, backoff_delay, http_status, is_fatal, retry_after, written_down


class HttpError(Exception):
    def __init__(self, **fields: Any) -> None:
        super().__init__("http")
        self.__dict__.update(fields)


@pytest.mark.parametrize(
    ("policy", "delays"),
    [
        (Retry(jitter=0), [1, 2, 4, 8]),
        (Retry(jitter=0, base=3, factor=3), [3, 9, 27, 81]),
        (Retry(jitter=0, cap=3), [1, 2, 3, 3]),
        (Retry(jitter=0, backoff="linear", base=2), [2, 4, 6, 8]),
        (Retry(jitter=0, backoff="fixed", base=2), [2, 2, 2, 2]),
        (Retry(backoff="none"), [0, 0, 0, 0]),
        (Retry(backoff=lambda attempt: 10 - 4 * attempt), [6, 2, 0, 0]),
    ],
)
def test_each_backoff_has_its_own_row_of_delays(policy: Retry, delays: list[float]) -> None:
    assert [backoff_delay(policy, attempt, 0.5) for attempt in range(1, 5)] == delays


@given(
    attempt=st.integers(1, 10**6),
    luck=st.floats(0, 1, exclude_max=True),
    jitter=st.floats(0, 1),
    backoff=st.sampled_from(["exponential", "linear", "fixed", "none"]),
)
def test_a_delay_is_never_negative_nor_beyond_the_cap_and_its_jitter(
    attempt: int, luck: float, jitter: float, backoff: Any
) -> None:
    policy = Retry(backoff=backoff, jitter=jitter, cap=100)

    delay = backoff_delay(policy, attempt, luck)

    assert 0 <= delay <= 100 * (1 + jitter)


def test_jitter_spreads_to_both_sides() -> None:
    policy = Retry(base=10, jitter=0.2)

    assert backoff_delay(policy, 1, 0.0) == pytest.approx(8)
    assert backoff_delay(policy, 1, 0.999_999) == pytest.approx(12, abs=0.001)


@pytest.mark.parametrize(
    "fields",
    [{"max_attempts": 0}, {"base": -1}, {"cap": -1}, {"factor": 0}, {"jitter": 1.1}, {"backoff": "cubic"}],
)
def test_a_policy_without_meaning_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(fields))}|must"):
        Retry(**fields)


def test_the_types_of_a_policy_tell_errors_apart() -> None:
    assert is_fatal(Retry(give_up_on=(LookupError,)), KeyError())
    assert not is_fatal(Retry(give_up_on=(LookupError,)), ValueError())
    assert is_fatal(Retry(only_on=(OSError,)), ValueError())
    assert not is_fatal(Retry(only_on=(OSError,)), TimeoutError())


def test_the_judge_has_the_first_word_and_may_leave_it_to_the_rest() -> None:
    lenient = Retry(judge=lambda _: "retry", give_up_on=(KeyError,))
    strict = Retry(judge=lambda _: "fatal")
    silent = Retry(judge=lambda _: None, give_up_on=(KeyError,))

    assert not is_fatal(lenient, KeyError())
    assert is_fatal(strict, ValueError())
    assert is_fatal(silent, KeyError())
    assert not is_fatal(silent, ValueError())


@pytest.mark.parametrize(
    ("status", "fatal"),
    [(400, True), (404, True), (408, False), (409, False), (423, False), (425, False), (429, False), (500, False), (503, False)],
)  # fmt: skip
def test_http_errors_are_told_apart_by_their_status(status: int, fatal: bool) -> None:
    assert is_fatal(Retry(), HttpError(status=status)) is fatal
    assert is_fatal(Retry(), HttpError(response=SimpleNamespace(status_code=status))) is fatal


def test_what_only_looks_like_a_status_is_none() -> None:
    assert http_status(HttpError(code="404")) is None
    assert http_status(HttpError(code=7)) is None
    assert http_status(SystemExit(2)) is None


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (HttpError(retry_after=5), 5),
        (HttpError(retry_after="2.5"), 2.5),
        (HttpError(response=SimpleNamespace(headers={"Retry-After": "9"})), 9),
        (HttpError(headers={"Retry-After": "3"}), 3),
        (HttpError(retry_after=-1), None),
        (HttpError(retry_after=float("nan")), None),
        (HttpError(retry_after=10**9), None),
        (HttpError(headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), None),
        (HttpError(headers=["Retry-After"]), None),
        (ValueError(), None),
    ],
)
def test_the_wait_that_an_error_names_is_found_where_clients_put_it(
    error: Exception, seconds: float | None
) -> None:
    assert retry_after(error) == seconds


def test_what_can_be_written_down_survives_the_way_to_another_process() -> None:
    policy = Retry(
        max_attempts=7, backoff=lambda _: 1, base=2, cap=9, only_on=(OSError,), judge=lambda _: None
    )

    numbers = written_down(policy)

    assert numbers == Retry(max_attempts=7, base=2, cap=9)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(numbers), type=Retry) == numbers


def test_the_numbers_of_a_job_are_read_back_and_nonsense_is_refused() -> None:
    written = msgspec.msgpack.encode(Overrides(backoff=Retry(backoff="linear", base=3)))

    read = msgspec.msgpack.decode(written, type=Overrides)

    assert read.backoff == Retry(backoff="linear", base=3)
    with pytest.raises(msgspec.ValidationError, match="cubic"):
        msgspec.msgpack.decode(msgspec.msgpack.encode({"backoff": {"backoff": "cubic"}}), type=Overrides)
