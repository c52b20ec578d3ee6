"""What a worker has yet to say to its store: how jobs ended, and what they said of themselves before."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import groupby, takewhile
from typing import NamedTuple

import msgspec

from ferryman.job import ErrorInfo, JobId, Outcome, OutcomeKind
from ferryman.store.records import JobNote

__all__ = ["MOST_AT_ONCE", "Sayings", "Unsaid", "plainly"]

MOST_AT_ONCE = 400
"""Outcomes, or notes, that are said in one transaction, more or less: a job's notes are not parted from its outcome."""

_MOST_BYTES = 16 << 20
"""Of results that are said in one transaction, unless a single one is longer."""

_MOST_TEXTS = 1_000
"""Texts of a job that wait to be said: a store keeps no more of them."""

_TEXTS_EACH = 50
"""Of a job that goes on, at a time: so that one that says much does not keep the others from being heard."""

_Lease = tuple[JobId, int]


class Sayings(NamedTuple):
    """What is said in one transaction: the notes first, since they would be void after their job's outcome."""

    notes: Sequence[JobNote]
    outcomes: Sequence[Outcome]

    @property
    def what(self) -> tuple[JobId, int, bool]:
        """What a part is: which lease's, and whether it is the outcome."""
        first = (self.notes or self.outcomes)[0]
        return first.id, first.lease, bool(self.outcomes)

    def parts(self) -> Iterator[Sayings]:
        """The notes of each job by themselves, then each outcome."""
        for _, notes in groupby(self.notes, key=lambda note: (note.id, note.lease)):
            yield Sayings(list(notes), ())
        for outcome in self.outcomes:
            yield Sayings((), [outcome])


class _Story:
    """What one running job said of itself."""

    __slots__ = ("progress", "texts")

    def __init__(self) -> None:
        self.progress: float | None = None
        self.texts: deque[str] = deque(maxlen=_MOST_TEXTS)

    def __len__(self) -> int:
        return len(self.texts) + (self.progress is not None)


class Unsaid:
    """Keeps it until it has been heard; bounded for each job. Not thread-safe."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []
        """In their order; `heard` takes from its front."""
        self._stories: dict[_Lease, _Story] = {}
        """In the order in which they may be heard next."""

    def __bool__(self) -> bool:
        return bool(self.outcomes or self._stories)

    def add_notes(self, notes: Sequence[JobNote]) -> None:
        """Of a job's progress the last report counts, of its texts the newest thousand."""
        for note in notes:
            if note.progress is None and note.text is None:
                continue
            story = self._stories.setdefault((note.id, note.lease), _Story())
            if note.progress is not None:
                story.progress = note.progress
            if note.text is not None:
                story.texts.append(note.text)

    def next(self) -> Sayings:
        """What to say now: outcomes from the front with all notes of their jobs, and some notes of other jobs."""
        if not self._stories:
            return Sayings((), self._next_outcomes())
        notes: list[JobNote] = []
        outcomes: list[Outcome] = []
        ended: set[_Lease] = set()
        for outcome in self._next_outcomes():
            lease = (outcome.id, outcome.lease)
            story = self._stories.get(lease)
            told = [] if story is None or lease in ended else _tell(lease, story)
            if outcomes and len(notes) + len(told) > MOST_AT_ONCE:
                break
            notes += told
            outcomes.append(outcome)
            ended.add(lease)
        for lease, going_on in self._stories.items():
            if len(notes) >= MOST_AT_ONCE:
                break
            if lease not in ended:
                notes += _tell(lease, going_on, _TEXTS_EACH)
        return Sayings(notes, outcomes)

    def next_without_notes(self) -> Sayings:
        """Outcomes from the front, up to the first one whose job has notes, too."""
        return Sayings(
            (),
            list(takewhile(lambda each: (each.id, each.lease) not in self._stories, self._next_outcomes())),
        )

    def _next_outcomes(self) -> list[Outcome]:
        outcomes = self.outcomes[:MOST_AT_ONCE]
        size = 0
        for count, outcome in enumerate(outcomes):
            size += len(outcome.result or b"")
            if size > _MOST_BYTES and count > 0:
                return outcomes[:count]
        return outcomes

    def heard(self, said: Sayings) -> None:
        """This has come from `next`, with nothing added since, and need not be said again."""
        del self.outcomes[: len(said.outcomes)]
        for note in said.notes:
            lease = (note.id, note.lease)
            story = self._stories[lease]
            if note.text is not None:
                story.texts.popleft()
            if note.progress is not None:
                story.progress = None
            # The others' turn.
            del self._stories[lease]
            if story:
                self._stories[lease] = story

    def put_back(self, said: Sayings) -> None:
        """It has not been heard after all, and comes before all else."""
        self.outcomes[:0] = said.outcomes
        for note in reversed(said.notes):
            story = self._stories.setdefault((note.id, note.lease), _Story())
            if note.text is not None:
                story.texts.appendleft(note.text)
            if story.progress is None:
                story.progress = note.progress

    def clear(self) -> None:
        """Nobody wants to hear it any more."""
        self.outcomes.clear()
        self._stories.clear()


def _tell(lease: _Lease, story: _Story, most: int = _MOST_TEXTS) -> list[JobNote]:
    id_, number = lease
    notes = [JobNote(id_, number, None, text) for text, _ in zip(story.texts, range(most), strict=False)]
    if story.progress is not None:
        notes.append(JobNote(id_, number, story.progress))
    return notes


def plainly(outcome: Outcome, refusal: Exception) -> Outcome:
    """The same in words that any store takes, for one whose own it has refused."""
    error = ErrorInfo(
        "OutcomeRefused", "the store refused what became of it\n" + ascii(str(refusal))[1:-1][:1_000]
    )
    kind = OutcomeKind.DEAD if outcome.kind is OutcomeKind.SUCCEEDED else outcome.kind
    told = error if kind in (OutcomeKind.DEAD, OutcomeKind.RETRY, OutcomeKind.CRASHED) else None
    return msgspec.structs.replace(outcome, kind=kind, result=None, error=told, reason=None)
