"""Writes the diagrams of a job's states in docs/architecture.md from the table of allowed transitions.

Run without arguments it writes them; with --check it only says whether they are up to date.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from ferryman.job import FINISHED, TRANSITIONS, State

PAGE = Path(__file__).parent.parent / "docs" / "architecture.md"
BEGIN = "<!-- states: written by scripts/state_diagram.py -->"
END = "<!-- end of states -->"

Transition = tuple[State | None, State]


def main(arguments: list[str]) -> int:
    old = PAGE.read_text(encoding="utf-8")
    new = with_states(old)
    if arguments == ["--check"]:
        if new == old:
            return 0
        print(f"{PAGE.name} does not show the transitions of ferryman.job; run: make docs")
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


def with_states(page: str) -> str:
    """The page with fresh diagrams between its two marks."""
    head, begin, rest = page.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{PAGE} has lost the marks {BEGIN!r} and {END!r}")
    return f"{head}{begin}\n{states()}{end}{tail}"


def states() -> str:
    """Two diagrams, since all in one would be a tangle: how work gets done, and all other ways."""
    every = [(before, after) for before in TRANSITIONS for after in sorted(TRANSITIONS[before])]
    work = [step for step in every if not is_aside(step)]
    aside = [step for step in every if is_aside(step)]
    return (
        f"\nHow work gets done:\n\n{diagram(work)}"
        f"\nWhat else can happen: ending without success, and replays.\n\n{diagram(aside)}\n"
    )


def is_aside(step: Transition) -> bool:
    before, after = step
    return before in FINISHED or after in {State.CANCELLED, State.EXPIRED}


def diagram(steps: Iterable[Transition]) -> str:
    lines = [f"    {label(before)} --> {after.label}" for before, after in steps]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```", ""])


def label(state: State | None) -> str:
    return "[*]" if state is None else state.label


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
