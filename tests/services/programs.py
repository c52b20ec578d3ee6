"""Where the servers' programs are, or how to get them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

__all__ = ["ENVIRONMENT", "PGBOUNCER", "POSTGRES", "PROGRAMS", "REDIS", "Missing", "Program"]


ENVIRONMENT = dict(os.environ)
"""As it was at first: many a test takes out of its own what begins with FERRYMAN_."""


class Missing(Exception):
    """A server's program is not on this machine, or too old; the message says how to get it."""


class Program(NamedTuple):
    """A program that a server is started with."""

    title: str
    names: tuple[str, ...]
    """What it may be called, the first choice first."""
    variable: str
    """The environment's word on where it is: the program or its folder."""
    oldest: int
    """The first major version that will do."""
    packages: tuple[str, ...]
    """What to install on Debian and Ubuntu: any one of these."""
    formula: str
    """What to install with Homebrew."""

    def find(self) -> Path:
        """The program. Raises `Missing`."""
        told = ENVIRONMENT.get(self.variable)
        blame = f"{self.variable}={told} is no such program; " if told else ""
        for path in self._candidates():
            version = _version(path)
            if version >= self.oldest:
                return path
            blame = f"{path} is version {version}; "
        raise Missing(
            f"{self.title} {self.oldest} or newer is needed: {blame}install it "
            f"(Debian and Ubuntu: apt-get install {self.packages[0]}; macOS: brew install {self.formula}) "
            f"or say where it is with {self.variable}"
        )

    def _candidates(self) -> Iterator[Path]:
        told = ENVIRONMENT.get(self.variable)
        if told:
            yield from _programs([Path(told)] if Path(told).is_file() else self._in(Path(told)))
            return
        for name in self.names:
            if found := shutil.which(name):
                yield Path(found)
        for folder in _folders():
            yield from _programs(self._in(folder))

    def _in(self, folder: Path) -> list[Path]:
        return [folder / name for name in self.names]


def _programs(paths: Iterable[Path]) -> Iterator[Path]:
    yield from (path for path in paths if os.access(path, os.X_OK))


def _folders() -> Iterator[Path]:
    """Where packages put servers besides the PATH; the newest PostgreSQL first."""
    yield from (Path("/usr/sbin"), Path("/usr/local/sbin"), Path("/opt/homebrew/sbin"))
    homes = [*Path("/usr/lib/postgresql").glob("*"), *Path("/usr").glob("pgsql-*")]
    for brew in (Path("/opt/homebrew/opt"), Path("/usr/local/opt")):
        homes += brew.glob("postgresql@*")
    for home in sorted(homes, key=lambda home: [int(n) for n in re.findall(r"\d+", home.name)], reverse=True):
        yield home / "bin"


def _version(path: Path) -> int:
    """The major version that a program says it has."""
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"(?:v=|\s)(\d+)\.\d+", said)
    return int(found[1]) if found else 0


REDIS = Program(
    title="A Redis or Valkey server",
    names=("redis-server", "valkey-server"),
    variable="FERRYMAN_REDIS_SERVER",
    oldest=7,
    packages=("redis-server", "valkey-server"),
    formula="redis",
)
POSTGRES = Program(
    title="A PostgreSQL server",
    names=("postgres",),
    variable="FERRYMAN_POSTGRES_BIN",
    oldest=13,
    packages=("postgresql",),
    formula="postgresql@17",
)
PGBOUNCER = Program(
    title="PgBouncer",
    names=("pgbouncer",),
    variable="FERRYMAN_PGBOUNCER",
    oldest=1,
    packages=("pgbouncer",),
    formula="pgbouncer",
)
PROGRAMS = (REDIS, POSTGRES, PGBOUNCER)
