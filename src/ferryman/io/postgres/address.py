"""Where a PostgreSQL store is: its URL, taken apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import Conninfo

from ferryman.errors import ConfigError
from ferryman.io.url import misspelt, shown, stray_at

__all__ = ["DEFAULT_SCHEMA", "Address", "parse_url"]

DEFAULT_SCHEMA = "ferryman"

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,40}")

_WITH_USER = re.compile(r"\w+://[^/@]*@")

_LIBPQ = frozenset((*(option.keyword.decode() for option in Conninfo.get_defaults()), "ssl"))
"""Options that this libpq knows; the last is another word for sslmode."""

_PLACE = ("service", "host", "hostaddr", "port", "dbname")
"""Options that say which database it is."""

_DEFAULTS: dict[str, str] = {
    "fallback_application_name": "ferryman",
    "client_encoding": "utf8",
    "connect_timeout": "10",
    # A server that vanished without a word is noticed within half a minute.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "30000",
}


class Address(NamedTuple):
    """A server, a database on it and a schema in that. Holds a password: not to be shown."""

    conninfo: str
    """What libpq is to be told."""
    listen: str | None
    """The same, for the connection that listens for bells; None if there shall be none."""
    schema: str
    shown: str
    """The URL without passwords: the scheme, what says which database it is, and the schema."""


def parse_url(url: str) -> Address:
    """An address from ``postgresql://user:password@host:port/database?schema=ferryman&listen=…``.

    ``schema`` and ``listen`` are Ferryman's own: the second is the URL for LISTEN, for stores behind a pooler in
    transaction mode, or ``no``. All other options are libpq's. Raises ConfigError.
    """
    base, query = _cut(url)
    own = {"schema": DEFAULT_SCHEMA, "listen": ""}
    others: list[str] = []
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        if name in own:
            own[name] = unquote(value)
        elif unquote(name) in _LIBPQ:
            others.append(option)
        elif "@" in query:
            raise stray_at(url)
        else:
            raise ConfigError(
                f"the store URL {shown(url)!r} has {misspelt(name, [*own, *_LIBPQ])}; it may have schema, listen and those "
                "of libpq"
            )
    schema = own["schema"]
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigError(
            f"the store URL {shown(url)!r} has a schema= that cannot be the name of a schema of Ferryman's; "
            "write small letters, digits and underscores, 41 at most, not beginning with a digit or pg_"
        )
    address = _shown(base, others, schema)
    conninfo = _conninfo(f"{base}?{'&'.join(others)}", f"the store URL {address!r}")
    return Address(conninfo, _listen(own["listen"], conninfo, address), schema, address)


def _cut(url: str) -> tuple[str, str]:
    """What stands before the options, and these."""
    # Not by urllib, to which a "#" or "?" in a password is the end of it. To libpq, whatever comes before the first "@"
    # is user and password, unless it has a "/".
    user = found[0] if (found := _WITH_USER.match(url)) else ""
    place, _, query = url.removeprefix(user).partition("?")
    if "@" in place:
        raise stray_at(url)
    return user + place, query


def _shown(base: str, options: Sequence[str], schema: str) -> str:
    said = [] if schema == DEFAULT_SCHEMA else [f"schema={schema}"]
    # With an "@" in it, it may be a piece of a password.
    if not any("@" in option for option in options):
        named = {unquote(option.partition("=")[0]): option for option in options}
        said = [named[name] for name in _PLACE if name in named] + said
    return shown(base) + ("?" if said else "") + "&".join(said)


def _listen(listen: str, conninfo: str, address: str) -> str | None:
    if listen in ("no", "off"):
        return None
    if not listen:
        return conninfo
    if not listen.startswith(("postgresql://", "postgres://")):
        raise ConfigError(
            f"the store URL {address!r} has an option listen= that is no URL; write "
            "listen=postgresql%3A%2F%2Fhost:5432%2Fdatabase for a server that is not behind a pooler, "
            "or listen=no to poll only"
        )
    _cut(listen)
    return _conninfo(listen, f"the listen= of the store URL {address!r}")


def _conninfo(url: str, what: str) -> str:
    try:
        given = conninfo_to_dict(url)
    except (psycopg.ProgrammingError, UnicodeError):
        # libpq's words quote what they did not understand, which may be a piece of a password.
        raise ConfigError(
            f"{what} makes no sense to libpq; write "
            "postgresql://user:password@host:5432/database?schema=ferryman, with special characters of the "
            "password as %XX, and no options but libpq's and Ferryman's schema and listen"
        ) from None
    for port in str(given.get("port", "")).split(","):
        if port and not (port.isdecimal() and 0 < int(port) < 65_536):
            raise ConfigError(f"{what} has a port that is no number from 1 to 65535")
    return make_conninfo("", **{**_DEFAULTS, **given})
