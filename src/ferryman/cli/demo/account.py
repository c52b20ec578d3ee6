"""The account of a run, drawn up from the store: what was counted, what died, and whether each file is there once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ferryman.app import App
from ferryman.cli.demo.catalogue import Catalogue
from ferryman.cli.demo.run import Jobs, Kill
from ferryman.cli.demo.sources import is_broken
from ferryman.job import Job, OutcomeKind, State
from ferryman.store.records import CauseCount, Filter

__all__ = ["Account", "Aftermath", "DeadLetter", "draw_up"]

_PAGE = 500


class DeadLetter(msgspec.Struct, frozen=True):
    """A file that could not be catalogued."""

    id: str
    path: str
    cause: str
    attempts: int


class Aftermath(msgspec.Struct, frozen=True):
    """What a killed executor left to be done again."""

    pid: int
    second: float
    """When it was killed, since the start of the run."""
    again: Sequence[str]
    """The files that it was at."""
    started_ms: int | None
    """How long after the kill the last of them was started again."""


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a run. `is_right` is what the demo stands or falls with."""

    files: int
    catalogue: Catalogue
    dead: Sequence[DeadLetter]
    causes: Sequence[CauseCount]
    missing: Sequence[str]
    """Files that are neither in the report nor among the dead letters, or whose job is gone."""
    repeated: Sequence[str]
    """Files that are there more than once."""
    unjust: Sequence[str]
    """Dead letters whose file can be catalogued very well."""
    attempts: int
    aftermath: Aftermath | None

    @property
    def is_right(self) -> bool:
        """Whether each file was counted once, and only broken ones died."""
        return not (self.missing or self.repeated or self.unjust)


def draw_up(app: App, jobs: Jobs, killed: Kill | None) -> Account:
    """Ask the store how each job ended, and compare it with what was enqueued. Raises what `JobHandle.result`
    raises, for the report."""
    catalogue = jobs.report.result(timeout=10)
    causes = app.store.runner().run(app.store.causes(Filter(tags=(jobs.tag,))))
    records = _records(app, jobs)
    known = [(path, job) for path, job in zip(jobs.files, records, strict=True) if job is not None]
    dead = [
        DeadLetter(job.id, path, job.reason or "", job.attempt)
        for path, job in known
        if job.state is State.DEAD
    ]
    counted = Counter([*catalogue.paths, *(letter.path for letter in dead)])
    return Account(
        files=len(jobs.files),
        catalogue=catalogue,
        dead=dead,
        causes=causes,
        missing=[
            path for path, job in zip(jobs.files, records, strict=True) if job is None or not counted[path]
        ],
        repeated=[path for path, count in counted.items() if count > 1],
        unjust=[letter.path for letter in dead if not is_broken(Path(letter.path))],
        attempts=sum(job.attempt for _, job in known),
        aftermath=_aftermath(app, known, killed) if killed else None,
    )


def _records(app: App, jobs: Jobs) -> list[Job | None]:
    found: list[Job | None] = []
    for start in range(0, len(jobs.handles), _PAGE):
        ids = [handle.id for handle in jobs.handles[start : start + _PAGE]]
        page = app.store.runner().run(app.store.get(ids))
        found += page
    return found


def _aftermath(app: App, known: Sequence[tuple[str, Job]], killed: Kill) -> Aftermath:
    struck = [(path, job) for path, job in known if job.deaths]
    started = [_started_again(app, job) for _, job in struck]
    last = max((moment for moment in started if moment is not None), default=None)
    return Aftermath(
        killed.pid, killed.second, [path for path, _ in struck], None if last is None else last - killed.at
    )


def _started_again(app: App, job: Job) -> int | None:
    """When the attempt after the crash began."""
    history = app.store.runner().run(app.store.history(job.id))
    attempts = history.attempts if history else ()
    crash = max((each.number for each in attempts if each.kind is OutcomeKind.CRASHED), default=0)
    later = [each.started_at for each in attempts if each.number > crash]
    return min(later, default=job.started_at)
