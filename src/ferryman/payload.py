"""Large payloads: stowed outside the store when a job is enqueued or ends, fetched when somebody needs them.

The store then holds a *reference* (the pattern is known as claim check): the blob's name, its size and a digest.
A blob's name begins with the identity of its store and holds the id of its job. That is all the book-keeping there
is: `sweep` asks the store which jobs it still knows, and deletes the blobs of all others. So a crash at any moment
leaves at worst a blob too many, for some hours.
"""

from __future__ import annotations

import functools
import hashlib
import re
import secrets
from collections.abc import Callable, Iterator, Sequence

import msgspec

from ferryman.blob.open import open_blobs
from ferryman.blob.port import Blobs
from ferryman.config import BlobSettings
from ferryman.errors import ConfigError, PayloadError
from ferryman.io.operation import Aside, Procedure
from ferryman.job import Job, JobId, NewJob
from ferryman.store.port import Coordination, Store
from ferryman.store.records import Entry

__all__ = ["SHARDS", "SPARE_MS", "Payloads", "Reference", "fits", "is_reference", "read_reference", "sweep"]

_TAG = b"\x0f"
"""The first byte of a reference, where other payloads have the number of their format (see `ferryman.codec`)."""

_IDENTITY = "ferryman.blobs"
"""The key under which a store keeps its identity."""

_JOB = re.compile(r"/([0-9a-f]{32})\.[^/]*$")
"""The job in the name of a blob."""

_SWEPT_AT_ONCE = 200

SHARDS = 256
"""Parts into which blobs fall by the last two digits of their job's id; each is swept by itself."""

SPARE_MS = 6 * 3_600_000
"""Blobs younger than this are not swept: their job may be about to be enqueued."""


class Reference(msgspec.Struct, frozen=True, array_like=True):
    """What the store holds instead of a large payload."""

    name: str
    size: int
    digest: bytes
    """blake2b of 16 bytes."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Reference).decode


def is_reference(payload: bytes | None) -> bool:
    """Whether the payload itself lies outside."""
    return payload is not None and payload[:1] == _TAG


def fits(size: int, most: int) -> bool:
    """Whether a payload of so many bytes is allowed where `most` are: the number of its format does not count (see
    `ferryman.codec`)."""
    return size - 1 <= most


def read_reference(payload: bytes | None) -> Reference | None:
    """The reference that a payload is, or None if it is the payload itself. Raises PayloadError if it is damaged."""
    if payload is None or not is_reference(payload):
        return None
    try:
        return _decode(payload[1:])
    except msgspec.DecodeError as error:
        raise PayloadError(f"the reference to a payload outside the store is damaged: {error}") from error


class Payloads:
    """An app's way to its large payloads. Thread-safe. Without a place for them, all payloads stay in the store."""

    def __init__(self, settings: BlobSettings, store: Callable[[], Coordination]) -> None:
        self._blobs: Blobs | None = None if settings.url is None else open_blobs(settings.url)
        self._above = settings.above
        self._most = settings.max_payload
        self._store = store
        self._identity: str | None = None

    def is_large(self, payload: bytes | None) -> bool:
        """Whether a payload is to be stowed."""
        return self._blobs is not None and payload is not None and len(payload) > self._above

    def stow_args(self, jobs: Sequence[NewJob], *, tentative: bool = False) -> Procedure[Sequence[NewJob]]:
        """The same jobs, with references for large arguments; `tentative` is that of `stow`."""
        if self._blobs is None or not any(len(job.args) > self._above for job in jobs):
            return jobs
        stowed: list[NewJob] = []
        for job in jobs:
            if len(job.args) > self._above:
                args = yield from self.stow(job.id, "args", job.args, tentative=tentative)
                job = msgspec.structs.replace(job, args=args)
            stowed.append(job)
        return stowed

    def stow(self, job: JobId, what: str, payload: bytes, *, tentative: bool = False) -> Procedure[bytes]:
        """Put a payload outside, if it is large. Answers what the store shall hold. Raises BlobError, and PayloadError if
        it is larger than what could be fetched.

        `tentative`: this is done inside a transaction that may be rolled back, and the store's identity with it.
        """
        blobs = self._blobs
        if blobs is None or len(payload) <= self._above:
            return payload
        self._check_size(len(payload))
        identity = self._identity
        if identity is None:
            identity = yield from _identify(self._store(), blobs)
            if not tentative:
                self._identity = identity
        # Of the last digits, since the first ones are the time: so the folders fill evenly.
        name = f"{identity}/{job[-2:]}/{job}.{what}"
        yield Aside(lambda: blobs.put(name, payload))
        return _TAG + _encode(Reference(name, len(payload), _digest(payload)))

    def fetch(self, payload: bytes) -> Procedure[bytes]:
        """The payload itself, wherever it is. Raises BlobError, PayloadError if it is gone, damaged or larger than
        allowed, and ConfigError if there is no place for it."""
        reference = read_reference(payload)
        if reference is None:
            return payload
        blobs = self._blobs
        if blobs is None:
            raise ConfigError(
                f"the payload lies outside the store, as {reference.name}, and this program was not told where; "
                "set blobs.url (FERRYMAN_BLOBS_URL) as it is set where the job was enqueued"
            )
        self._check_size(reference.size)
        found: bytes | None = yield Aside(lambda: blobs.get(reference.name, reference.size))
        if found is None:
            raise PayloadError(f"the payload {reference.name} is not (any more) in {blobs.url}")
        if len(found) != reference.size or _digest(found) != reference.digest:
            raise PayloadError(f"the payload {reference.name} in {blobs.url} is not what was put there")
        return found

    def _check_size(self, size: int) -> None:
        if not fits(size, self._most):
            raise PayloadError(
                f"{size - 1:,} bytes are more than the {self._most:,} allowed; raise the setting blobs.max_payload"
            )


