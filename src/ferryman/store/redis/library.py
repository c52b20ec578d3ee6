"""The library of functions that the store loads into the server, put together from the files in `lua/`."""

from __future__ import annotations

import re
from importlib.resources import files

from ferryman.io.redis import Library

__all__ = ["LIBRARY", "load_library"]

LIBRARY = "ferryman_1"
"""The library's name. Another layout, which old processes could not share, must have another one."""

_REVISION = 1
"""Grows with each release that changes a file below."""

_FILES = (
    "book", "verbs", "lanes", "cards", "writing", "places", "finish", "settle", "enqueue", "claim", "workers",
    "filters", "steer", "prune", "read", "coordinate", "cargo",
)  # fmt: skip
"""In this order: a file may call at once what stands before it, and in its functions all of them."""

_VERB = re.compile(r"^book\.verb\('(\w+)'.*?^end(?:, \{(\w+) = true\})?\)$", re.MULTILINE | re.DOTALL)

_FLAGS = {"": "{}", "reads": "{'no-writes', 'allow-oom'}", "drains": "{'allow-oom'}"}

# While a library is loaded, Redis 7.0 lets it see none of Lua's own functions: so all is defined by its first call.
_TEXT = """#!lua name={library}
local book
local function open()
local call = redis.call
local {names} = {tables}
{blocks}
return book
end
local function register(verb, flags)
    redis.register_function{{
        function_name = '{library}_' .. verb,
        callback = function(keys, args)
            book = book or open()
            return book.perform(verb, keys, args)
        end,
        flags = flags,
    }}
end
{verbs}"""


def load_library() -> Library:
    """Each file is a block with locals of its own, and speaks to the others through the table that has its name."""
    lua = files(__package__).joinpath("lua")
    blocks = [f"do -- {name}.lua\n{lua.joinpath(f'{name}.lua').read_text('utf-8')}end" for name in _FILES]
    verbs = [f"register('{name}', {_FLAGS[flag]})" for name, flag in _VERB.findall("\n".join(blocks))]
    code = _TEXT.format(
        library=LIBRARY,
        names=", ".join(_FILES),
        tables=", ".join(["{}"] * len(_FILES)),
        blocks="\n".join(blocks),
        verbs="\n".join(verbs),
    )
    return Library(LIBRARY, _REVISION, code)
