"""``ferryman doctor``: shows what the checks found."""

from __future__ import annotations

import click

from ferryman.cli.checks import Check, examine
from ferryman.cli.output import json_line, say
from ferryman.cli.target import Target, listing, pass_target, with_app

__all__ = ["doctor"]

_SIGNS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "problem": ("✗", "red")}


@click.command()
@with_app
@listing
@pass_target
def doctor(target: Target) -> None:
    """Check the set-up and say what to change.

    It looks at Python, the packages, the store and its file, the clock, the workers and what waits for them.
    Ends with 1 if something must be mended.
    """
    problems = 0
    for check in examine(target):
        problems += check.level == "problem"
        if target.json:
            json_line(check._asdict())
        else:
            _show(check)
    if problems:
        click.get_current_context().exit(1)


def _show(check: Check) -> None:
    sign, style = _SIGNS[check.level]
    say(f"{sign} {check.name}: {check.finding}", style if check.level != "ok" else None)
    if check.remedy:
        say(f"    → {check.remedy}")
