"""What is said to a PostgreSQL server to perform transactions, whatever the colour.

These are generators as psycopg makes them (`psycopg.abc.PQGen`): they send, and yield when there is something to wait
for. `connection.wait` performs them, and on a connection of asyncio, `await connection.wait`. They say to libpq what is
needed and no more. A cursor does much besides, all of which a processor has forgotten when it has slept: a single
statement took 0.1 ms longer through one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg import errors, generators
from psycopg.abc import PQGen
from psycopg.adapt import Transformer
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from ferryman.io.postgres.forms import Form, form_of
from ferryman.io.postgres.performing import Attempt, Rows
from ferryman.io.postgres.requests import Statement, filled

__all__ = ["ISOLATION", "Talk"]

ISOLATION = psycopg.IsolationLevel.READ_COMMITTED
"""Who has waited for a lock must see what was done under it. Where the database's default is another level, each
transaction says it, since what a session is told is lost behind a pooler."""

_PATIENCE_MS = 30
"""For how long a transaction of several operations waits for a lock; each by itself waits as long as it takes."""

_MOST_PREPARED = 200
"""Statements that the server keeps prepared for a connection. There are some hundred; those that look for jobs have a text
for each combination of conditions."""

_MUCH = 1 << 20
"""Bytes of one statement after which what is to be sent is sent."""

_BEGIN = f"BEGIN ISOLATION LEVEL {ISOLATION.name.replace('_', ' ')}".encode()
_BE_IMPATIENT = b"SET LOCAL lock_timeout = %d" % _PATIENCE_MS
_COMMIT = b"COMMIT"


class Talk:
    """Belongs to a connection; not thread-safe. An exception that is about the statements leaves it ready for the next
    one, save that a transaction which was begun is still to be rolled back. Any other leaves it in the midst."""

    def __init__(
        self,
        connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any],
        *,
        prepares: bool,
        strict: bool,
    ) -> None:
        """`prepares`: prepared statements stay, since no pooler is between; `strict`: unless it is told otherwise, the
        database does not isolate transactions as `ISOLATION`."""
        self._server = connection.pgconn
        self._prepares = prepares
        self._strict = strict
        self._rows = Transformer(connection)
        self._names: dict[bytes, bytes] = {}

    def perform(self, attempt: Attempt, now: int | None) -> PQGen[list[Rows]]:
        """Perform statements as one transaction, in one round trip. Raises psycopg.Error, and what fills in a statement
        raises."""
        statements = attempt.statements
        if len(statements) > 1 or self._strict:
            return (yield from self._perform_together(attempt, now))
        return [(yield from self.ask(statements[0], now, gate=attempt.gate))]

    def ask(self, statement: Statement, now: int | None, *, gate: bool = False) -> PQGen[Rows]:
        """Perform one statement, by itself or in the transaction that is open."""
        form = form_of(statement.text)
        values = form.encode(filled(statement, now, gate=gate, own=True))
        if self._prepares and form.text not in self._names:
            yield from self._prepare(form)
        self._send(form, values)
        results = yield from generators.execute(self._server)
        return self._read(results)

    def _perform_together(self, attempt: Attempt, now: int | None) -> PQGen[list[Rows]]:
        server = self._server
        forms = [form_of(each.text) for each in attempt.statements]
        values = [
            form.encode(filled(each, now, gate=attempt.gate, own=True))
            for form, each in zip(forms, attempt.statements, strict=True)
        ]
        for form in forms:
            if self._prepares and form.text not in self._names:
                yield from self._prepare(form)
        beginning = (_BEGIN, _BE_IMPATIENT) if attempt.in_company else (_BEGIN,)
        server.enter_pipeline_mode()
        for text in beginning:
            server.send_query_params(text, None)
        for form, its_values in zip(forms, values, strict=True):
            self._send(form, its_values)
            if sum([len(value) for value in its_values if value]) > _MUCH:
                # All of a group would fill more than libpq has room for.
                yield from generators.send(server)
        server.send_query_params(_COMMIT, None)
        server.pipeline_sync()
        yield from generators.send(server)
        answers: list[Sequence[PGresult]] = []
        # One for each that was sent, and one for the end of the pipeline.
        for _ in range(len(beginning) + len(forms) + 2):
            answers.append((yield from generators.fetch_many(server)))  # noqa: PERF401 - it yields
        server.exit_pipeline_mode()
        # The first that failed is the reason; those after it were not performed.
        rows = [self._read(results) for results in answers[:-1]]
        return rows[len(beginning) : -1]

    def _prepare(self, form: Form) -> PQGen[None]:
        if len(self._names) < _MOST_PREPARED:
            name = b"ferryman_%d" % len(self._names)
            self._server.send_prepare(name, form.text, form.types)
            self._read((yield from generators.execute(self._server)))
            self._names[form.text] = name

    def _send(self, form: Form, values: Sequence[bytes | None]) -> None:
        formats = [Format.BINARY] * len(values)
        name = self._names.get(form.text)
        if name is None:
            self._server.send_query_params(form.text, values, form.types, formats, Format.BINARY)
        else:
            self._server.send_query_prepared(name, values, formats, Format.BINARY)

    def _read(self, results: Sequence[PGresult]) -> Rows:
        result = results[-1]
        match result.status:
            case ExecStatus.TUPLES_OK:
                self._rows.set_pgresult(result)
                return self._rows.load_rows(0, result.ntuples, tuple)
            case ExecStatus.COMMAND_OK:
                return []
            case _:
                raise errors.error_from_result(result, encoding="utf-8")
