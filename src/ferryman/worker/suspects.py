"""Jobs that cannot be handed out like others: those that may be killers, those that no executor could be sent, and those
whose task is just being made."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from ferryman.config import MOST_IN_STORE
from ferryman.job import MAX_DEATHS, Claim, ErrorInfo, JobId, Outcome, OutcomeKind
from ferryman.worker.crew import Crew

__all__ = ["Suspects", "give_back_unknown", "refuse_monsters"]


class Suspects:
    """Who was there at two deaths runs alone, so that the third one tells who did it. They wait here for an executor
    each. Not thread-safe: it is the supervisor's."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._waiting: deque[Claim] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def pick_out(self, claims: Sequence[Claim]) -> Sequence[Claim]:
        """Keep the suspects among them. Answers the others."""
        others = [claim for claim in claims if claim.deaths < MAX_DEATHS - 1]
        if len(others) < len(claims):
            self._waiting.extend(claim for claim in claims if claim.deaths >= MAX_DEATHS - 1)
        return others

    def send(self) -> None:
        """Give each an executor, as these get empty."""
        while self._waiting and self._crew.isolate(self._waiting[0]):
            self._waiting.popleft()

    def cancel(self, id_: JobId, reason: str | None) -> Outcome | None:
        """What becomes of a job that waits here; None if it does not."""
        for claim in self._waiting:
            if claim.id == id_:
                self._waiting.remove(claim)
                self._crew.unreserve(id_)
                return Outcome(id_, claim.lease, OutcomeKind.CANCELLED, reason=reason)
        return None

    def give_back(self) -> list[Outcome]:
        """What becomes of those that wait, if they are not to be started."""
        outcomes = [Outcome(each.id, each.lease, OutcomeKind.RELEASED) for each in self._waiting]
        self._waiting.clear()
        return outcomes

    def leases(self) -> set[tuple[JobId, int]]:
        """Of those that wait."""
        return {(claim.id, claim.lease) for claim in self._waiting}


def refuse_monsters(claims: Sequence[Claim]) -> tuple[Sequence[Claim], list[Outcome]]:
    """The jobs that can be sent to an executor, and what becomes of the others: whoever made those did so without regard to
    the settings, which keep arguments well below the size of a frame."""
    monsters = [claim for claim in claims if len(claim.args) > MOST_IN_STORE]
    if not monsters:
        return claims, []
    return [claim for claim in claims if claim not in monsters], [
        Outcome(
            claim.id,
            claim.lease,
            OutcomeKind.DEAD,
            error=ErrorInfo(
                "PayloadError",
                f"its arguments are larger than the {MOST_IN_STORE:,} bytes that a worker takes from a store\n"
                f"(they have {len(claim.args):,})",
            ),
        )
        for claim in monsters
    ]


def give_back_unknown(
    claims: Sequence[Claim], known: Collection[str]
) -> tuple[Sequence[Claim], list[Outcome]]:
    """The jobs whose tasks are known, and what becomes of the others."""
    unknown = [claim for claim in claims if claim.task not in known]
    outcomes = [Outcome(claim.id, claim.lease, OutcomeKind.RELEASED) for claim in unknown]
    return [claim for claim in claims if claim.task in known], outcomes
