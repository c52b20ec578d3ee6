"""Bringing a schema to what a program expects of it: numbered steps, each done once, and functions, replaced as a whole.

What has been done is kept in a table ``meta`` of the schema. All is done in one transaction, under an advisory lock:
programs that start at the same time wait for the first of them and find its work done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import psycopg

from ferryman.errors import ConfigError, StoreCorrupt, StoreError, StoreVersionError

__all__ = ["Act", "Release", "Source", "acts", "migrate", "prepare"]

_OLDEST_SERVER = 130000


class Source(NamedTuple):
    """A piece of SQL. ``@schema@`` in it stands for the schema's name; tables need not be qualified."""

    name: str
    sql: str


class Release(NamedTuple):
    """What a version of a program expects of a schema."""

    version: int
    """Larger with each change of what follows."""
    oldest_ok: int
    """The oldest version of the program that can use the schema when this one has changed it."""
    oldest_store: int
    """The oldest version of a schema that this program can use as it is."""
    steps: Sequence[Source]
    functions: Sequence[Source]

    @property
    def fingerprint(self) -> str:
        """Of the functions."""
        return hashlib.sha256(json.dumps(self.functions).encode()).hexdigest()[:32]


class Act(NamedTuple):
    """A part of a migration."""

    title: str
    """What it does, for people."""
    sql: str


class _Found(NamedTuple):
    """What a schema says of itself."""

    exists: bool
    meta: dict[str, str]

    @property
    def version(self) -> int:
        return int(self.meta.get("version", "0"))


def prepare(connection: psycopg.Connection[Any], schema: str, release: Release) -> None:
    """Look whether a schema can be used, and make it if it does not exist or holds nothing.

    Raises StoreVersionError if only a migration, or another version of this program, would help; StoreCorrupt if the schema
    is another program's; ConfigError if the database cannot keep every text.
    """
    _check_server(connection)
    found = _find(connection, schema)
    if not found.version or (found.version == release.version and _is_other(found, release)):
        migrate(connection, schema, release)
        return
    _check_version(found, schema, release)
    if found.version < release.oldest_store:
        raise StoreVersionError(
            f"the schema {schema!r} has version {found.version}, and this Ferryman needs {release.oldest_store} "
            "at least; run: ferryman migrate"
        )


def migrate(connection: psycopg.Connection[Any], schema: str, release: Release) -> list[str]:
    """Bring a schema to a release, and answer the titles of what was done. A schema that is newer is left as it is."""
    _check_server(connection)
    with connection.transaction():
        connection.execute(_lock(schema))
        todo = acts(connection, schema, release)
        try:
            for act in todo:
                connection.execute(act.sql)
        except psycopg.errors.InsufficientPrivilege as error:
            raise _may_not(connection, schema, error) from error
    return [act.title for act in todo if act.title]


def acts(connection: psycopg.Connection[Any], schema: str, release: Release) -> list[Act]:
    """What `migrate` would do now, in order: nothing, if there is nothing to do."""
    found = _find(connection, schema)
    _check_version(found, schema, release)
    steps = [step for step in release.steps if f"step {step.name}" not in found.meta]
    if found.version > release.version or not (
        steps or found.version < release.version or _is_other(found, release)
    ):
        return []
    todo = [Act("", _lock(schema))]
    if not found.exists:
        todo.append(Act(f"make the schema {schema}", f'CREATE SCHEMA "{schema}"'))
    todo.append(Act("", _settings(schema)))
    if not found.meta:
        todo.append(
            Act("", f'CREATE TABLE "{schema}".meta (key text COLLATE "C" PRIMARY KEY, value text NOT NULL)')
        )
    for step in steps:
        todo.append(Act(f"do the step {step.name}", step.sql.replace("@schema@", schema)))
        todo.append(Act("", _note(schema, f"step {step.name}", "done")))
    if _is_other(found, release):
        if found.version == release.version:
            # Somebody is working on them: signatures may have changed, which nobody else has seen.
            todo.append(Act("", _drop_functions(schema)))
        todo += [Act("", function.sql.replace("@schema@", schema)) for function in release.functions]
        todo.append(Act("replace the functions", _note(schema, "functions", release.fingerprint)))
    todo.append(Act("", _note(schema, "version", str(release.version))))
    todo.append(Act("", _note(schema, "oldest_ok", str(release.oldest_ok))))
    return todo


