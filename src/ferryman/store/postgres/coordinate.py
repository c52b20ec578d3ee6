"""Named locks with fencing tokens, and a small key-value table with compare-and-set."""

from __future__ import annotations

from ferryman.io.operation import Requests
from ferryman.io.postgres.requests import NOW, OWN, Statement
from ferryman.store.records import Entry

__all__ = ["kv_delete", "kv_get", "kv_put", "lock", "unlock"]


def lock(schema: str, name: str, owner: str, ttl: int) -> Requests[int | None]:
    ((token,),) = yield Statement(
        f"SELECT {schema}.lock_take(%s::text, %s::text, %s::bigint, %s::bigint)", (name, owner, ttl, NOW)
    )
    return None if token is None else int(token)


def unlock(schema: str, name: str, owner: str) -> Requests[bool]:
    ((given_back,),) = yield Statement(
        f"SELECT {schema}.lock_give_back(%s::text, %s::text, %s::bigint)", (name, owner, NOW)
    )
    return bool(given_back)


def kv_get(schema: str, key: str) -> Requests[Entry | None]:
    found = yield Statement(
        f"SELECT value, version FROM {schema}.kv WHERE key = %s::text"  # noqa: S608
        f" AND (until IS NULL OR until > coalesce(%s::bigint, {schema}.ferryman_now()))",
        (key, NOW),
    )
    return Entry(bytes(found[0][0]), found[0][1]) if found else None


def kv_put(
    schema: str, key: str, value: bytes, expected: int | None, ttl: int | None
) -> Requests[int | None]:
    ((version,),) = yield Statement(
        f"SELECT {schema}.kv_put(%s::text, %s::bytea, %s::bigint, %s::bigint, %s::boolean, %s::bigint)",
        (key, value, expected, ttl, OWN, NOW),
    )
    return None if version is None else int(version)


def kv_delete(schema: str, key: str) -> Requests[bool]:
    ((was_there,),) = yield Statement(
        f"SELECT {schema}.kv_delete(%s::text, %s::boolean, %s::bigint)", (key, OWN, NOW)
    )
    return bool(was_there)
