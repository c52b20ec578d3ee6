"""A schema is made once however many begin at once, and versions that do not fit say so; and what a URL may say."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from psycopg.conninfo import conninfo_to_dict

from ferryman.cli.root import root
from ferryman.errors import ConfigError, MissingExtra, StoreCorrupt, StoreError, StoreVersionError
from ferryman.io.postgres import parse_url
from ferryman.io.postgres.migrating import Release, Source, acts, migrate, prepare
from ferryman.store.open import open_store
from ferryman.store.postgres import schema as store_schema
from tests.services.shared import postgres_url

FIRST = Release(
    version=3,
    oldest_ok=2,
    oldest_store=3,
    steps=(Source("0001_boats", "CREATE TABLE boat (name text); CREATE INDEX boat_name ON boat (name);"),),
    functions=(
        Source("a", "CREATE OR REPLACE FUNCTION twice() RETURNS int LANGUAGE sql AS 'SELECT 2 * once()';"),
        Source(
            "b",
            "CREATE OR REPLACE FUNCTION once() RETURNS int LANGUAGE sql SET search_path = @schema@ AS"
            " 'SELECT count(*)::int FROM boat'",
        ),
    ),
)


class Shore:
    """A schema that does not exist yet."""

    def __init__(self) -> None:
        self.name = f"shore_{uuid.uuid4().hex[:12]}"
        self.url = f"{postgres_url()}?schema={self.name}"
        self.connection = psycopg.connect(postgres_url(), autocommit=True)

    def fetch(self, query: str) -> Any:
        return self.connection.execute(query.replace("shore", self.name)).fetchall()

    def do(self, statement: str) -> None:
        self.connection.execute(statement.replace("shore", self.name))

    def close(self) -> None:
        self.do("DROP SCHEMA IF EXISTS shore CASCADE")
        self.connection.close()


@pytest.fixture
def shore() -> Iterator[Shore]:
    shore = Shore()
    yield shore
    shore.close()


# -- making


def test_a_schema_is_made_once(shore: Shore) -> None:
    first = migrate(shore.connection, shore.name, FIRST)
    second = migrate(shore.connection, shore.name, FIRST)

    assert first == [f"make the schema {shore.name}", "do the step 0001_boats", "replace the functions"]
    assert second == []
    assert shore.fetch("SELECT shore.once()") == [(0,)]
    assert shore.fetch("SHOW search_path") == [('"$user", public',)]


def test_a_schema_that_exists_and_is_empty_is_filled(shore: Shore) -> None:
    shore.do("CREATE SCHEMA shore")

    prepare(shore.connection, shore.name, FIRST)

    assert shore.fetch("SELECT shore.once()") == [(0,)]


def test_four_processes_that_begin_at_once_make_one_schema(shore: Shore) -> None:
    program = (
        "import json, sys; from ferryman.store.postgres.schema import migrate; sys.stdin.readline();"
        "print(json.dumps(migrate(sys.argv[1])))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, shore.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]

    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    done = [json.loads(process.communicate(timeout=60)[0]) for process in processes]

    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(map(bool, done)) == [False, False, False, True]
    assert shore.fetch("SELECT count(*) FROM shore.job") == [(0,)]


def test_a_migration_that_fails_leaves_nothing(shore: Shore) -> None:
    broken = FIRST._replace(steps=(*FIRST.steps, Source("0002_reef", "CREATE TABLE (;")))

    with pytest.raises(psycopg.errors.SyntaxError):
        migrate(shore.connection, shore.name, broken)

    assert shore.fetch("SELECT to_regnamespace('shore') IS NULL") == [(True,)]


def test_a_later_release_adds_its_steps_and_keeps_what_is_there(shore: Shore) -> None:
    migrate(shore.connection, shore.name, FIRST)
    shore.do("INSERT INTO shore.boat VALUES ('ferry')")
    later = FIRST._replace(
        version=4,
        steps=(*FIRST.steps, Source("0002_port", "ALTER TABLE boat ADD COLUMN port text")),
        functions=(FIRST.functions[1],),
    )

    done = migrate(shore.connection, shore.name, later)

    assert done == ["do the step 0002_port", "replace the functions"]
    assert shore.fetch("SELECT name, port FROM shore.boat") == [("ferry", None)]
    # An older program beside it goes on.
    assert shore.fetch("SELECT shore.once()") == [(1,)]
    assert shore.fetch("SELECT to_regprocedure('shore.twice()') IS NOT NULL") == [(True,)]


def test_an_older_release_leaves_a_newer_schema_as_it_is(shore: Shore) -> None:
    later = FIRST._replace(version=4, functions=(FIRST.functions[1],))
    migrate(shore.connection, shore.name, later)

    prepare(shore.connection, shore.name, FIRST)

    assert migrate(shore.connection, shore.name, FIRST) == []
    assert shore.fetch("SELECT to_regprocedure('shore.twice()') IS NULL") == [(True,)]


def test_functions_whose_signature_changed_during_development_are_made_anew(shore: Shore) -> None:
    migrate(shore.connection, shore.name, FIRST)
    changed = Source("a", "CREATE OR REPLACE FUNCTION once() RETURNS text LANGUAGE sql AS $$SELECT 'many'$$")

    prepare(shore.connection, shore.name, FIRST._replace(functions=(changed,)))

    assert shore.fetch("SELECT shore.once()") == [("many",)]
    assert shore.fetch("SELECT to_regprocedure('shore.twice()') IS NULL") == [(True,)]


# -- what does not fit


def test_a_schema_that_is_too_new_asks_for_a_newer_ferryman(shore: Shore) -> None:
    migrate(shore.connection, shore.name, FIRST._replace(version=5, oldest_ok=4))

    for use in (prepare, migrate, acts):
        with pytest.raises(StoreVersionError, match="install the newer Ferryman"):
            use(shore.connection, shore.name, FIRST)


def test_a_schema_that_is_too_old_asks_for_a_migration(shore: Shore) -> None:
    migrate(shore.connection, shore.name, FIRST)
    later = FIRST._replace(version=4, oldest_store=4)

    with pytest.raises(StoreVersionError, match="run: ferryman migrate"):
        prepare(shore.connection, shore.name, later)
    migrate(shore.connection, shore.name, later)

    prepare(shore.connection, shore.name, later)


def test_a_schema_that_is_old_but_not_too_old_is_used_as_it_is(shore: Shore) -> None:
    migrate(shore.connection, shore.name, FIRST)

    prepare(shore.connection, shore.name, FIRST._replace(version=4, functions=()))

    assert shore.fetch("SELECT value FROM shore.meta WHERE key = 'version'") == [("3",)]


def test_another_programs_schema_is_left_alone(shore: Shore) -> None:
    shore.do("CREATE SCHEMA shore")
    shore.do("CREATE TABLE shore.invoice (id int)")

    with pytest.raises(StoreCorrupt, match="another program"):
        prepare(shore.connection, shore.name, FIRST)


def test_a_word_of_sql_is_no_name_for_a_schema(shore: Shore) -> None:
    with pytest.raises(ConfigError, match="'select' is a word of SQL"):
        prepare(shore.connection, "select", FIRST)


@pytest.fixture
def guest(shore: Shore) -> Iterator[str]:
    """A user without any rights."""
    name = f"guest_{uuid.uuid4().hex[:12]}"
    shore.do(f"CREATE ROLE {name} LOGIN")
    yield name
    shore.do(f"DROP OWNED BY {name}")
    shore.do(f"DROP ROLE {name}")


def _first_use(shore: Shore, user: str) -> None:
    store = open_store(shore.url.replace("//ferryman@", f"//{user}@"))
    try:
        store.runner().run(store.queues())
    finally:
        store.close()


def test_a_user_who_may_not_make_the_schema_is_told_a_remedy_that_works(shore: Shore, guest: str) -> None:
    with pytest.raises(StoreError, match="run `ferryman migrate` as a user who may") as refused:
        _first_use(shore, guest)
    remedy = str(refused.value)
    remedy = remedy[remedy.index("GRANT") :]

    shore.do(remedy)
    try:
        _first_use(shore, guest)
    finally:
        shore.do(remedy.replace("GRANT", "REVOKE").replace(" TO ", " FROM "))


def test_a_user_who_may_not_fill_an_empty_schema_is_not_sent_for_rights_on_its_tables(
    shore: Shore, guest: str
) -> None:
    shore.do(f"CREATE SCHEMA shore; GRANT USAGE ON SCHEMA shore TO {guest}")

    with pytest.raises(StoreError, match="run `ferryman migrate` as a user who may"):
        _first_use(shore, guest)


def test_a_user_without_rights_on_the_tables_is_told_which_are_missing(shore: Shore, guest: str) -> None:
    CliRunner().invoke(root, ["migrate", "--url", shore.url])

    refused = CliRunner().invoke(root, ["migrate", "--url", shore.url.replace("//ferryman@", f"//{guest}@")])

    assert refused.exit_code == 3
    assert "permission denied" in refused.output
    assert f"GRANT USAGE ON SCHEMA {shore.name}" in refused.output


# -- the command


def test_the_command_makes_the_schema_and_says_so(shore: Shore) -> None:
    first = CliRunner().invoke(root, ["migrate", "--url", shore.url])
    second = CliRunner().invoke(root, ["migrate", "--url", shore.url])

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert f"✓ make the schema {shore.name}" in first.output
    assert "✓ do the step 0001_tables" in first.output
    assert second.output == "the store is up to date: there is nothing to do\n"


def test_the_command_prints_sql_that_does_the_same(shore: Shore) -> None:
    printed = CliRunner().invoke(root, ["migrate", "--sql", "--url", shore.url])
    untouched = shore.fetch("SELECT to_regnamespace('shore') IS NULL")

    shore.connection.execute(printed.output)
    again = CliRunner().invoke(root, ["migrate", "--sql", "--url", shore.url])

    assert untouched == [(True,)]
    assert store_schema.outstanding(shore.url) == []
    assert again.output.startswith("-- the store is up to date")


@pytest.mark.parametrize("url", ["memory://", "sqlite:///jobs.db"])
def test_a_store_without_migrations_has_nothing_to_do(
    url: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    said = CliRunner().invoke(root, ["migrate", "--url", url])

    assert said.exit_code == 0
    assert "there is nothing to do" in said.output
    assert list(tmp_path.iterdir()) == []


# -- URLs


def test_a_url_is_taken_apart() -> None:
    address = parse_url("postgresql://me:s%40crt@h:1/jobs?schema=port&sslmode=require&connect_timeout=3")

    told = conninfo_to_dict(address.conninfo)
    assert (told["user"], told["password"], told["host"], told["port"], told["dbname"]) == (
        "me",
        "s@crt",
        "h",
        "1",
        "jobs",
    )
    assert (told["sslmode"], told["connect_timeout"]) == ("require", "3")
    assert address.schema == "port"
    assert address.listen == address.conninfo
    assert address.shown == "postgresql://me@h:1/jobs?schema=port"


def test_the_url_that_is_shown_tells_databases_apart() -> None:
    url = (
        "postgresql:///?port=5433&password=s3cret&schema=own&dbname=shop&host=/run/postgresql&sslmode=disable"
    )
    odd = "postgresql://me:a/b?host=s3cret@h/jobs"

    assert parse_url(url).shown == "postgresql:///?host=/run/postgresql&port=5433&dbname=shop&schema=own"
    assert parse_url("postgresql://h/?service=shop").shown == "postgresql://h/?service=shop"
    with pytest.raises(ConfigError) as error:
        parse_url(odd)
    assert "s3cret" not in str(error.value)


def test_a_url_may_leave_all_to_the_environment() -> None:
    address = parse_url("postgresql://")

    assert "host" not in conninfo_to_dict(address.conninfo)
    assert (address.schema, address.shown) == ("ferryman", "postgresql://")


def test_bells_may_have_a_server_of_their_own_or_none() -> None:
    apart = parse_url("postgresql://pooler/jobs?listen=postgresql%3A%2F%2Fme:x@h:5/jobs")
    none = parse_url("postgresql://pooler/jobs?listen=no")

    assert apart.listen is not None
    assert conninfo_to_dict(apart.listen)["host"] == "h"
    assert conninfo_to_dict(apart.conninfo)["host"] == "pooler"
    assert "x@h" not in apart.shown
    assert none.listen is None


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://h/jobs?schema=Port", "small letters"),
        ("postgresql://h/jobs?schema=", "small letters"),
        ("postgresql://h/jobs?schema=pg_port", "small letters"),
        (
            "postgresql://h/jobs?colour=red",
            "unknown option 'colour'; it may have schema, listen and those of libpq$",
        ),
        ("postgresql://h/jobs?schem=a", r"unknown option 'schem' \(did you mean 'schema'\?\)"),
        ("postgresql://h/jobs?sslmod=a", r"unknown option 'sslmod' \(did you mean 'sslmode'\?\)"),
        ("postgresql://h/jobs?sslmode", "makes no sense to libpq"),
        ("postgresql://h:port/jobs", "a port that is no number"),
        ("postgresql://h/jobs?listen=there", "listen=no"),
        ("postgresql+asyncpg://h/jobs", "the driver is always psycopg"),
        ("oracle://me:secret@h/jobs", "is none that Ferryman knows"),
    ],
)
def test_a_url_that_makes_no_sense_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        open_store(url)

    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("url", ["postgresql://me:secr%et@h/jobs", "postgresql://me:secret@h:x/jobs"])
def test_a_url_that_is_refused_does_not_show_its_password(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_url(url)

    assert "secr" not in str(refused.value)
    assert refused.value.__cause__ is None


@pytest.mark.parametrize(("url", "extra"), [("postgresql://h/jobs", "postgres"), ("redis://h", "redis")])
def test_a_missing_package_names_the_extra(url: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = {"postgres": "psycopg", "redis": "redis"}[extra]
    monkeypatch.setitem(sys.modules, package, None)

    with pytest.raises(MissingExtra, match=rf"pip install 'ferryman\[{extra}\]'"):
        open_store(url)
