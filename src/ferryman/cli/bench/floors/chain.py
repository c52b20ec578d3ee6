"""The floor of latencies: one row goes from a producer, this process, to one that sleeps, and from there to a third.

These are the processes of a worker that runs a job, with nothing of Ferryman in them: the second stands for a
supervisor, the third for its executor.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import IO

from ferryman.cli.bench.floors import Sender, open_sender
from ferryman.cli.bench.running import MeasureFailed

__all__ = ["Chain", "open_chain"]

_PATIENCE = 30.0

# Without -P, a file of the working directory would be imported in the place of a driver of the same name.
_PYTHON = [sys.executable, "-P", "-m"]


class Chain:
    """Not thread-safe."""

    def __init__(self, sender: Sender, stamps: IO[bytes], log: IO[bytes]) -> None:
        self._sender = sender
        self._stamps = stamps
        self._log = log
        self._next_stamp()

    def pass_one(self) -> float:
        """Milliseconds from just before a row is stored until the third process knows of it."""
        begun = time.monotonic_ns()
        self._sender.store()
        return (self._next_stamp() - begun) / 1e6

    def _next_stamp(self) -> int:
        if not select.select([self._stamps], [], [], _PATIENCE)[0]:
            raise MeasureFailed(f"what the floor stored was not taken within {_PATIENCE:g} s")
        # Each line is written at once, and the next only when the next row has been stored.
        stamp = self._stamps.read(64)
        if not stamp:
            self._log.seek(0)
            said = self._log.read().decode(errors="replace")
            raise MeasureFailed(f"a process of the floor has ended:\n{said[-2_000:]}")
        return int(stamp)


@contextlib.contextmanager
def open_chain(url: str) -> Iterator[Chain | None]:
    """A chain on a store that is still empty, with its processes waiting; None where there is no floor."""
    with contextlib.ExitStack() as stack:
        sender = open_sender(url)
        if sender is None:
            yield None
            return
        stack.callback(sender.close)
        log = stack.enter_context(tempfile.TemporaryFile())
        hand, taker = socket.socketpair()
        with hand, taker:
            stamper = stack.enter_context(_started(["stamper"], taker.fileno(), subprocess.PIPE, log))
            ear = () if sender.ear is None else (sender.ear,)
            command = ["sleeper", *map(str, ear)]
            stack.enter_context(_started(command, subprocess.PIPE, hand.fileno(), log, url=url, ears=ear))
        assert stamper.stdout is not None
        yield Chain(sender, stamper.stdout, log)


@contextlib.contextmanager
def _started(
    command: list[str],
    stdin: int,
    stdout: int,
    log: IO[bytes],
    *,
    url: str = "",
    ears: tuple[int, ...] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    module, *arguments = command
    process = subprocess.Popen(  # noqa: S603
        [*_PYTHON, f"ferryman.cli.bench.floors.{module}", *arguments],
        env={**os.environ, "FERRYMAN_URL": url},
        stdin=stdin,
        stdout=stdout,
        stderr=log,
        bufsize=0,
        pass_fds=ears,
        process_group=0,  # ^C is for this process, which ends them.
    )
    try:
        yield process
    finally:
        process.kill()  # They hold nothing that wants an end.
        process.wait()
        for end in (process.stdin, process.stdout):
            if end is not None:
                end.close()
