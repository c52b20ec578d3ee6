"""The move: all jobs of one store to another, while producers go on, and safely begun again after a crash.

The queues of the first store are paused and what runs is waited for. Then in rounds: jobs are copied page by page in order of
arrival, none before the parents that it waits for; what is found in the second store is forgotten in the first, the youngest
first; until nothing is left. A job is forgotten only when it was seen in its new place, and its id is known there: so a crash
at any moment loses none and doubles none, as long as the first store stays paused, which it does until the end, and the
second one deletes no finished jobs, which it does not for a day after it last heard from the move.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from itertools import compress, takewhile
from typing import NamedTuple, TypeVar

import msgspec

from ferryman.config import BlobSettings
from ferryman.errors import ConfigError, FerrymanError
from ferryman.io.operation import Operation
from ferryman.job import FINISHED, PENDING, Job, JobId, State
from ferryman.moving.arriving import Arriving
from ferryman.moving.outside import Outside, lies_outside
from ferryman.moving.queues import hand_over
from ferryman.moving.record import LOCK, LOCK_TTL, Record, read_record, write_record
from ferryman.store.cargo import Parcel
from ferryman.store.port import Store
from ferryman.store.records import ARRIVING, Filter
from ferryman.worker.identity import is_dead_neighbour, place

__all__ = ["MOVED", "Moved", "Mover", "Watch"]

T = TypeVar("T")

MOVED = (*sorted(PENDING), State.DEAD)
"""The states whose jobs are moved: all that may run again."""

_HISTORY = (*MOVED, State.SUCCEEDED, State.CANCELLED, State.EXPIRED)

_NOT_CANCELLED = tuple(sorted(set(State) - {State.CANCELLED}))
_UNFINISHED = (*sorted(PENDING), State.RUNNING)

_PAGE = 500
_LOOK_AGAIN = 0.25
_BARREN = 200
"""Rounds that came to nothing, one after the other, before it is given up."""

Watch = Callable[[str, int, int | None], None]
"""Is told what is being done, how many jobs that concerns by now, and of how many."""


class Moved(msgspec.Struct):
    """What a move came to."""

    jobs: Counter[tuple[str, State]]
    """Jobs that are in the second store and no more in the first, by queue and by the state they had."""
    parents: int = 0
    """Finished jobs that were copied because an unfinished child may want their results."""
    lost_payloads: int = 0
    rounds: int = 0


class _Page(NamedTuple):
    """Jobs that a round has met: as little of them as can be, since they may be millions."""

    ids: bytes
    pending: bytes
    """For each of them, 1 if it was pending when it was packed, else 0."""
    kinds: Counter[tuple[str, State]]

    @classmethod
    def of(cls, parcels: Sequence[Parcel]) -> _Page:
        ids = bytes.fromhex("".join([parcel.job.id for parcel in parcels]))
        pending = bytes([parcel.state in PENDING for parcel in parcels])
        return cls(ids, pending, Counter((parcel.job.queue, parcel.state) for parcel in parcels))

    def split(self) -> list[JobId]:
        return [JobId(self.ids[start : start + 16].hex()) for start in range(0, len(self.ids), 16)]

    def split_pending(self) -> set[JobId]:
        return set(compress(self.split(), self.pending))


class Mover:
    """One move, from its beginning to its end or to a crash. Not thread-safe."""

    def __init__(
        self, here: Store, there: Store, blobs: BlobSettings, *, history: bool, watch: Watch
    ) -> None:
        self.here, self.there = here, there
        self._states = _HISTORY if history else MOVED
        self._outside = Outside(blobs, there)
        self._watch = watch
        self._owner = secrets.token_hex(8)
        self._paused: set[str] = set()
        self._sent_parents: set[JobId] = set()
        self.moved = Moved(Counter())

    def run(self, *, anew: bool = False) -> Moved:
        """Move all. `anew`: give up a move from this store to another, or one to this store, that was begun. Raises
        ConfigError if there is one, or if both are the same store, and FerrymanError if somebody else is at it."""
        record = self._begin(anew)
        barren = 0
        while True:
            self.moved.rounds += 1
            self._pause(record)
            self._wait_until_idle()
            copied, pages = self._copy()
            forgotten = self._forget(pages)
            if not self._left():
                break
            barren = 0 if copied or forgotten else barren + 1
            if barren:
                time.sleep(_LOOK_AGAIN)
            if barren > _BARREN:
                raise FerrymanError(
                    f"{self._left():,} jobs are left in {self.here.url}, and none of them came through in {barren} tries; "
                    "its queues stay paused; look at them with: ferryman jobs list"
                )
        self._end(record)
        self.moved.jobs = +self.moved.jobs
        self.moved.lost_payloads = self._outside.lost
        return self.moved

    # -- the beginning and the end -------------------------------------------------------------------

    def _begin(self, anew: bool) -> Record:
        known = read_record(self.here)
        if known is not None:
            if known.to != self.there.url and not anew:
                raise ConfigError(
                    f"a move from {self.here.url} to {known.to} was begun and has not ended; go on with it by "
                    f"naming that store, or give it up with --anew (jobs that are in {known.to} already would run there, too)"
                )
            if is_dead_neighbour(known.mover, place()):
                self._here(self.here.unlock(LOCK, known.owner))
        if not anew and self._here(self.here.kv_get(ARRIVING)) is not None:
            # What went on from here would be new here to those who bring it, once more.
            raise ConfigError(
                f"a move or restore to {self.here.url} was begun and has not ended; end that first, by its own command, or "
                "give it up with --anew (then do not go on with it: jobs would run twice)"
            )
        self._hold_lock()
        if known is None:
            paused = [queue.settings.name for queue in self._here(self.here.queues()) if queue.paused]
            record = Record.new(self._owner, self.there.url, tuple(paused), self._here(self.here.time()))
        else:
            record = Record.new(self._owner, self.there.url, known.paused, known.begun, known.name)
        self._arriving = Arriving(self.there, record.name)
        try:
            # A store that is not there, or takes no writes, is no place to which a move was begun.
            self._arriving.keep_up()
        except BaseException:
            self._here(self.here.unlock(LOCK, self._owner))
            raise
        write_record(self.here, record)
        found = read_record(self.there)
        if found is not None and found.owner == self._owner:
            self._end(record)
            raise ConfigError(
                f"{self.here.url} and {self.there.url} are the same store; there is nothing to move"
            )
        self._hold()
        if known is not None:
            self._pass_on_cancels_since(record.begun)
        return record

    def _end(self, record: Record) -> None:
        """Resume what nobody but this move has paused, and let go."""
        resumed = sorted(self._paused - set(record.paused))
        if resumed:
            self._here(self.here.pause(resumed, False))
        self._arriving.end()
        self._here(self.here.kv_delete(Record.KEY))
        self._here(self.here.unlock(LOCK, self._owner))

    def _hold(self) -> None:
        """Stay at it, for both stores to know."""
        self._hold_lock()
        self._arriving.keep_up()

    def _hold_lock(self) -> None:
        if self._here(self.here.lock(LOCK, self._owner, LOCK_TTL)) is None:
            raise FerrymanError(
                f"somebody else is moving the jobs of {self.here.url}; if that was killed on another machine, try again in "
                f"{LOCK_TTL // 1000} s"
            )

    # -- before a round -------------------------------------------------------------------------------

    def _pause(self, record: Record) -> None:
        """Pause queues that are not paused yet, and tell the second store how they were set."""
        queues = self._here(self.here.queues())
        fresh = [queue.settings for queue in queues if queue.settings.name not in self._paused]
        if not fresh:
            return
        names = [settings.name for settings in fresh]
        self._here(self.here.pause(names, True))
        hand_over(fresh, set(names) & set(record.paused), self.there)
        self._paused.update(names)
        # Waits for claims that have not seen this.
        self._here(self.here.pack((State.RUNNING,), 0, 1))

    def _wait_until_idle(self) -> None:
        """Until nothing runs; jobs of workers that are dead are taken back, and so wait again."""
        while True:
            self._hold()
            running = self._count((State.RUNNING,), self._paused)
            if not running:
                return
            self._watch("waiting for running jobs", running, None)
            here = place()
            workers = self._here(self.here.workers())
            dead = [w.info.id for w in workers if w.gone is None and is_dead_neighbour(w.info, here)]
            self._here(self.here.rescue(dead))
            time.sleep(_LOOK_AGAIN)

    # -- a round --------------------------------------------------------------------------------------

    def _copy(self) -> tuple[int, list[_Page]]:
        """Copy all up to the first job of a queue that was made since the pause: what came after that may depend on it.
        Answers how many jobs are new in the second store, and all that must be there now."""
        total, after, seen, copied = self._left(), 0, 0, 0
        pages: list[_Page] = []
        while True:
            self._hold()
            met = self._here(self.here.pack(self._states, after, _PAGE))
            if not met:
                return copied, pages
            after = met[-1].seq
            seen += len(met)
            known = list(takewhile(lambda parcel: parcel.job.queue in self._paused, met))
            self._send_parents(known)
            parcels = self._without_orphans(known)
            copied += self._unpack(parcels)
            pages.append(_Page.of(parcels))
            self._watch("copied", seen, max(total, seen))
            if len(known) < len(met):
                return copied, pages

    def _send_parents(self, parcels: Sequence[Parcel]) -> None:
        """Copy finished parents of unfinished jobs, which are not of this page."""
        among = {parcel.job.id for parcel in parcels}
        wanted = {
            parent for parcel in parcels if parcel.state in PENDING for parent in parcel.job.after
        } - among - self._sent_parents  # fmt: skip
        after, ids = 0, sorted(wanted)
        while wanted:
            page = self._here(self.here.pack(tuple(FINISHED), after, _PAGE, ids))
            if not page:
                break
            self.moved.parents += self._unpack(page)
            self._sent_parents.update(parcel.job.id for parcel in page)
            after = page[-1].seq

    def _without_orphans(self, parcels: Sequence[Parcel]) -> list[Parcel]:
        """All but those that wait for a parent that has not gone ahead of them: it runs after all, or its arrival was
        committed late. The next round has both."""
        among = {parcel.job.id for parcel in parcels}
        awaited = {parent for parcel in parcels for parent in parcel.waits_for} - among
        awaited -= _ids_in(self.there, awaited)
        held = _ids_in(self.here, awaited)
        if not held:
            return list(parcels)
        ready: list[Parcel] = []
        for parcel in parcels:
            if held.isdisjoint(parcel.waits_for):
                ready.append(parcel)
            else:
                held.add(parcel.job.id)
        return ready

    def _unpack(self, parcels: Sequence[Parcel]) -> int:
        self._outside.demand(parcels)
        large = [parcel.job.id for parcel in parcels if lies_outside(parcel)]
        if large:
            # One that is there already may have got other payloads since.
            known = _ids_in(self.there, large)
            parcels = [self._forward(parcel) for parcel in parcels if parcel.job.id not in known]
        fresh = self._there(self.there.unpack(parcels))
        return sum(fresh)

    def _forward(self, parcel: Parcel) -> Parcel:
        if not lies_outside(parcel):
            return parcel
        self._hold()
        return self._outside.forward(parcel)

    def _forget(self, pages: list[_Page]) -> int:
        """Forget what is in its new place, the youngest first. Answers how many jobs."""
        total, forgotten = sum(len(page.ids) for page in pages) // 16, 0
        while pages:
            self._hold()
            page = pages.pop()
            ids = page.split()
            there = _ids_in(self.there, ids)
            found = [id_ for id_ in ids if id_ in there]
            # A job that is cancelled before it is forgotten stays until the second store knows of it.
            gone = self._here(self.here.forget(found, _NOT_CANCELLED))
            if gone < len(found):
                self._pass_on_cancels(self._cancelled(found, page.split_pending()))
                gone += self._here(self.here.forget(found))
            self.moved.jobs.update(page.kinds)
            if gone < len(ids):
                left = self._still_here(ids)
                self.moved.jobs.subtract((job.queue, job.state) for job in left)
            forgotten += gone
            self._watch("verified and forgotten", forgotten, max(total, forgotten))
        return forgotten

    def _cancelled(self, ids: Sequence[JobId], pending: Collection[JobId]) -> list[Job]:
        """Those that were cancelled here after they had been copied. One that was cancelled before may have been replayed
        there since."""
        which = Filter(ids=tuple(ids), states=(State.CANCELLED,))
        return [job for job in self._here(self.here.find(which, len(ids))) if job.id in pending]

    def _pass_on_cancels(self, jobs: Sequence[Job]) -> None:
        by_reason: dict[str | None, list[JobId]] = {}
        for job in jobs:
            by_reason.setdefault(job.reason, []).append(job.id)
        for reason, ids in by_reason.items():
            which = Filter(ids=tuple(ids), states=_UNFINISHED)
            while self._there(self.there.cancel(which, len(ids), reason)):
                pass

    def _pass_on_cancels_since(self, begun: int) -> None:
        """A move that was killed may have copied jobs that were cancelled here after that, which no round will meet."""
        which, before = Filter(states=(State.CANCELLED,)), None
        while page := self._here(self.here.find(which, _PAGE, before)):
            self._hold()
            self._pass_on_cancels([job for job in page if (job.finished_at or 0) > begun])
            before = page[-1].seq

    def _still_here(self, ids: Sequence[JobId]) -> list[Job]:
        return self._here(self.here.find(Filter(ids=tuple(ids)), len(ids)))

    # -- asking ---------------------------------------------------------------------------------------

    def _left(self) -> int:
        return self._count((*self._states, State.RUNNING))

    def _count(self, states: Sequence[State], queues: set[str] | None = None) -> int:
        return sum(
            lane.counts.get(state, 0)
            for lane in self._here(self.here.lanes())
            if queues is None or lane.queue in queues
            for state in states
        )

    def _here(self, operation: Operation[T]) -> T:
        return self.here.runner().run(operation)

    def _there(self, operation: Operation[T]) -> T:
        return self.there.runner().run(operation)


def _ids_in(store: Store, ids: Collection[JobId]) -> set[JobId]:
    """Those that a store has."""
    run, asked = store.runner().run, sorted(ids)
    pages = [tuple(asked[start : start + _PAGE]) for start in range(0, len(asked), _PAGE)]
    return {job.id for page in pages for job in run(store.find(Filter(ids=page), len(page)))}
