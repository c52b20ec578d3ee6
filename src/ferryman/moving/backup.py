"""Backup and restore: all jobs of a store into one file, and from it into a store of any kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TypeVar

import msgspec

from ferryman.clock import SystemClock
from ferryman.config import BlobSettings, Settings
from ferryman.errors import ConfigError, StoreError
from ferryman.io.operation import Operation
from ferryman.job import JobId, State
from ferryman.moving.arriving import Arriving
from ferryman.moving.chest import ChestReader, ChestWriter, Header
from ferryman.moving.outside import Outside, lies_outside
from ferryman.moving.queues import hand_over
from ferryman.store.cargo import MOST_BYTES, Parcel
from ferryman.store.port import Store
from ferryman.store.records import Filter

__all__ = ["Restored", "Saved", "backup", "restore"]

T = TypeVar("T")

_PAGE = 500

Watch = Callable[[str, int, int | None], None]
"""Is told what is being done, how many jobs that concerns by now, and of how many."""


class Saved(msgspec.Struct, frozen=True):
    """What a backup came to."""

    jobs: int
    counts: dict[str, int]
    """Jobs of the file by state."""
    left_outside: int
    """Jobs whose payloads are not in the file, but in their place outside the store."""
    size: int
    """Of the file, in bytes."""


class Restored(msgspec.Struct, frozen=True):
    """What a restore came to."""

    jobs: int
    """Jobs of the file, all of which the store has now."""
    new: int
    """Those that it did not have before."""
    counts: dict[str, int]
    """The new ones, by the state that they had when they were saved."""


def backup(store: Store, path: Path, blobs: BlobSettings, watch: Watch) -> Saved:
    """Write all jobs of a store into a file, and read it once more. Others may go on meanwhile."""
    counts = _counts(store)
    queues = _run(store, store.queues())
    header = Header(
        ferryman=version("ferryman"), store=store.capabilities.name, url=store.url, made_at=SystemClock().now(),
        counts=counts, queues=tuple(queues),
    )  # fmt: skip
    outside = Outside(blobs, store)
    saved: dict[str, int] = {}
    jobs = left_outside = 0
    with ChestWriter(path, header) as chest:
        for parcels in _chunks(store, outside):
            chest.put(parcels)
            jobs += len(parcels)
            left_outside += sum(map(lies_outside, parcels))
            for parcel in parcels:
                saved[parcel.state.label] = saved.get(parcel.state.label, 0) + 1
            watch("saved", jobs, max(jobs, sum(counts.values())))
    return Saved(jobs, saved, left_outside, path.stat().st_size)


class _Seen:
    """Numbers of arrival: those of millions of jobs in little memory."""

    def __init__(self) -> None:
        self._blocks: dict[int, int] = {}

    def add(self, seq: int) -> None:
        block = seq >> 10
        self._blocks[block] = self._blocks.get(block, 0) | 1 << (seq & 1023)

    def __contains__(self, seq: int) -> bool:
        return bool(self._blocks.get(seq >> 10, 0) >> (seq & 1023) & 1)


def _pages(store: Store) -> Iterator[list[Parcel]]:
    """All jobs in order of arrival, save that none comes before the parents that it waits for."""
    seen = _Seen()
    after = 0
    while page := _run(store, store.pack((), after, _PAGE)):
        after = page[-1].seq
        for parcel in page:
            seen.add(parcel.seq)
        yield from _late_parents(store, page, seen)
        yield page


def _late_parents(store: Store, page: Sequence[Parcel], seen: _Seen) -> Iterator[list[Parcel]]:
    """Those that came too late for the page in which their number stands, since their producer's transaction was open. A
    child without its parent would be cancelled where it is restored."""
    wanted = {id_ for parcel in page for id_ in parcel.waits_for} - {parcel.job.id for parcel in page}
    after = 0
    while wanted and (found := _run(store, store.pack((), after, _PAGE, tuple(wanted)))):
        after = found[-1].seq
        late = [parent for parent in found if parent.seq < page[-1].seq and parent.seq not in seen]
        for parent in late:
            seen.add(parent.seq)
        if late:
            yield from _late_parents(store, late, seen)
            yield late


def _chunks(store: Store, outside: Outside) -> Iterator[list[Parcel]]:
    """All jobs, with their payloads if there is a place for these."""
    chunk: list[Parcel] = []
    size = 0
    for page in _pages(store):
        for parcel in page:
            whole = outside.bring_in(parcel) if outside.known else parcel
            chunk.append(whole)
            size += whole.size
            if size >= MOST_BYTES or len(chunk) >= _PAGE:
                yield chunk
                chunk, size = [], 0
    if chunk:
        yield chunk


def restore(store: Store, path: Path, settings: Settings, watch: Watch, *, merge: bool) -> Restored:
    """Store all jobs of a file that are not known yet. Nothing is stored of a file that is damaged.

    Raises ConfigError if the store has jobs and `merge` does not say that this is meant, and if a payload is larger than
    it may be.
    """
    chest = ChestReader(path)
    known = sum(_counts(store).values())
    if known and not merge:
        raise ConfigError(
            f"the store {store.url} has {known:,} jobs; restore into an empty one, or say --merge to add those of the backup "
            "that it does not have"
        )
    total = 0
    for chunk in chest.chunks():
        _demand_room(settings, chunk)
        total += len(chunk)
    queues = chest.header.queues
    hand_over(
        [queue.settings for queue in queues], [queue.settings.name for queue in queues if queue.paused], store
    )
    outside = Outside(settings.blobs, store)
    # The same if a restore that was killed is begun again.
    arriving = Arriving(store, f"{chest.header.url} {chest.header.made_at}")
    counts: dict[str, int] = {}
    jobs = new = 0
    for chunk in chest.chunks():
        arriving.keep_up()
        fresh = _restore_chunk(store, outside, chunk)
        for parcel in fresh:
            counts[parcel.state.label] = counts.get(parcel.state.label, 0) + 1
        jobs += len(chunk)
        new += len(fresh)
        watch("restored", jobs, total)
    arriving.end()
    return Restored(jobs, new, counts)


def _demand_room(settings: Settings, parcels: Sequence[Parcel]) -> None:
    most, remedy = settings.most_bytes, "raise blobs.max_payload"
    if settings.blobs.url is None:
        remedy = "set blobs.url, to have them outside the store, or raise max_payload"
    for parcel in parcels:
        # The first byte is the number of their format.
        size = max(len(parcel.job.args), len(parcel.result or b"")) - 1
        if size > most:
            raise ConfigError(
                f"job {parcel.job.id} has {size:,} bytes of arguments or of a result, and {most:,} are allowed; {remedy}. "
                "Nothing was restored"
            )


def _restore_chunk(store: Store, outside: Outside, chunk: Sequence[Parcel]) -> list[Parcel]:
    """Answers those that are new."""
    known = _ids(store, tuple(parcel.job.id for parcel in chunk))
    arriving = [outside.put_out(parcel) for parcel in chunk if parcel.job.id not in known]
    if not arriving:
        return []
    fresh = _run(store, store.unpack(arriving))
    ids = tuple(parcel.job.id for parcel in arriving)
    missing = set(ids) - _ids(store, ids)
    if missing:
        raise StoreError(
            f"{len(missing):,} jobs were restored and are not in {store.url}, such as {min(missing)}; has somebody deleted "
            "them? Begin again with --merge"
        )
    return [parcel for parcel, is_new in zip(arriving, fresh, strict=True) if is_new]


def _ids(store: Store, ids: tuple[JobId, ...]) -> set[JobId]:
    return {job.id for job in _run(store, store.find(Filter(ids=ids), len(ids)))}


def _counts(store: Store) -> dict[str, int]:
    counts: dict[str, int] = {}
    for lane in _run(store, store.lanes()):
        for state, number in lane.counts.items():
            if number:
                label = State(state).label
                counts[label] = counts.get(label, 0) + number
    return counts


def _run(store: Store, operation: Operation[T]) -> T:
    return store.runner().run(operation)
