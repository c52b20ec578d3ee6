"""What Redis and the way to it answer instead of an answer, as our errors, each with its remedy."""

from __future__ import annotations

from ferryman import errors
from ferryman.errors import (
    FerrymanError,
    JobUnfinished,
    QueueFull,
    StoreError,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    StoreVersionError,
)
from ferryman.io.redis.address import Address, Node

__all__ = [
    "closed_here",
    "failed_here",
    "lost",
    "old_server",
    "refusal",
    "twin",
    "unconfirmed",
    "unreachable",
]

_REFUSALS: dict[str, type[FerrymanError]] = {
    name: error
    for name in errors.__all__
    if issubclass(error := getattr(errors, name), FerrymanError)
    and not issubclass(error, (QueueFull, JobUnfinished))
}
"""Errors that the library may raise by their names."""


def unreachable(node: Node, error: Exception) -> StoreUnavailable:
    """No connection was made: nothing was sent."""
    reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return StoreUnavailable(
        f"the Redis server at {node} cannot be reached ({reason}); check that it runs and that the store URL "
        "is right"
    )


def lost(node: Node, error: Exception) -> StoreUnavailable:
    """The connection ended between a write and its answer."""
    reason = "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
    return StoreUnavailable(
        f"the connection to the Redis server at {node} was lost ({reason}) before it answered: what was asked may "
        "have been done or not; ask again (a job that is enqueued again under its id makes no second one)"
    )


def unconfirmed(wanted: int, confirmed: int) -> StoreUnavailable:
    """The write stands on the primary, but not on as many replicas as the URL asks for."""
    return StoreUnavailable(
        f"the write is done, but {confirmed} of {wanted} replicas confirmed it in time, so a failover could lose "
        "it; look at INFO replication, or lower replicas=… in the store URL"
    )


def failed_here(error: Exception) -> StoreError:
    """Something went wrong on our side of the connection."""
    failure = StoreError(f"calls could not be sent, or their answers not be handled: {error!r}")
    failure.__cause__ = error
    return failure


def closed_here() -> StoreUnavailable:
    """The runner was closed, and a call that only reads or was not performed yet will have no answer."""
    return StoreUnavailable(
        "the connection to the Redis server was closed here before it answered; nothing was done"
    )


def twin(error: FerrymanError) -> FerrymanError:
    """The same error for another caller: a traceback is one caller's."""
    other = type(error)(*error.args)
    other.__cause__ = error.__cause__
    return other


def old_server(node: Node, version: str) -> StoreVersionError:
    return StoreVersionError(
        f"the server at {node} is Redis {version}; Ferryman needs functions, which Redis 7 or Valkey 7.2 and "
        "later have: upgrade it"
    )


def refusal(message: str, address: Address, node: Node) -> FerrymanError:
    """An error that the server answered with: what was asked for was not done."""
    # A table {err = …} is answered with a code put before it, unlike redis.error_reply.
    code, _, rest = message.removeprefix("ERR ").partition(" ")
    match code:
        case "FERRYMAN":
            return _of_our_own(rest)
        case "OOM":
            return StoreFull(
                f"the Redis server at {node} has used all of its maxmemory; nothing was stored. Raise maxmemory, or "
                "let workers drain the queues and prune what is finished"
            )
        case "READONLY":
            return StoreReadOnly(
                f"the server at {node} is a replica, which cannot be written to; let the store URL name the primary"
            )
        case "NOAUTH":
            return StoreUnavailable(
                f"the Redis server at {node} asks for a password; put it into the store URL: "
                "redis://user:password@host"
            )
        case "WRONGPASS":
            return StoreUnavailable(
                f"the Redis server at {node} refuses the user name or password of the store URL; mend it there, or "
                "see ACL LIST on the server"
            )
        case "NOPERM":
            return _forbidden(rest, address)
        case "MISCONF":
            return StoreUnavailable(
                f"the Redis server at {node} cannot save to its disk and so takes no writes; see its log, and its "
                f"disk ({rest})"
            )
        case "NOREPLICAS":
            return StoreUnavailable(
                f"the Redis server at {node} has fewer replicas than its min-replicas-to-write and takes no writes; "
                "bring them back"
            )
        case "LOADING":
            return StoreUnavailable(
                f"the Redis server at {node} is loading its data after a start; try again soon"
            )
        case "BUSY":
            return StoreUnavailable(
                f"the Redis server at {node} is held up by a script that runs for long; try again, or look for it "
                "with FUNCTION STATS"
            )
        case "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "MASTERDOWN":
            # ASK is not followed: until a slot has moved in whole, its new node has a part of the keys only.
            return StoreUnavailable(
                f"the Redis cluster is moving the slot of {address.key}, or is not whole ({message}); try again "
                "when it is done"
            )
        case _:
            return _by_text(message, address, node)


def _forbidden(what: str, address: Address) -> StoreError:
    user = address.username or "default"
    return StoreError(
        f"the Redis user {user!r} lacks a right ({what}); give it what Ferryman needs: ACL SETUSER {user} "
        f"~{address.key}* &{address.key}* +@all -@admin -@dangerous +info"
    )


def _of_our_own(text: str) -> FerrymanError:
    name, _, message = text.partition(" ")
    if name == "QueueFull":
        max_size, _, queue = message.partition(" ")
        return QueueFull(queue, int(max_size))
    return _REFUSALS.get(name, StoreError)(message)


def _by_text(message: str, address: Address, node: Node) -> FerrymanError:
    if message.startswith("ERR The user executing the script can't"):
        # So says Redis 7.0 what is NOPERM later.
        return _forbidden(message.removeprefix("ERR "), address)
    if "without any password configured" in message:
        return StoreUnavailable(
            f"the Redis server at {node} asks for no password, and the store URL has one; leave it out there, or set the "
            "server's requirepass"
        )
    if "max number of clients" in message:
        return StoreUnavailable(
            f"the Redis server at {node} has as many clients as it may have; raise its maxclients, or look for "
            "connections that nobody needs with CLIENT LIST"
        )
    if "unknown command" in message.lower() and "FCALL" in message.upper():
        return old_server(node, "before 7")
    if "invalid bulk length" in message or "invalid multibulk length" in message:
        return StoreError(
            f"the Redis server at {node} took the batch for too large ({message}); make smaller ones, or raise its "
            "proto-max-bulk-len"
        )
    if message.startswith("ERR Function not found"):
        return StoreUnavailable(
            f"the Redis server at {node} loses the functions that Ferryman loads; look for who calls FUNCTION FLUSH"
        )
    if "non local key" in message:
        return StoreUnavailable(
            f"the Redis cluster is moving the keys that the store uses ({message}); try again when it is done"
        )
    return StoreError(f"the Redis server at {node} answered: {message}")
