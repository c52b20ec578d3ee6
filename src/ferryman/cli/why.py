"""``ferryman why``: gathers what the policy needs to say why a job is not running."""

from __future__ import annotations

from collections.abc import Sequence

import click

from ferryman.cli.output import json_line, say, stamps
from ferryman.cli.selection import resolve
from ferryman.cli.target import Target, listing, pass_target
from ferryman.cli.workers import alive
from ferryman.errors import JobNotFound
from ferryman.job import Job, JobId, State
from ferryman.policy.why import Facts, LaneFact, ParentFact, WorkerFact
from ferryman.policy.why import why as decide
from ferryman.store.records import Filter

__all__ = ["why"]

_RUNNING = 10_000
"""Running jobs looked through for those of the same key; more than a fleet has."""

_BATCH = 500


@click.command()
@click.argument("job_id", metavar="JOB")
@listing
@pass_target
def why(target: Target, job_id: str) -> None:
    """Say in one sentence why a job is not running.

    \b
    Examples:
      ferryman why 0192f3c4a1b2
      ferryman why 0192f3c4a1b2 --json | jq -r .code
    """
    facts = _facts(target, resolve(target, job_id))
    reason = decide(facts)
    job = facts.history.job
    if target.json:
        record = {"id": job.id, "state": job.state.label, "code": reason.code, "sentence": reason.sentence}
        json_line({**record, **stamps(run_at=job.run_at)})
    else:
        say(reason.sentence)


def _facts(target: Target, id: JobId) -> Facts:
    store = target.existing
    history = target.run(store.history(id))
    if history is None:
        raise JobNotFound(
            f"{store.url} has no job {id}; it was never stored there, or its retention has passed"
        )
    job = history.job
    now = target.now()
    return Facts(
        history=history,
        now=now,
        paused=any(r.paused and r.settings.name == job.queue for r in target.run(store.queues())),
        lanes=[
            LaneFact(lane.priority, lane.counts.get(State.READY, 0))
            for lane in target.run(store.lanes())
            if lane.queue == job.queue
        ],
        workers=[
            WorkerFact(
                id=record.info.id,
                queues=record.info.queues,
                tasks=record.info.tasks,
                state=record.status.state,
                running=record.status.running,
                concurrency=record.info.concurrency,
            )
            for record in target.run(store.workers())
            if alive(record, now)
        ],
        parents=_parents(target, history.parents) if job.state is State.WAITING else (),
        key_holders=_key_holders(target, job) if job.state is State.PARKED else (),
    )


def _parents(target: Target, ids: Sequence[JobId]) -> list[ParentFact]:
    parents: list[ParentFact] = []
    for start in range(0, len(ids), _BATCH):
        batch = ids[start : start + _BATCH]
        found = target.run(target.store.get(batch))
        for id, job in zip(batch, found, strict=True):
            parents.append(ParentFact(id, job.task if job else "", job.state if job else None))
    return parents


def _key_holders(target: Target, job: Job) -> list[JobId]:
    running = target.run(target.store.find(Filter(states=(State.RUNNING,)), _RUNNING))
    return [other.id for other in running if other.key == job.key]
