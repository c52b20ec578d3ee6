"""What PostgreSQL cannot take is refused where it comes in, by name, and not in the transactions of others later on."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest
from psycopg import sql

from ferryman.errors import ConfigError, InvalidJob, StoreUnavailable
from ferryman.io.postgres import parse_url
from ferryman.io.postgres.failures import mapped
from ferryman.job import UniqueKey
from ferryman.store.open import open_store
from ferryman.store.records import QueueSettings
from tests.conformance.driver import Ferry, new_job
from tests.services.proxy import Proxy, proxy
from tests.services.shared import postgres_url
from tests.unit.test_postgres_settings import ferry_on

LONG = secrets.token_hex(4_000)
"""Too long for an index however well it is compressed."""


@pytest.fixture
def ferry(url: str) -> Iterator[Ferry]:
    ferry = ferry_on(url)
    yield ferry
    ferry.store.close()


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("task", {"task": LONG}),
        ("queue", {"queue": LONG}),
        ("key", {"key": LONG}),
        ("unique", {"unique": UniqueKey(LONG)}),
        ("tenant", {"queue": "fair", "tenant": LONG, "delay": 1_000}),
        ("tag", {"tags": ("short", LONG)}),
        ("key", {"key": "ä" * 501}),
    ],
    ids=["task", "queue", "key", "unique", "tenant", "tag", "bytes"],
)
def test_a_text_that_is_too_long_for_an_index_is_refused_at_the_enqueue_and_troubles_nobody(
    ferry: Ferry, admin: psycopg.Connection[Any], name: str, fields: dict[str, Any]
) -> None:
    ferry.run(ferry.store.declare([QueueSettings(name="fair", fair=True)]))
    guest = ferry.store.using(admin)

    with pytest.raises(InvalidJob, match=rf"{name} '.* bytes, and 1,000 is the most"):
        ferry.enqueue(new_job(**fields))
    with admin.transaction(), pytest.raises(InvalidJob, match=rf"{name} '.* bytes, and 1,000 is the most"):
        guest.runner.run(guest.enqueue([new_job(), new_job(**fields)]))

    fine = ferry.add()
    ferry.clock.advance(2)
    assert [claim.id for claim in ferry.claim()] == [fine]


def test_a_tenant_that_is_a_number_is_no_reason_to_refuse(ferry: Ferry) -> None:
    assert ferry.job(ferry.add(tenant=7)).tenant == "7"


def test_a_job_of_another_store_with_such_a_text_is_not_taken_in(ferry: Ferry) -> None:
    elsewhere = ferry_on("memory://")
    elsewhere.add(key=LONG)
    parcels = elsewhere.run(elsewhere.store.pack([], 0, 10))

    with pytest.raises(InvalidJob, match=r"key '.* bytes, and 1,000 is the most"):
        ferry.run(ferry.store.unpack(parcels))

    assert ferry.jobs() == []


def test_two_texts_of_a_thousand_bytes_fit_into_every_index(
    ferry: Ferry, admin: psycopg.Connection[Any]
) -> None:
    def text() -> str:
        return secrets.token_hex(500)

    queue, unique = text(), UniqueKey(text())
    ferry.run(ferry.store.declare([QueueSettings(name=queue, fair=True)]))
    for fields in ({"key": text(), "tenant": text()}, {"tenant": text(), "delay": 1_000}, {"unique": unique}):
        ferry.add(queue=queue, task=text(), tags=(text(), text()), **fields)
    ferry.clock.advance(2)

    ferry.drain()
    ferry.heartbeat()

    assert admin.execute("SELECT count(*) FROM job WHERE state = 5").fetchone() == (3,)
    assert admin.execute("SELECT count(*) FROM stat_news").fetchone() == (0,)


def test_no_heartbeat_dies_of_statistics_that_cannot_be_summed_up(
    ferry: Ferry, admin: psycopg.Connection[Any]
) -> None:
    admin.execute("INSERT INTO stat_news VALUES (0, 'q', %s, 0, 0, 1)", (LONG,))
    ferry.add()

    assert ferry.heartbeat() == []

    assert admin.execute("SELECT count(*) > 1 FROM stat_news").fetchone() == (True,)


@pytest.fixture
def pooler() -> Iterator[Proxy]:
    """One that does not pass on what encoding a server has."""
    port = urlsplit(postgres_url()).port
    assert port is not None
    with proxy(port) as line:
        line.mishear(b"server_encoding", b"client_dialect_")
        yield line


def test_a_database_of_which_a_pooler_does_not_say_what_it_can_keep_is_asked(pooler: Proxy, url: str) -> None:
    store = open_store(pooler.url(url))

    (answer,) = store.runner().run(store.enqueue([new_job()]))

    assert not answer.duplicate
    store.close()


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "asked"])
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
def test_a_database_that_cannot_keep_every_character_is_refused(
    pooler: Proxy, encoding: str, is_told: bool
) -> None:
    name = f"elsewhere_{secrets.token_hex(4)}"
    place = sql.Identifier(name)
    with psycopg.connect(postgres_url(), autocommit=True) as admin:
        admin.execute(
            sql.SQL("CREATE DATABASE {} ENCODING {} LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").format(
                place, encoding
            )
        )
        url = urlsplit(postgres_url())._replace(path=f"/{name}").geturl()
        store = open_store(url if is_told else pooler.url(url))

        with pytest.raises(ConfigError, match=rf"has the encoding {encoding}.*createdb --encoding=UTF8"):
            store.runner().run(store.enqueue([new_job()]))

        store.close()
        admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(place))


def test_notifications_that_nobody_takes_are_told_of_with_the_remedy(admin: psycopg.Connection[Any]) -> None:
    # To fill the real queue takes eight gigabytes.
    with pytest.raises(psycopg.errors.ProgramLimitExceeded) as full:
        admin.execute(
            "DO $$ BEGIN RAISE program_limit_exceeded USING MESSAGE = 'too many notifications in the NOTIFY queue'; END $$"
        )

    told = mapped(full.value, parse_url(postgres_url()))

    assert isinstance(told, StoreUnavailable)
    assert "LISTEN" in str(told)
    assert "pg_notification_queue_usage" in str(told)
