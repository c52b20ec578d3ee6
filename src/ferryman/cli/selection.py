"""Which jobs a command means: ids and their beginnings, filters, and large sets changed batch by batch."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence

import click
import msgspec

from ferryman.cli.output import clean, say
from ferryman.cli.target import Target
from ferryman.errors import JobNotFound
from ferryman.io.operation import Operation
from ferryman.job import Job, JobId
from ferryman.store.records import Filter
from ferryman.values import counted

__all__ = ["ask", "change", "change_selected", "count", "fetch", "newest", "pages", "resolve"]

_BATCH = 1_000
"""Jobs that one operation changes; others get their turn in between."""

_PAGE = 1_000
_PAGES_OF_A_PREFIX = 20
_CANDIDATES = 5
_ID_DIGITS = 32
_SHORTEST = 6
_TELLING = 20
"""So many digits hold the moment and 26 random bits: no second job needs to be looked for."""

_SLACK_BEFORE, _SLACK_AFTER = 1_000, 60_000
"""ms between the moment that an id carries and the one at which its job was stored."""


def resolve(target: Target, text: str) -> JobId:
    """The id that begins like this. An id begins with its moment, so only jobs of that time are looked at."""
    digits = text.replace("-", "").lower()
    if not re.fullmatch(rf"[0-9a-f]{{{_SHORTEST},{_ID_DIGITS}}}", digits):
        raise click.UsageError(
            f"{text!r} is no job id; give its {_ID_DIGITS} hexadecimal digits, or the first ones, {_SHORTEST} at least"
        )
    if len(digits) == _ID_DIGITS:
        return JobId(digits)
    first, last = (int(digits[:12].ljust(12, fill), 16) for fill in "0f")
    found: list[Job] = []
    before = _place_after(target, last + _SLACK_AFTER)
    for number, page in enumerate(pages(target, Filter(), before), 1):
        found += (job for job in page if job.id.startswith(digits))
        if len(found) == 1 and len(digits) >= _TELLING:
            break
        if len(found) > 1 or number == _PAGES_OF_A_PREFIX:
            begun = ", ".join(job.id for job in found[:_CANDIDATES])
            raise click.UsageError(
                f"{digits} is too short to tell jobs apart{begun and ', such as '}{begun}; "
                f"give more digits of the id, {_TELLING} or all {_ID_DIGITS}"
            )
        if page[-1].enqueued_at < first - _SLACK_BEFORE:
            break
    if not found:
        raise JobNotFound(f"no job in {target.store.url} has an id that begins with {digits}")
    return found[0].id


def _place_after(target: Target, moment: int) -> int | None:
    """A `before` from which on, going back, all jobs were enqueued by this moment: found by bisection, since
    jobs lie in order of arrival and no store keeps an index of times."""

    def newest_below(before: int | None) -> Job | None:
        found = target.run(target.existing.find(Filter(), 1, before))
        return found[0] if found else None

    newest = newest_below(None)
    if newest is None or newest.enqueued_at <= moment:
        return None
    early, late = 0, newest.seq + 1
    while late - early > 1:
        middle = (early + late) // 2
        job = newest_below(middle)
        if job is None or job.enqueued_at <= moment:
            early = middle
        else:
            late = middle
    return early


def fetch(target: Target, ids: Sequence[str]) -> list[Job]:
    """These jobs, with arguments and results. Raises JobNotFound, which names the first that is missing."""
    full = [resolve(target, text) for text in ids]
    jobs: list[Job] = []
    found = target.run(target.existing.get(full))
    for id, job in zip(full, found, strict=True):
        if job is None:
            raise JobNotFound(
                f"{target.store.url} has no job {id}; it was never stored there, or its retention has passed"
            )
        jobs.append(job)
    return jobs


def pages(target: Target, which: Filter, before: int | None = None) -> Iterator[list[Job]]:
    """Matching jobs, newest first, page by page."""
    while True:
        page = target.run(target.existing.find(which, _PAGE, before))
        if page:
            yield page
        if len(page) < _PAGE:
            return
        before = page[-1].seq


def newest(target: Target, which: Filter, limit: int) -> Iterator[Job]:
    """The newest matching jobs, so many at most; read page by page, which lets others have their turn."""
    before: int | None = None
    while limit > 0:
        wanted = min(limit, _PAGE)
        page = target.run(target.existing.find(which, wanted, before))
        yield from page
        if len(page) < wanted:
            return
        limit -= wanted
        before = page[-1].seq


def count(target: Target, which: Filter) -> int:
    """How many jobs match: read off if the lanes know it, else counted."""
    lanes_know = Filter(queues=which.queues, states=which.states)
    if which != lanes_know:
        return sum(len(page) for page in pages(target, which))
    return sum(
        number
        for lane in target.run(target.existing.lanes())
        if not which.queues or lane.queue in which.queues
        for state, number in lane.counts.items()
        if not which.states or state in which.states
    )


def change(
    target: Target, which: Filter, total: int, verb: Callable[[Filter, int], Operation[int]], label: str
) -> int:
    """Do something to up to `total` matching jobs, batch by batch, with a progress bar if they are many.

    The bound makes an end: a dead letter that is replayed may be dead again before the last one is.
    """
    done = 0
    with click.progressbar(
        length=total, label=label, file=sys.stderr, hidden=total <= _BATCH or not sys.stderr.isatty()
    ) as bar:
        while done < total:
            changed = target.run(verb(which, min(_BATCH, total - done)))
            if not changed:
                break
            done += changed
            bar.update(changed)
    return done


def change_selected(
    target: Target,
    ids: Sequence[str],
    which: Filter,
    verb: Callable[[Filter, int], Operation[int]],
    *,
    words: tuple[str, str],
    every: bool,
    yes: bool,
    dangerous: bool = False,
) -> list[Job]:
    """Do something to the jobs that were named, or after a question to those that match.

    `words` say what is done: ``("Cancel", "cancelled")``. `every` allows a filter that means all jobs;
    what is `dangerous` is asked about for named jobs too. Ends with 1 if a named job was left as it was.
    Answers the named jobs as they were.
    """
    doing, done = words
    filtered = every or msgspec.structs.replace(which, states=()) != Filter()
    if ids and filtered:
        raise click.UsageError("name job ids, or give filters or --all, but not both")
    if not ids and not filtered:
        raise click.UsageError("name job ids, or a filter such as --queue or --task, or --all")
    if ids:
        jobs = fetch(target, ids)
        named = Filter(ids=tuple(job.id for job in jobs), states=which.states)
        if dangerous:
            ask(f"{doing} {counted(len(jobs))}?", yes)
        changed = change(target, named, len(jobs), verb, doing)
        say(f"{counted(changed)} {done}")
        if changed < len(jobs):
            states = ", ".join(f"{job.id} is {job.state.label}" for job in jobs[:5])
            left = len(jobs) - changed
            say(f"{counted(left)} left as {'it was' if left == 1 else 'they were'}: {states}", err=True)
            click.get_current_context().exit(1)
        return jobs
    total = count(target, which)
    if total:
        ask(f"{doing} {counted(total)}?", yes)
    say(f"{counted(change(target, which, total, verb, doing))} {done}")
    return []


def ask(question: str, yes: bool) -> None:
    """Go on only if the answer is yes; else end with 1, or with 2 if there is nobody to give one."""
    if yes:
        return
    try:
        agreed = click.confirm(clean(question), err=True)
    except click.Abort as abort:
        # Click makes the same of ^C, which is an answer, and of an input that has ended.
        if not isinstance(abort.__context__, EOFError):
            raise
        say("\nnothing was changed: there is nobody to ask; say --yes to go on without a question", err=True)
        click.get_current_context().exit(2)
    if not agreed:
        say("nothing was changed", err=True)
        click.get_current_context().exit(1)
