"""A Redis URL, taken apart."""

from __future__ import annotations

import re
import ssl
from typing import NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from ferryman.errors import ConfigError
from ferryman.io.url import misspelt, shown, stray_at

__all__ = ["Address", "Node", "parse_url"]

_PREFIX = re.compile(r"[A-Za-z0-9_.:-]+")

_TLS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")

_HELP = (
    "write redis://user:password@host:6379/0?prefix=ferryman, rediss:// for TLS, "
    "or unix:///path/to/redis.sock?db=0"
)


class Node(NamedTuple):
    """Where a server listens: a host and a port, or the path of a socket and no port."""

    host: str
    port: int

    def __str__(self) -> str:
        if not self.port:
            return self.host
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Address(NamedTuple):
    """What a Redis URL says."""

    node: Node
    db: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None
    key: str
    """The prefix in braces, a hash tag: all keys begin with it, so that a cluster keeps them on one node."""
    replicas: int
    """How many replicas must confirm each write."""
    shown: str
    """The URL without passwords."""


def parse_url(url: str) -> Address:
    """Raises ConfigError, which names the part that is wrong."""
    parts = _split(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unix = parts.scheme == "unix"
    node = Node(unquote(parts.path), 0) if unix else Node(parts.hostname or "localhost", _port(parts, url))
    if unix and not node.host:
        raise ConfigError(f"the store URL {shown(url)!r} names no socket; {_HELP}")
    path = "" if unix else unquote(parts.path).strip("/")
    if path and "db" in options:
        raise ConfigError(
            f"the store URL {shown(url)!r} names a database and has db=, too; leave one of them out"
        )
    db = _number("database", path or options.pop("db", "0"), url)
    prefix = options.pop("prefix", "ferryman")
    if not _PREFIX.fullmatch(prefix):
        raise ConfigError(
            f"the prefix {prefix!r} of the store URL has no meaning: use letters, digits and . _ : - alone"
        )
    replicas = _number("replicas", options.pop("replicas", "0"), url)
    tls = _tls(options) if parts.scheme == "rediss" else None
    if options:
        known = ("prefix", "replicas", *(_TLS if tls else ()), *(() if path else ("db",)))
        raise ConfigError(
            f"the store URL {shown(url)!r} has {misspelt(next(iter(options)), known)}; it may have {', '.join(known)}"
        )
    return Address(
        node,
        db,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
        tls,
        f"{{{prefix}}}",
        replicas,
        f"{shown(url)}{parts.query and '?'}{parts.query}",
    )


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        # What urllib says of it quotes from it.
        raise ConfigError(
            f"the store URL {shown(url)!r} makes no sense; {_HELP}, with special characters of the password as %XX"
        ) from None
    if "@" in parts.path + parts.query + parts.fragment:
        raise stray_at(url)
    return parts


def _port(parts: SplitResult, url: str) -> int:
    try:
        port = 6379 if parts.port is None else parts.port
    except ValueError:
        port = 0
    if not port:
        raise ConfigError(
            f"the store URL {shown(url)!r} has a port that is no number from 1 to 65535; {_HELP}"
        )
    return port


def _number(name: str, text: str, url: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name} {text!r} of the store URL {shown(url)!r} is no number; {_HELP}")
    return int(text)


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    """TLS as redis-py's URLs name its settings; the server's certificate is checked unless told otherwise."""
    authorities, certificate, key, checked = (options.pop(name, None) for name in _TLS)
    try:
        context = ssl.create_default_context(cafile=authorities)
        if certificate:
            context.load_cert_chain(certificate, key)
    except OSError as error:
        raise ConfigError(f"a certificate that the store URL names cannot be used: {error}") from error
    if checked not in (None, "none", "required"):
        raise ConfigError(f"ssl_cert_reqs of the store URL is required or none, not {checked!r}")
    if checked == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
