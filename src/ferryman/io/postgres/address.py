"""Where a PostgreSQL store is: its URL, taken apart."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import unquote

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ferryman.errors import ConfigError

__all__ = ["DEFAULT_SCHEMA", "Address", "parse_url"]

DEFAULT_SCHEMA = "ferryman"

_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,40}")

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
    """The URL without passwords."""


def parse_url(url: str) -> Address:
    """An address from ``postgresql://user:password@host:port/database?schema=ferryman&listen=…``.

    ``schema`` and ``listen`` are Ferryman's own: the second is the URL for LISTEN, for stores behind a pooler in
    transaction mode, or ``no``. All other options are libpq's. Raises ConfigError.
    """
    # Not by urllib, to which a "#" in a password is the end of it; libpq takes one.
    base, _, query = url.partition("?")
    own = {"schema": DEFAULT_SCHEMA, "listen": ""}
    others: list[str] = []
    for option in filter(None, query.split("&")):
        name, _, value = option.partition("=")
        if name in own:
            own[name] = unquote(value)
        else:
            others.append(option)
    schema = own["schema"]
    shown = _shown(url, schema)
    if not _SCHEMA.fullmatch(schema) or schema.startswith("pg_"):
        raise ConfigError(
            f"the store URL {shown!r} has schema={schema!r}, which cannot be the name of a schema of Ferryman's; "
            "write small letters, digits and underscores, 41 at most, not beginning with a digit or pg_"
        )
    conninfo = _conninfo(f"{base}?{'&'.join(others)}", shown)
    return Address(conninfo, _listen(own["listen"], conninfo, shown), schema, shown)


def _listen(listen: str, conninfo: str, shown: str) -> str | None:
    if listen in ("no", "off"):
        return None
    if not listen:
        return conninfo
    if not listen.startswith(("postgresql://", "postgres://")):
        raise ConfigError(
            f"the store URL {shown!r} has an option listen= that is no URL; write "
            "listen=postgresql%3A%2F%2Fhost:5432%2Fdatabase for a server that is not behind a pooler, "
            "or listen=no to poll only"
        )
    return _conninfo(listen, _shown(listen, DEFAULT_SCHEMA))


def _conninfo(url: str, shown: str) -> str:
    try:
        given = conninfo_to_dict(url)
    except psycopg.ProgrammingError as error:
        # Other words of libpq's quote what they did not understand, which may be a piece of a password.
        words = f" ({error})" if "query parameter" in str(error) else ""
        raise ConfigError(
            f"the store URL {shown!r} makes no sense to libpq{words}; write "
            "postgresql://user:password@host:5432/database?schema=ferryman, with special characters of the "
            "password as %XX, and no options but libpq's and Ferryman's schema and listen"
        ) from None
    for port in str(given.get("port", "")).split(","):
        if port and not (port.isdecimal() and 0 < int(port) < 65_536):
            raise ConfigError(f"the store URL {shown!r} has a port that is no number from 1 to 65535")
    return make_conninfo("", **{**_DEFAULTS, **given})


def _shown(url: str, schema: str) -> str:
    scheme, separator, rest = url.partition("?")[0].partition("://")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    query = "" if schema == DEFAULT_SCHEMA else f"?schema={schema}"
    return f"{scheme}{separator}{user.partition(':')[0]}{at}{host}{slash}{path}{query}"
