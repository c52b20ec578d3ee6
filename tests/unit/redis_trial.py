"""A small library of functions, and a desk to call them from, for the tests of what connects to Redis."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from ferryman.clock import Clock, SystemClock
from ferryman.io.operation import Operation, Requests
from ferryman.io.redis import AsyncRedisRunner, Call, Doorbell, Library, RedisRunner, RedisWaker, Server
from ferryman.io.redis.address import parse_url
from ferryman.io.redis.greeting import introduce
from ferryman.io.redis.link import open_link

_CODE = """#!lua name=trial_1
local verbs = {}

-- Counts on, and rings for those who wait.
function verbs.add(prefix, now, by)
  if (tonumber(by) or 0) > 1000 then
    return redis.error_reply('FERRYMAN InvalidJob ' .. by .. ' is too much')
  end
  local count = redis.call('INCRBY', prefix .. ':count', by)
  redis.call('PUBLISH', prefix .. ':bell:done', '')
  return count
end

function verbs.count(prefix)
  return tonumber(redis.call('GET', prefix .. ':count') or 0)
end

function verbs.now(prefix, now)
  return now
end

function verbs.ring(prefix)
  return redis.call('PUBLISH', prefix .. ':bell', '')
end

-- Fills the memory.
function verbs.fill(prefix, now, size)
  redis.call('APPEND', prefix .. ':filling', string.rep('x', size))
  return true
end

function verbs.refuse(prefix, now, what)
  return redis.error_reply('FERRYMAN ' .. what)
end

function verbs.all(prefix, now, ...)
  local given, answers, at = {...}, {}, 1
  while given[at] do
    local last = at + 1 + given[at + 1]
    local answer = verbs[given[at]](prefix, now, unpack(given, at + 2, last))
    if type(answer) == 'table' and answer.err then
      return answer
    end
    answers[#answers + 1] = answer
    at = last + 1
  end
  return answers
end

local function register(name, ...)
  redis.register_function{function_name='trial_1_' .. name, flags={...},
    callback=function(keys, args) return verbs[name](keys[1], unpack(args)) end}
end

register('add')
register('count', 'no-writes')
register('now', 'no-writes')
register('ring', 'allow-oom')
register('fill')
register('refuse')
register('all')
"""

LIBRARY = Library("trial_1", 5, _CODE)


class _Sum:
    """Additions are joined by adding up."""

    def join(self, calls: Sequence[Call]) -> Call:
        # A call of "x" is one that breaks this.
        return Call("add", (sum(int(call.args[0]) for call in calls),))

    def part(self, calls: Sequence[Call], answer: int) -> list[int]:
        return [answer] * len(calls)


_SUM = _Sum()


def join_in(by: int | str) -> Operation[int]:
    """`add`, which can be joined, and then answers the total."""
    return _asking(Call("add", (by,), joint=_SUM))


def add(by: int = 1) -> Operation[int]:
    return _asking(Call("add", (by,)))


def count() -> Operation[int]:
    return _asking(Call("count", writes=False))


def ring() -> Operation[int]:
    """Answers how many heard it."""
    return _asking(Call("ring"))


def fill(size: int) -> Operation[bool]:
    return _asking(Call("fill", (size,)))


def refuse(what: str) -> Operation[None]:
    return _asking(Call("refuse", (what,)))


def _asking(call: Call) -> Operation[Any]:
    def body(_: int) -> Requests[Any]:
        return (yield call)

    return Operation(call.function, body, writes=call.writes)


class Trial:
    """A server as one process sees it, with keys of its own."""

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "",
        options: str = "",
        clock: Clock | None = None,
        library: Library = LIBRARY,
    ) -> None:
        self.prefix = prefix or f"trial-{secrets.token_hex(6)}"
        self.server = Server(
            f"{url}?prefix={self.prefix}{options and '&' + options}", clock or SystemClock(), library
        )
        self.doorbell = Doorbell(self.server)
        self.runner = RedisRunner(self.server, self.doorbell)
        self.run = self.runner.run

    def async_runner(self) -> AsyncRedisRunner:
        return AsyncRedisRunner(self.server, self.doorbell)

    def waker(self) -> RedisWaker:
        return RedisWaker(self.server)

    def close(self) -> None:
        self.runner.close()


def ask(url: str, *command: str | int) -> Any:
    """What an administrator asks of the server."""
    address = parse_url(url)
    link = open_link(address, address.node, lambda _: b"")
    try:
        introduce(link, address)
        (answer,) = link.ask(command)
        return answer
    finally:
        link.close()


def fact(url: str, name: str) -> int:
    """A number of the server's INFO."""
    lines = ask(url, "INFO", "everything").decode().splitlines()
    return int(dict(line.partition(":")[::2] for line in lines)[name])


def with_user(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:{password}@{parts.hostname}:{parts.port}").geturl()


def eventually(holds: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether it holds before long."""
    give_up = time.monotonic() + seconds
    while time.monotonic() < give_up:
        if holds():
            return True
        time.sleep(0.002)
    return False
