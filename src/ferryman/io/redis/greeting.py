"""What is said first on each connection: who we are, whether the server will do, and that it has our functions."""

from __future__ import annotations

import logging
from typing import Any

import hiredis

from ferryman.errors import StoreError, StoreReadOnly
from ferryman.io.redis.address import Address, Node
from ferryman.io.redis.failures import old_server, refusal
from ferryman.io.redis.link import Link
from ferryman.io.redis.requests import Library

__all__ = ["MovedError", "greet", "introduce", "look_for_persistence"]

log = logging.getLogger("ferryman.redis")

_UNPERSISTENT = (
    "the Redis server at %s has its append-only file turned off: when it restarts, it forgets %s. Set "
    "`appendonly yes` (and `appendfsync always` if not one job may be lost to a power cut)"
)


class MovedError(Exception):
    """The keys are on another node of the cluster; what the server said of it."""


def greet(link: Link, address: Address, library: Library) -> dict[str, str]:
    """Make a fresh connection ready. Answers the server's INFO.

    Raises OSError, MovedError, or a StoreError that says why this server will not do.
    """
    introduce(link, address)
    info, mark = link.ask(("INFO",), ("FCALL_RO", f"{library.name}_mark", 1, address.key))
    facts = _facts(_checked(info, address, link.node))
    _check_version(facts, link.node)
    if isinstance(mark, hiredis.ReplyError) and str(mark).startswith("MOVED "):
        raise MovedError(str(mark))
    _check_role(facts, link.node)
    _check_eviction(facts, link.node)
    _ensure_library(link, address, library, mark)
    return facts


def introduce(link: Link, address: Address) -> None:
    """Give the password and the name, choose the database."""
    commands: list[tuple[str | int, ...]] = []
    if address.password is not None:
        user = () if address.username is None else (address.username,)
        commands.append(("AUTH", *user, address.password))
    if address.db:
        commands.append(("SELECT", address.db))
    if commands:
        for answer in link.ask(*commands):
            _checked(answer, address, link.node)
    # A name in CLIENT LIST is a courtesy: no server is refused for want of it.
    link.ask(("CLIENT", "SETNAME", "ferryman"))


def look_for_persistence(link: Link, facts: dict[str, str]) -> None:
    """Warn if the server forgets when it restarts."""
    if facts.get("aof_enabled") != "0":
        return
    (answer,) = link.ask(("CONFIG", "GET", "save"))
    # Hosted servers often do not let one ask.
    snapshots = not (isinstance(answer, list) and len(answer) == 2 and answer[1] == b"")
    log.warning(_UNPERSISTENT, link.node, "all since its last snapshot" if snapshots else "all jobs")


def _ensure_library(link: Link, address: Address, library: Library, mark: Any) -> None:
    """Load our functions, unless the server has them, or newer ones under the same name."""
    if isinstance(mark, hiredis.ReplyError):
        if not str(mark).startswith("ERR Function not found"):
            raise refusal(str(mark), address, link.node)
    elif mark.decode() == library.mark or int(mark.split()[0]) > library.revision:
        return
    (answer,) = link.ask(("FUNCTION", "LOAD", "REPLACE", library.text))
    if isinstance(answer, hiredis.ReplyError) and "unknown command" in str(answer).lower():
        raise old_server(link.node, "without functions")
    _checked(answer, address, link.node)


def _check_version(facts: dict[str, str], node: Node) -> None:
    # Valkey says redis_version:7.2.4 for the sake of old clients, and its own beside it.
    version = facts.get("redis_version", "unknown")
    major, _, _ = version.partition(".")
    if not major.isdigit() or int(major) < 7:
        raise old_server(node, version)


def _check_role(facts: dict[str, str], node: Node) -> None:
    if facts.get("role") == "slave":
        primary = Node(facts.get("master_host", "unknown"), int(facts.get("master_port", "0")))
        raise StoreReadOnly(
            f"the server at {node} is a replica, which cannot be written to; let the store URL name its primary, "
            f"{primary}"
        )


def _check_eviction(facts: dict[str, str], node: Node) -> None:
    policy = facts.get("maxmemory_policy", "noeviction")
    if facts.get("maxmemory", "0") != "0" and policy.startswith("allkeys-"):
        raise StoreError(
            f"the Redis server at {node} has maxmemory-policy {policy}: when it is full, it would throw jobs away. "
            "Change it with CONFIG SET maxmemory-policy noeviction and in its configuration file, or give Ferryman "
            "a server of its own"
        )


def _facts(info: bytes) -> dict[str, str]:
    lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
    return {name: value for name, colon, value in lines if colon}


def _checked(answer: Any, address: Address, node: Node) -> Any:
    if isinstance(answer, hiredis.ReplyError):
        raise refusal(str(answer), address, node)
    return answer
