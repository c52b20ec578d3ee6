"""PostgreSQL servers, durable unless they are told otherwise. Everybody on the loopback is trusted."""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import pwd
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tests.services.lifeline import Lifeline
from tests.services.programs import ENVIRONMENT, POSTGRES
from tests.services.server import Server, free_port, modest_user, new_folder

__all__ = ["TEMPLATE", "USER", "as_user", "postgres_server", "serving", "template"]

USER = "ferryman"
TEMPLATE = "FERRYMAN_TEST_POSTGRES_TEMPLATE"
"""The environment's word on where a fresh data folder is, to be copied."""

DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}
SMALL = {"max_connections": "200", "shared_buffers": "64MB", "max_wal_size": "512MB"}


@contextlib.contextmanager
def postgres_server(**options: str) -> Iterator[Server]:
    """A server. Options are those of ``postgresql.conf``."""

    def copy(data: Path) -> None:
        as_user(["cp", "-R", "-p", str(template()), str(data)], data.parent)

    with serving("postgres", copy, options) as server:
        yield server


@contextlib.contextmanager
def serving(name: str, fill: Callable[[Path], None], options: Mapping[str, str]) -> Iterator[Server]:
    """A server whose data folder `fill` makes."""
    program, port, user = POSTGRES.find(), free_port(), modest_user()
    folder = new_folder(name, user)
    data = folder / "data"
    given = {"port": str(port), "listen_addresses": "127.0.0.1", "unix_socket_directories": ""}

    def command(options: Mapping[str, str]) -> list[str]:
        settings = {**given, **options}
        return [str(program), "-D", str(data), *(f"--{name}={value}" for name, value in settings.items())]

    server = Server(
        f"postgresql://{USER}@127.0.0.1:{port}/postgres",
        port,
        folder,
        command=command,
        ready=lambda server: _says_ready(data / "postmaster.pid", server.pid),
        options={**DURABLE, **SMALL, **options},
        user=user,
        # Its "fast" way: disconnect the clients, write a checkpoint.
        stop_by=signal.SIGINT,
    )
    try:
        fill(data)
        server.start()
        yield server
    finally:
        server.close()


@functools.cache
def template() -> Path:
    """A fresh data folder, made once for all servers: making one takes a second, copying it next to nothing."""
    if TEMPLATE in ENVIRONMENT:
        return Path(ENVIRONMENT[TEMPLATE])
    folder = new_folder("postgres-template", modest_user())
    atexit.register(Lifeline(folder).let_go)
    initdb = POSTGRES.find().resolve().with_name("initdb")
    as_user(
        [str(initdb), f"--username={USER}", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync",
         f"--pgdata={folder}/data"],
        folder,
    )  # fmt: skip
    return folder / "data"


def as_user(command: list[str], folder: Path) -> None:
    """Run a command in a folder, as the user whom the servers run as."""
    user = modest_user()
    made = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=None if user is None else pwd.getpwnam(user).pw_gid,
        extra_groups=None if user is None else [],
    )
    assert made.returncode == 0, f"{' '.join(command)}:\n{made.stdout}{made.stderr}"


def _says_ready(file: Path, pid: int) -> bool:
    """Whether the file that a server keeps of itself is of this process, and says that it serves."""
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return False
    return len(lines) > 7 and lines[0] == str(pid) and lines[7].strip() == "ready"
