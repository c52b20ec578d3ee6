"""Says which links, files and tests the documentation names that are not there."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")
PLACE = re.compile(r"`((?:src|tests|docs|scripts|examples|changelog\.d)/[\w./-]*)`")
TEST = re.compile(r"`(test_\w+?)(\.py)?`")
DEFINED = re.compile(r"^\s*(?:async )?def (test_\w+)", re.MULTILINE)


def main() -> int:
    sources = list((ROOT / "tests").rglob("*.py"))
    tests = {source.name for source in sources}
    for source in sources:
        tests.update(DEFINED.findall(source.read_text(encoding="utf-8")))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "changelog.d").glob("*.md")]
    wrong = [f"{page.relative_to(ROOT)}: {name}" for page in sorted(pages) for name in missing(page, tests)]
    for line in wrong:
        print(f"{line} is not there")
    return 1 if wrong else 0


def missing(page: Path, tests: set[str]) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    yield from (target for target in LINK.findall(text) if not (page.parent / target).exists())
    yield from (place for place in PLACE.findall(text) if not (ROOT / place).exists())
    yield from (name + ending for name, ending in TEST.findall(text) if name + ending not in tests)


if __name__ == "__main__":
    sys.exit(main())
