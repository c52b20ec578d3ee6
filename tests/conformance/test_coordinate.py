"""Coordination: locks with fencing tokens, and a small shared table with compare-and-set."""

from __future__ import annotations

from ferryman.store.records import Entry

from .driver import Ferry


def _lock(ferry: Ferry, owner: str, name: str = "leader", ttl: int = 10_000) -> int | None:
    return ferry.run(ferry.store.lock(name, owner, ttl))


def _unlock(ferry: Ferry, owner: str, name: str = "leader") -> bool:
    return ferry.run(ferry.store.unlock(name, owner))


def _get(ferry: Ferry, key: str = "k") -> Entry | None:
    return ferry.run(ferry.store.kv_get(key))


def _put(ferry: Ferry, value: bytes, expected: int | None, ttl: int | None = None) -> int | None:
    return ferry.run(ferry.store.kv_put("k", value, expected=expected, ttl=ttl))


def test_a_lock_has_one_owner(ferry: Ferry) -> None:
    token = _lock(ferry, "ann")

    assert isinstance(token, int)
    assert _lock(ferry, "bob") is None


def test_locks_of_different_names_do_not_meet(ferry: Ferry) -> None:
    assert _lock(ferry, "ann", name="one") is not None
    assert _lock(ferry, "bob", name="two") is not None


def test_an_owner_renews_its_lock_under_the_same_token(ferry: Ferry) -> None:
    token = _lock(ferry, "ann")
    ferry.clock.advance(8)

    renewed = _lock(ferry, "ann")
    ferry.clock.advance(8)

    assert renewed == token
    assert _lock(ferry, "bob") is None


def test_a_lock_that_has_run_out_goes_to_another_with_a_larger_token(ferry: Ferry) -> None:
    tokens = [_lock(ferry, "ann")]

    for owner in ("bob", "ann", "cat"):
        ferry.clock.advance(11)
        tokens.append(_lock(ferry, owner))

    assert None not in tokens
    numbers = [token for token in tokens if token is not None]
    assert numbers == sorted(set(numbers))


def test_a_lock_given_back_goes_to_another_with_a_larger_token(ferry: Ferry) -> None:
    first = _lock(ferry, "ann")

    given_back = _unlock(ferry, "ann")
    second = _lock(ferry, "bob")

    assert given_back
    assert first is not None
    assert second is not None
    assert second > first


def test_only_the_owner_can_give_a_lock_back(ferry: Ferry) -> None:
    _lock(ferry, "ann")

    assert _unlock(ferry, "bob") is False
    assert _lock(ferry, "bob") is None
    assert _unlock(ferry, "ann") is True
    assert _unlock(ferry, "ann") is False
    assert _unlock(ferry, "ann", name="never-taken") is False


def test_a_lock_that_has_run_out_cannot_be_given_back(ferry: Ferry) -> None:
    _lock(ferry, "ann")
    ferry.clock.advance(11)

    assert _unlock(ferry, "ann") is False


def test_a_key_that_was_never_put_has_no_value(ferry: Ferry) -> None:
    assert _get(ferry) is None


def test_a_value_is_put_and_got_with_its_version(ferry: Ferry) -> None:
    version = _put(ferry, b"\x00one", None)

    assert version is not None
    assert _get(ferry) == Entry(b"\x00one", version)


def test_a_value_is_put_only_over_the_version_expected(ferry: Ferry) -> None:
    first = _put(ferry, b"one", None)
    assert first is not None

    taken = _put(ferry, b"two", None)
    stale = _put(ferry, b"three", first + 1)
    second = _put(ferry, b"four", first)

    assert (taken, stale) == (None, None)
    assert second is not None
    assert second > first
    assert _get(ferry) == Entry(b"four", second)
    assert _put(ferry, b"five", first) is None


def test_a_key_that_is_not_there_has_no_version_to_expect(ferry: Ferry) -> None:
    assert _put(ferry, b"one", 1) is None
    assert _get(ferry) is None


def test_a_version_is_never_used_again(ferry: Ferry) -> None:
    versions = []
    for _ in range(3):
        version = _put(ferry, b"value", None)
        assert version is not None
        versions.append(version)
        ferry.run(ferry.store.kv_delete("k"))

    assert versions == sorted(set(versions))


def test_a_value_is_gone_when_its_time_is_over(ferry: Ferry) -> None:
    first = _put(ferry, b"one", None, ttl=5_000)
    assert first is not None
    ferry.clock.advance(4)
    there = _get(ferry)
    ferry.clock.advance(2)

    assert there == Entry(b"one", first)
    assert _get(ferry) is None
    assert _put(ferry, b"two", first) is None
    second = _put(ferry, b"two", None)
    assert second is not None
    assert second > first


def test_a_value_without_a_time_stays(ferry: Ferry) -> None:
    first = _put(ferry, b"one", None, ttl=5_000)
    _put(ferry, b"two", first)
    ferry.clock.advance(365 * 24 * 3600)

    entry = _get(ferry)

    assert entry is not None
    assert entry.value == b"two"


def test_a_key_is_deleted_once(ferry: Ferry) -> None:
    _put(ferry, b"one", None)

    assert ferry.run(ferry.store.kv_delete("k")) is True
    assert ferry.run(ferry.store.kv_delete("k")) is False
    assert _get(ferry) is None


def test_a_value_whose_time_is_over_is_not_there_to_be_deleted(ferry: Ferry) -> None:
    _put(ferry, b"one", None, ttl=1_000)
    ferry.clock.advance(2)

    assert ferry.run(ferry.store.kv_delete("k")) is False
