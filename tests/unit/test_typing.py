"""What a user's type checker knows: mypy reads ``tests/typing``, which says what it must find."""

from __future__ import annotations

import re
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "tests" / "typing"


def test_mypy_agrees_with_the_types_and_finds_the_mistakes() -> None:
    # Strict settings report a comment that excuses no error, so each mistake must be one.
    cache = ROOT / ".mypy_cache" / "typing"

    out, problems, status = api.run(
        ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(cache), str(FOLDER)]
    )

    assert (status, problems) == (0, ""), out


def test_each_mistake_names_the_error_that_it_is() -> None:
    text = (FOLDER / "mistakes.py").read_text(encoding="utf-8")

    excuses = re.findall(r"# type: ignore(.*)", text)

    assert len(excuses) > 20
    assert all(re.fullmatch(r"\[[a-z-]+\]", excuse) for excuse in excuses)
