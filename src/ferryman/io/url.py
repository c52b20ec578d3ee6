"""What holds for all URLs with passwords: what of them may be shown, and two ways in which people get them wrong."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection

from ferryman.errors import ConfigError

__all__ = ["misspelt", "shown", "stray_at"]

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/*")

_WITH_USER = re.compile(r"(postgres(ql)?|rediss?|unix)(\+\w+)?://")

_USER = re.compile(r"[^/?#@]*")

_SERVERS = re.compile(r"((\[[^]]*\]|[^][:,]*)(:\d*)?(,|$))*")


def shown(url: str) -> str:
    """A URL without password and options, even if it is malformed: no piece of a password is in the answer.

    A password that was put there as it is may hold whatever ends it in a URL. So of all between the scheme and the last
    "@", only a plain name of a user is believed in; and without an "@", no port that is no number.
    """
    scheme = found[0] if (found := _SCHEME.match(url)) else ""
    secret, at, place = url[len(scheme) :].rpartition("@")
    place = re.split("[?#]", place, maxsplit=1)[0]
    if not at:
        servers = place.partition("/")[0]
        if _WITH_USER.fullmatch(scheme) and not _SERVERS.fullmatch(servers):
            return f"{scheme}{servers.partition(':')[0]}:…"
        return f"{scheme}{place}"
    user = secret.partition(":")[0]
    if not (_WITH_USER.fullmatch(scheme) and _USER.fullmatch(user)):
        user = "…"
    return f"{scheme}{user}{user and at}{place}"


def stray_at(url: str) -> ConfigError:
    """It has an "@" behind the place where user and password end."""
    return ConfigError(
        f"the store URL {shown(url)!r} has an @ where none can be; write special characters of the password as %XX, "
        "such as / as %2F, ? as %3F, # as %23 and @ as %40, and so an @ of anything behind the host"
    )


def misspelt(option: str, known: Collection[str]) -> str:
    """An option that does not exist, and the one that may have been meant."""
    near = difflib.get_close_matches(option, known, n=1)
    return f"an unknown option {option!r}" + (f" (did you mean {near[0]!r}?)" if near else "")
