"""One server: started, stopped, killed and paused."""

from __future__ import annotations

import fcntl
import os
import pwd
import random
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

from tests.services.lifeline import Lifeline
from tests.services.processes import end_family, family, signal_all

__all__ = ["Server", "answers", "free_port", "modest_user", "new_folder"]

PATIENCE = 30.0
"""Seconds for a start or a stop, on a machine that is very busy."""

_STILL_ENDING = "Terminate any old server processes"
"""What PostgreSQL says of what is left of the server before."""


class Server:
    """A server of our own on the loopback. Its folder goes when it is closed, or when this process dies."""

    def __init__(
        self,
        url: str,
        port: int,
        folder: Path,
        *,
        command: Callable[[Mapping[str, str]], Sequence[str]],
        ready: Callable[[Server], bool],
        options: Mapping[str, str],
        user: str | None = None,
        stop_by: signal.Signals = signal.SIGTERM,
    ) -> None:
        self.url = url
        self.port = port
        self.folder = folder
        self.options = dict(options)
        self._command = command
        self._ready = ready
        self._user = user
        self._stop_by = stop_by
        self._process: subprocess.Popen[bytes] | None = None
        self._lifeline = Lifeline(folder)

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server does not run"
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said since it was first started."""
        return (self.folder / "log").read_text(errors="replace")

    def start(self, **options: str) -> None:
        """Start it, again perhaps, and wait until it serves. Options are for this start and later ones."""
        assert self._process is None, "the server runs already"
        self.options.update(options)
        give_up = time.monotonic() + PATIENCE
        process = self._launch()
        while not self._ready(self):
            code = process.poll()
            if code is not None and _STILL_ENDING in self.log[-500:] and time.monotonic() < give_up:
                # A process that it was just about to fork when it was killed.
                time.sleep(0.05)
                process = self._launch()
            elif code is not None or time.monotonic() > give_up:
                raise AssertionError(f"the server does not start (exit code {code}):\n{self.log[-3_000:]}")
            time.sleep(0.01)

    def _launch(self) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            self._process = process = subprocess.Popen(
                self._command(self.options),
                cwd=self.folder,
                env={**os.environ, "LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
            )
        self._lifeline.watch(process.pid)
        return process

    def stop(self) -> None:
        """Tell it to stop, and wait until it has; clients are disconnected."""
        if self._process is None:
            return
        # One that is paused would hear nothing.
        self.resume()
        self._process.send_signal(self._stop_by)
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            end_family(self.pid)
            raise AssertionError(f"the server did not stop:\n{self.log[-3_000:]}") from None
        finally:
            self._gone()

    def kill(self) -> None:
        """Kill all its processes at once."""
        if self._process is not None:
            end_family(self.pid)
            self._gone()

    def pause(self) -> None:
        """Let it answer nobody and yet keep its connections, as one that swaps or hangs."""
        signal_all([self.pid], signal.SIGSTOP)
        signal_all(family(self.pid), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        signal_all(family(self.pid), signal.SIGCONT)

    def close(self) -> None:
        """Kill it, and remove its folder."""
        self.kill()
        self._lifeline.let_go()

    def _gone(self) -> None:
        assert self._process is not None
        self._process.wait()
        self._process = None
        self._lifeline.watch(0)


_claimed: list[IO[bytes]] = []
"""Locked files, one for each port that this process was given: nobody else is given it while this process lives."""


def free_port() -> int:
    """A port of the loopback that nobody has, and that no other test is about to take. It is below those that outgoing
    connections are given, so that it is still free when a server that was stopped is started again."""
    folder = Path(tempfile.gettempdir(), f"ferryman-ports-{os.geteuid()}")
    folder.mkdir(exist_ok=True)
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        claim = (folder / str(port)).open("wb")
        try:
            fcntl.flock(claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            claim.close()
        else:
            _claimed.append(claim)
            return port


def new_folder(name: str, user: str | None = None) -> Path:
    """A folder for a server, with a name that tells whose it is."""
    folder = Path(tempfile.mkdtemp(prefix=f"ferryman-{name}-"))
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
    return folder


def modest_user() -> str | None:
    """Who runs a server that refuses to run as root; None: whoever we are."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def answers(port: int, question: bytes, answer: bytes) -> bool:
    """Whether what listens there answers so."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(question)
            return connection.recv(len(answer)) == answer
    except OSError:
        return False