# -- looking -------------------------------------------------------------------------------------------


def _find(connection: psycopg.Connection[Any], schema: str) -> _Found:
    exists, has_meta, tables, is_usable = connection.execute(
        "SELECT n.oid IS NOT NULL, EXISTS (SELECT FROM pg_class WHERE relnamespace = n.oid AND relname = 'meta'),"
        " (SELECT count(*) FROM pg_class WHERE relnamespace = n.oid), quote_ident(%s::text) = %s::text"
        " FROM (VALUES (1)) AS one LEFT JOIN pg_namespace AS n ON n.nspname = %s::text",
        (schema, schema, schema),
    ).fetchone() or (False, False, 0, True)
    if not is_usable:
        raise ConfigError(
            f"the schema name {schema!r} is a word of SQL; choose another with ?schema= in the store URL"
        )
    if not has_meta:
        if tables:
            raise StoreCorrupt(
                f"the schema {schema!r} holds tables of another program; give Ferryman one of its own with ?schema= in "
                "the store URL"
            )
        return _Found(exists, {})
    # The schema's name has been checked: see `address.parse_url`.
    return _Found(True, dict(connection.execute(f'SELECT key, value FROM "{schema}".meta').fetchall()))  # noqa: S608


def _is_other(found: _Found, release: Release) -> bool:
    return found.meta.get("functions") != release.fingerprint


def _check_version(found: _Found, schema: str, release: Release) -> None:
    oldest_ok = int(found.meta.get("oldest_ok", "0"))
    if oldest_ok > release.version:
        raise StoreVersionError(
            f"the schema {schema!r} has version {found.version} and can be used by Ferrymen of version {oldest_ok} and "
            f"later, and this one has {release.version}; install the newer Ferryman that changed it"
        )


def _check_server(connection: psycopg.Connection[Any]) -> None:
    version = connection.info.server_version
    if version < _OLDEST_SERVER:
        raise StoreVersionError(f"the server is PostgreSQL {version // 10000}; Ferryman needs 13 or later")
    encoding = connection.info.parameter_status("server_encoding")
    if encoding is None:
        # Not every pooler passes it on.
        (encoding,) = connection.execute("SHOW server_encoding").fetchone() or (None,)
    if encoding != "UTF8":
        raise ConfigError(
            f"the database {connection.info.dbname!r} has the encoding {encoding}, which cannot keep every character of an "
            "error or a note; make one for Ferryman with createdb --encoding=UTF8 --template=template0, and name it in the "
            "store URL"
        )


def _may_not(connection: psycopg.Connection[Any], schema: str, error: psycopg.Error) -> StoreError:
    """Rights on what is there would not help: this user may not make it."""
    database, user = connection.info.dbname, connection.info.user
    return StoreError(
        f"the user {user} may not make or change the schema {schema!r} of the database {database!r} "
        f"({error.diag.message_primary}); run `ferryman migrate` as a user who may, and grant {user} what the documentation "
        f'lists under Rights; or let {user} make a schema: GRANT CREATE ON DATABASE "{database}" TO "{user}"'
    )


# -- doing -----------------------------------------------------------------------------------------------


def _lock(schema: str) -> str:
    # A number of its own for each schema, in the key space of all programs of the database.
    return f"SELECT pg_advisory_xact_lock(hashtextextended('ferryman migrates {schema}', 0))"


def _settings(schema: str) -> str:
    return (
        f'SET LOCAL search_path = "{schema}", pg_temp; '
        # Functions may call ones that come after them.
        "SET LOCAL check_function_bodies = off; "
        # Who waits for a lock on a table holds up all who come after.
        "SET LOCAL lock_timeout = '10s'; SET LOCAL client_min_messages = warning"
    )


def _note(schema: str, key: str, value: str) -> str:
    values = f"('{key}', '{value}')"
    return (
        f'INSERT INTO "{schema}".meta (key, value) VALUES {values}'  # noqa: S608
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value"
    )


def _drop_functions(schema: str) -> str:
    return f"""DO $do$ DECLARE names text; BEGIN
    SELECT string_agg(oid::regprocedure::text, ', ') INTO names FROM pg_proc
        WHERE pronamespace = '{schema}'::regnamespace;
    IF names IS NOT NULL THEN EXECUTE 'DROP ROUTINE ' || names; END IF;
END $do$"""  # noqa: S608
