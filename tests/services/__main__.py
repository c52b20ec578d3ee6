"""What ``scripts/services`` does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tests.services.install import install
from tests.services.programs import Missing
from tests.services.shared import shared_servers


def main(arguments: list[str]) -> int:
    match arguments:
        case [] | ["install"]:
            install()
            return 0
        case ["run", "--", *command] if command:
            install()
            return run(command)
        case _:
            print("usage: scripts/services [install | run -- COMMAND ...]", file=sys.stderr)
            return 2


def run(command: list[str]) -> int:
    """Run a command with the shared servers around it; its exit code."""
    # Ctrl-C goes to the command as well, and ends it; the servers stay until it has ended.
    signal.signal(signal.SIGINT, lambda *_: None)
    with shared_servers() as urls:
        process = subprocess.Popen(command, env={**os.environ, **urls})
        signal.signal(signal.SIGTERM, lambda number, _: process.send_signal(number))
        code = process.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Missing as missing:
        sys.exit(f"{missing}")
