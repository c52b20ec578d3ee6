"""The middle process of a `Chain`: ``FERRYMAN_URL=… python -m ferryman.cli.bench.floors.sleeper [EAR]``.

It sleeps until the store's driver or a byte at the descriptor EAR wakes it, takes what is there, and hands a byte for
each row to its standard output, a socket. It ends soon after its standard input does, which its parent holds open.
"""

from __future__ import annotations

import os
import select
import sys

from ferryman.cli.bench.floors import open_sleeper

__all__: list[str] = []

_LOOK = 0.5
"""Seconds between looks at whether the parent is there."""


def _main() -> None:
    life, hand = sys.stdin.fileno(), sys.stdout.fileno()
    sleeper = open_sleeper(os.environ["FERRYMAN_URL"], int(sys.argv[1]) if len(sys.argv) > 1 else None)
    os.write(hand, b"!")  # Whatever is stored from now on is heard of.
    while True:
        if sleeper.wait(_LOOK):
            for _ in range(sleeper.take()):
                os.write(hand, b"!")
        elif select.select([life], [], [], 0)[0]:
            return


if __name__ == "__main__":
    _main()
