"""Moves the fragments of changelog.d/ into the Unreleased part of CHANGELOG.md; see changelog.d/README.md."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
CHANGELOG = ROOT / "CHANGELOG.md"
FRAGMENTS = ROOT / "changelog.d"
KINDS = ("added", "changed", "deprecated", "removed", "fixed", "security")
UNRELEASED = "## [Unreleased]\n"


def main() -> None:
    fragments = sorted(path for path in FRAGMENTS.glob("*.md") if path.name != "README.md")
    page = CHANGELOG.read_text(encoding="utf-8")
    for path in fragments:
        page = with_entry(page, kind_of(path), path.read_text(encoding="utf-8").strip())
    CHANGELOG.write_text(page, encoding="utf-8")
    for path in fragments:
        path.unlink()
    print(f"collected {len(fragments)} into {CHANGELOG.name}")


def kind_of(fragment: Path) -> str:
    kind = fragment.stem.rpartition(".")[2]
    if kind not in KINDS:
        sys.exit(f"{fragment.name}: a fragment is called NAME.KIND.md, KIND being one of {', '.join(KINDS)}")
    return kind


def with_entry(page: str, kind: str, text: str) -> str:
    """The changelog with one more entry at the end of that kind's list, which is made if there is none."""
    before, mark, rest = page.partition(UNRELEASED)
    if not mark:
        sys.exit(f"{CHANGELOG.name} has no line {UNRELEASED.strip()!r}")
    released = rest.find("\n## ")
    unreleased, after = (rest, "") if released < 0 else (rest[:released], rest[released:])
    title = f"### {kind.capitalize()}\n"
    entry = "- " + text.replace("\n", "\n  ")
    if title not in unreleased:
        return f"{before}{mark}{unreleased.rstrip()}\n\n{title}\n{entry}\n{after}"
    lead, _, tail = unreleased.partition(title)
    own, following, others = tail.partition("\n### ")
    return f"{before}{mark}{lead}{title}{own.rstrip()}\n{entry}\n{following}{others}{after}"


if __name__ == "__main__":
    main()
