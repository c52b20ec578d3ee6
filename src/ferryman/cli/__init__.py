"""The command line: how people look at jobs and steer them.

A module here holds one command or group; it asks the store through the port and shows the answer with `output`.
Decisions live further down, such as `ferryman.policy.why`. Start at `root`, which lists the commands and imports
each only when it is used.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """The program ``ferryman``; ends the process with its exit code."""
    try:
        import click  # noqa: F401
    except ModuleNotFoundError:
        sys.stderr.write('ferryman: the command line needs more packages: pip install "ferryman[cli]"\n')
        raise SystemExit(2) from None
    try:
        from ferryman.cli.root import run

        run()
    except KeyboardInterrupt:
        # It came before or after the command, which ends in the same way.
        sys.stderr.write("\n")
        raise SystemExit(130) from None
