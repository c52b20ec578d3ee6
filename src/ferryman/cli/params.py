"""What is typed on the command line, as values: durations, moments, states, and filters made of options."""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click
import msgspec

from ferryman.clock import CENTURY, SystemClock, millis
from ferryman.job import State
from ferryman.store.records import Filter

__all__ = [
    "duration",
    "filter_of",
    "filters",
    "json_or_text",
    "moment",
    "name",
    "newest_first",
    "queue_name",
    "state",
]

F = TypeVar("F", bound=Callable[..., Any])

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 7 * 86_400}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


newest_first = click.option(
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="How many to show, the newest first.",
)
"""For commands that list jobs."""


def duration(text: str) -> float:
    """Seconds, written ``90``, ``1.5h`` or ``1h30m``; a hundred years at most."""
    seconds = _seconds(text)
    if seconds is None:
        raise click.BadParameter(
            f"{text!r} is no duration of a hundred years at most; write 30, 90s, 10m, 1h30m or 2d"
        )
    return seconds


def moment(text: str) -> int:
    """Milliseconds since the epoch, written as how long ago (``10m``) or in ISO 8601."""
    seconds = _seconds(text)
    if seconds is not None:
        return max(SystemClock().now() - millis(seconds), 0)
    try:
        return max(millis(datetime.datetime.fromisoformat(text).astimezone().timestamp()), 0)
    except (ValueError, OverflowError):
        raise click.BadParameter(
            f"{text!r} is no moment of these hundred years; "
            "write how long ago (10m, 2d) or a time (2025-01-31T14:00)"
        ) from None


def name(text: str) -> str:
    """A text by which jobs are found. An empty one is a variable of the shell that is not set."""
    if not text:
        raise click.BadParameter("it is empty")
    return text


def queue_name(text: str) -> str:
    """The name that a queue may have."""
    if not 1 <= len(text) <= 200:
        raise click.BadParameter("a queue needs a name of 1 to 200 characters")
    return text


def state(text: str) -> State:
    """A job's state by its name."""
    try:
        return State[text.upper()]
    except KeyError:
        names = ", ".join(state.label for state in State)
        raise click.BadParameter(f"{text!r} is no state; the states are {names}") from None


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        parts = _PART.findall(text)
        if not parts or "".join(f"{count}{unit}" for count, unit in parts) != text:
            return None
        seconds = sum(float(count) * _UNITS[unit] for count, unit in parts)
    return seconds if 0 <= seconds <= CENTURY else None


def json_or_text(text: str) -> Any:
    """A value as JSON if it is JSON, else the text itself."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def filters(*, states: bool) -> Callable[[F], F]:
    """Gives a command the options of a filter; collect them with `filter_of`."""
    options = [
        click.option("--queue", "queues", metavar="NAME", multiple=True, help="Of this queue."),
        click.option("--task", "tasks", metavar="NAME", multiple=True, help="Of this task."),
        click.option("--tag", "tags", metavar="TAG", multiple=True, help="With this tag."),
        click.option("--since", type=moment, help="Enqueued since: 10m, 2d, or 2025-01-31T14:00."),
        click.option("--until", type=moment, help="Enqueued before."),
    ]
    if states:
        options.insert(1, click.option("--state", "states", type=state, multiple=True, help="In this state."))
    else:
        options.insert(3, click.option("--cause", "causes", multiple=True, help="Died of this cause."))

    def decorate(command: F) -> F:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def filter_of(options: dict[str, Any]) -> Filter:
    """The filter that the options of `filters` make."""
    return Filter(**{name: value for name, value in options.items() if value is not None})
