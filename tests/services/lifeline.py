"""What ends a server whose owner died without a word, and removes its folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from tests.services.processes import end_family

__all__ = ["Lifeline"]

ROOT = Path(__file__).parents[2]


class Lifeline:
    """A process that holds one end of a pipe, while we hold the other. When we are gone, however we went, it kills the
    process that it was told of last and removes the folder."""

    def __init__(self, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def watch(self, pid: int) -> None:
        """Tell it of the process that there is now; 0 is none."""
        assert self._process.stdin is not None
        self._process.stdin.write(b"%d\n" % pid)
        self._process.stdin.flush()

    def let_go(self) -> None:
        """Let it do its work, and wait until it has."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def main(folder: str) -> None:
    pid = 0
    for line in sys.stdin:
        pid = int(line)
    if pid:
        end_family(pid)
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main(sys.argv[1])
