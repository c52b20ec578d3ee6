"""Makes sure that the servers' programs are on this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.services.programs import PROGRAMS, Missing, Program

__all__ = ["install"]

RULE = Path("/usr/sbin/policy-rc.d")
"""What a package of Debian asks before it starts its service."""

PATIENTLY = ("-o", "DPkg::Lock::Timeout=120")
"""A machine that has just been started may be at its own updates."""


def install() -> None:
    """Install what is missing, if we may. Raises `Missing` otherwise."""
    absent = [program for program in PROGRAMS if _complaint(program)]
    if not absent:
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        _install_with_apt(absent)
    elif shutil.which("brew"):
        print(f"Installing {', '.join(program.formula for program in absent)} ...", flush=True)
        _run(["brew", "install", "--quiet", *(program.formula for program in absent)])
    if complaints := [said for program in absent if (said := _complaint(program))]:
        raise Missing("\n".join(complaints))


def _complaint(program: Program) -> str:
    """What is to be said of it if it is missing or too old; else nothing."""
    try:
        program.find()
    except Missing as missing:
        return str(missing)
    return ""


def _install_with_apt(absent: Sequence[Program]) -> None:
    print(f"Installing {', '.join(program.packages[0] for program in absent)} ...", flush=True)
    # A source that cannot be read does no harm, as long as another one has what is missing.
    news = _perform(["apt-get", "update"]).stdout
    packages = [package for program in absent if (package := _package(program))]
    if len(packages) < len(absent):
        raise Missing(f"{news[-3_000:]}\n`apt-get update` brought no package for some of these, see above")
    with _no_services_started():
        _run(["apt-get", "install", "--yes", "--no-install-recommends", *PATIENTLY, *packages])
    if Path("/run/systemd/system").is_dir():
        # Nor shall they be started when the machine is.
        for package in packages:
            subprocess.run(["systemctl", "disable", "--quiet", package], check=False)


def _package(program: Program) -> str | None:
    """The first of its packages that there is."""
    for package in program.packages:
        known = subprocess.run(["apt-cache", "show", package], capture_output=True, check=False)
        if known.returncode == 0:
            return package
    return None


@contextlib.contextmanager
def _no_services_started() -> Iterator[None]:
    """Tests start servers of their own; one that the system runs would only be in the way."""
    if RULE.exists():
        yield
        return
    RULE.write_text("#!/bin/sh\nexit 101\n")
    RULE.chmod(0o755)
    try:
        yield
    finally:
        RULE.unlink()


def _run(command: Sequence[str]) -> None:
    done = _perform(command)
    if done.returncode:
        raise Missing(f"{done.stdout[-3_000:]}\n`{' '.join(command)}` failed, see above")


def _perform(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
