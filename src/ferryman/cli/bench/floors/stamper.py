"""The last process of a `Chain`: ``python -m ferryman.cli.bench.floors.stamper``.

For each byte on its standard input, a socket, it writes the moment at which it saw it. It ends with its input.
"""

from __future__ import annotations

import os
import sys
import time

__all__: list[str] = []


def _main() -> None:
    hand, said = sys.stdin.fileno(), sys.stdout.fileno()
    while os.read(hand, 1):
        os.write(said, b"%d\n" % time.monotonic_ns())


if __name__ == "__main__":
    _main()
