"""What people pass, checked by tables: of which kind a value must be, and what is said of one that is of another.

A table says for each name the `Kind` of its value. Where a value is unambiguous though it is of another type, such as
a timedelta where seconds are wanted, its kind takes it, too.
"""

from __future__ import annotations

import datetime
import difflib
import numbers
import operator
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

import msgspec

from ferryman.errors import InvalidValue

__all__ = [
    "FLAG",
    "MAX_MESSAGE",
    "NUMBER",
    "SECONDS",
    "TEXT",
    "TEXTS",
    "WHOLE",
    "Kind",
    "counted",
    "did_you_mean",
    "listed",
    "one_of",
    "plain_text",
    "reason_text",
    "shown",
    "taken",
]


MAX_MESSAGE = 2_000
"""Characters of an error's message, or of a reason, that are kept."""


class Kind(msgspec.Struct, frozen=True):
    """What a value must be."""

    words: str
    """As an error says it, with an example."""
    take: Callable[[Any], Any]
    """The value as it is kept. Raises TypeError or ValueError for one that is not of this kind."""


def taken(name: str, value: Any, kind: Kind) -> Any:
    """The value as it is kept. Raises InvalidValue, which names it and says what is wanted."""
    try:
        return kind.take(value)
    except (TypeError, ValueError, ArithmeticError):
        raise InvalidValue(f"{name} must be {kind.words}, not {shown(value)}") from None


def shown(value: Any) -> str:
    """A value for an error: as it would be written, but short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """What to say after a name that there is not: the nearest one, or all."""
    known = list(known)
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"


def plain_text(value: Any, limit: int) -> str:
    """Any value as a text that every store takes, of so many characters at most."""
    try:
        text = str(value)
    except Exception as error:
        text = f"<{type(value).__qualname__} whose text raises {type(error).__qualname__}>"
    if len(text) > limit:
        text = text[: limit - 1] + "…"
    if "\0" in text:
        text = text.replace("\0", "\\0")
    if not text.isascii():
        # Lone surrogates, as in undecodable file names, have no encoding.
        text = text.encode("utf-8", "backslashreplace").decode()
    return text


def reason_text(reason: Any) -> str | None:
    """A reason that somebody gives, as it is kept."""
    return None if reason is None else plain_text(reason, MAX_MESSAGE)


def counted(count: int, noun: str = "job") -> str:
    """A number of things, in words that agree with it."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def listed(value: Any) -> tuple[Any, ...]:
    """The members of a list, tuple or set. Raises TypeError for a text, which is no list of its letters."""
    if isinstance(value, str | bytes):
        raise TypeError
    return tuple(value)


def one_of(words: tuple[str, ...]) -> Kind:
    """The kind of a text that is one of these."""

    def take(value: Any) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError
        return value

    return Kind(f"one of {', '.join(words)}", take)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(_text(member) for member in listed(value))


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    return operator.index(value)


def _number(value: Any) -> float:
    kind = type(value)
    if kind is float or kind is int:
        return value  # type: ignore[no-any-return]
    if kind is bool or not isinstance(value, numbers.Real | Decimal):
        raise TypeError
    return float(value)


def _seconds(value: Any) -> float:
    return value.total_seconds() if isinstance(value, datetime.timedelta) else _number(value)


TEXT = Kind("a text", _text)
TEXTS = Kind("a list of texts", _texts)
FLAG = Kind("True or False", _flag)
WHOLE = Kind("a whole number", _whole)
NUMBER = Kind("a number", _number)
SECONDS = Kind("seconds, as a number or a timedelta", _seconds)