def sweep(store: Store, blobs: Blobs, now: int, shard: int) -> Procedure[int]:
    """Delete blobs of one shard that no job of the store refers to any more. Answers how many.

    `now` is the time in ms as the place for blobs has it, as far as is known; the young ones are spared, also if that is
    ahead of the store's time. The names alone would not do: a result may have been forgotten, or arguments edited, while
    the job stays.
    """
    entry: Entry | None = yield store.kv_get(_IDENTITY)
    if entry is None:
        return 0
    store_now: int = yield store.time()
    now = min(now, store_now)
    prefix = f"{entry.value.decode()}/{shard:02x}"
    old: list[str] = yield Aside(
        lambda: [found.name for found in blobs.list(prefix) if found.written_at < now - SPARE_MS]
    )
    deleted = 0
    for start in range(0, len(old), _SWEPT_AT_ONCE):
        names = old[start : start + _SWEPT_AT_ONCE]
        ids = sorted({JobId(found[1]) for name in names if (found := _JOB.search(name))})
        jobs: list[Job | None] = yield store.get(ids)
        wanted = {name for job in jobs if job is not None for name in _names_in(job)}
        unwanted = [name for name in names if name not in wanted]
        if unwanted:
            yield Aside(functools.partial(blobs.delete, unwanted))
            deleted += len(unwanted)
    return deleted


def _identify(store: Coordination, blobs: Blobs) -> Procedure[str]:
    """The store's own name among all that keep blobs in one place; made once, by whoever is first."""
    while True:
        entry: Entry | None = yield store.kv_get(_IDENTITY)
        if entry is not None:
            return entry.value.decode()
        identity = secrets.token_hex(8)
        # The place first: a store that has a name has begun there, or else what is there is not the place.
        yield Aside(functools.partial(blobs.begin, identity))
        yield store.kv_put(_IDENTITY, identity.encode(), expected=None)


def _names_in(job: Job) -> Iterator[str]:
    for payload in (job.args, job.result):
        try:
            reference = read_reference(payload)
        except PayloadError:
            continue
        if reference is not None:
            yield reference.name


def _digest(payload: bytes) -> bytes:
    return hashlib.blake2b(payload, digest_size=16).digest()
