"""PostgreSQL's errors as ours, each with its remedy.

Statements may raise SQLSTATEs of Ferryman's own, whose message is the whole message for the user:

- ``FY001``: it needs the gate, and does not have it; the runner performs the transaction again with `GATE` filled
  as True. Nobody gets to see it.
- ``FY010`` UnknownParent, ``FY012`` WorkerGone.
- ``FY011`` QueueFull; its detail is a JSON array of the queue's name and its bound, and the message is made here.
"""

from __future__ import annotations

import json
import re

import psycopg

from ferryman.errors import (
    FerrymanError,
    QueueFull,
    StoreBusy,
    StoreCorrupt,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    StoreVersionError,
    UnknownParent,
    WorkerGone,
)
from ferryman.io.postgres.address import Address

__all__ = [
    "NEEDS_GATE",
    "PASSING",
    "is_held",
    "is_read_only",
    "is_schema_missing",
    "lost",
    "mapped",
    "unreachable",
]

NEEDS_GATE = "FY001"

_HELD = "55P03"
"""A lock was waited for in vain."""

PASSING = frozenset({NEEDS_GATE, "40001", "40P01"})
"""What does not happen again when the transaction is performed again."""

_MISSING = frozenset({"3F000", "42P01", "42883", "42703"})

_NOT_WRITING = re.compile(
    r"connection to server at .* failed: (session is read-only|server is in hot standby mode)"
)
"""What libpq says of a server that is there, but not such a one as target_session_attrs asks for. Of several servers,
this is the one to tell of, whatever became of the others."""


def mapped(error: Exception, address: Address) -> Exception:
    """What the caller of a statement is told. A new exception for each call, since threads shall not share one."""
    if isinstance(error, StoreError):
        return type(error)(*error.args)
    if isinstance(error, UnicodeError):
        return StoreError(f"the database {address.shown} did not take a value: {error}")
    if not isinstance(error, psycopg.Error):
        return error
    text = error.diag.message_primary or _first_line(error)
    return _by_code(error, text, address) or _by_class(error, text, address)


def _by_code(error: psycopg.Error, text: str, address: Address) -> FerrymanError | None:
    match error.sqlstate:
        case "FY010":
            return UnknownParent(text)
        case "FY011":
            queue, max_size = json.loads(error.diag.message_detail or "")
            return QueueFull(queue, max_size)
        case "FY012":
            return WorkerGone(text)
        case "53100":
            return StoreFull(f"the disk of {address.shown} is full; nothing was stored. Make room on it")
        case "25006":
            return StoreReadOnly(
                f"{address.shown} cannot be written to ({text}); name the primary in the store URL, with several hosts "
                "add target_session_attrs=read-write"
            )
        case "42501":
            return StoreError(
                f"the user of {address.shown} lacks a right ({text}); let the schema's owner grant it: GRANT USAGE ON "
                f"SCHEMA {address.schema}, and ALL ON ALL TABLES, ALL SEQUENCES and ALL FUNCTIONS IN SCHEMA {address.schema}"
            )
        case "57014":
            return StoreUnavailable(
                f"{address.shown} stopped a statement ({text}); if its statement_timeout is short, raise it for this user"
            )
        case "54000" if "NOTIFY" in text:
            return StoreUnavailable(
                f"the queue of notifications of {address.shown} is full ({text}); end the session that did LISTEN and is in "
                "a long transaction: the server's log names it. See SELECT pg_notification_queue_usage()"
            )
        case "54000":
            return StoreError(f"{address.shown} did not take a value: it is too large ({text})")
        case code if code == _HELD:
            return StoreBusy(
                f"a transaction that some program holds open on {address.shown} has what this needs ({text}); end that one"
            )
        case "40001" | "40P01" | "FY001":
            return StoreUnavailable(
                f"{address.shown} could not bring this transaction past others that change the same jobs ({text}); "
                "try again"
            )
        case "XX001" | "XX002":
            return StoreCorrupt(
                f"data of {address.shown} is damaged ({text}); restore it from a backup, or look at the server's log"
            )
        case _:
            return None


def _by_class(error: psycopg.Error, text: str, address: Address) -> StoreError:
    code = error.sqlstate or ""
    if code in _MISSING:
        return StoreVersionError(
            f"the schema {address.schema!r} of {address.shown} lacks what this Ferryman needs ({text}); "
            "run: ferryman migrate"
        )
    match code[:2]:
        case "08" | "57":
            return lost(address, error)
        case "53" | "58":
            return StoreUnavailable(
                f"{address.shown} lacks a resource ({text}); look at the server and its limits. Nothing was stored"
            )
        case "22":
            return StoreError(f"the database {address.shown} did not take a value: {text}")
    if isinstance(error, (psycopg.DataError, psycopg.ProgrammingError)) and not code:
        return StoreError(f"the database {address.shown} did not take a value: {text}")
    return StoreError(f"the database {address.shown} answered: {text}")


def is_schema_missing(error: Exception) -> bool:
    """Whether tables or functions are not there (any more)."""
    return isinstance(error, psycopg.Error) and error.sqlstate in _MISSING


def is_held(error: Exception | None) -> bool:
    """Whether somebody's open transaction has what was needed."""
    return isinstance(error, psycopg.Error) and error.sqlstate == _HELD


def is_read_only(error: Exception) -> bool:
    """Whether the server takes no writes (any more)."""
    return isinstance(error, psycopg.Error) and error.sqlstate == "25006"


def lost(address: Address, error: Exception) -> StoreUnavailable:
    """The connection was lost after something had been sent."""
    return StoreUnavailable(
        f"the connection to {address.shown} was lost ({_first_line(error)}); what was under way has been done wholly or "
        "not at all. Trying again may help"
    )


def unreachable(address: Address, error: psycopg.Error) -> StoreError:
    """A connection could not be opened."""
    if not_writing := _NOT_WRITING.search(str(error)):
        return StoreUnavailable(
            f"no server of {address.shown} takes writes ({not_writing[0]}); start the primary, or promote the standby"
        )
    text = _first_line(error)
    # libpq hands on no SQLSTATE of a failed connection, only the words.
    match text:
        case _ if "authentication" in text or "no password supplied" in text or "pg_hba.conf" in text:
            return StoreError(
                f"{address.shown} did not let this user in ({text}); mend user and password in the store URL, "
                "or the server's pg_hba.conf"
            )
        case _ if "does not exist" in text or "no such database" in text:
            return StoreError(
                f"{address.shown} names something that the server does not have ({text}); make it, with createdb or createuser, "
                "or mend the store URL"
            )
        case _ if "too many" in text or "connection slots" in text or "no more connections" in text:
            return StoreUnavailable(
                f"{address.shown} has no connection left ({text}); raise its max_connections, or put PgBouncer before it"
            )
        case _ if "starting up" in text or "shutting down" in text or "recovery" in text:
            return StoreUnavailable(f"{address.shown} is not ready ({text}); try again in a moment")
        case _:
            return StoreUnavailable(
                f"{address.shown} cannot be reached ({text}); start the server, or mend host and port in the store URL"
            )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
