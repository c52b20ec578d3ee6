"""Which files are catalogued. They are only read; what is damaged on purpose is a copy."""

from __future__ import annotations

import sysconfig
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ferryman.cli.demo.catalogue import catalogue_file
from ferryman.errors import ConfigError

__all__ = ["Sources", "find_sources", "is_broken", "standard_library"]

_NOT_OURS = {"site-packages", "dist-packages"}

_DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "torn": lambda data: data + b"\ndef torn(",
    "misspelt-encoding": lambda data: b"# -*- coding: uft-8 -*-\n" + data,
    "stray-byte": lambda data: data + b"\n# caf\xe9\n",
    "zeros": lambda data: data[: len(data) // 2] + bytes(512) + data[len(data) // 2 :],
}


class Sources(msgspec.Struct, frozen=True):
    """The files of a run."""

    root: Path
    found: int
    """How many files there are below `root`."""
    files: Sequence[Path]
    """Those that are catalogued."""
    damaged: Sequence[Path]
    """Those among them that are copies damaged by the demo."""

    def short(self, path: str) -> str:
        """A path as people want to read it."""
        file = Path(path)
        if file.is_relative_to(self.root):
            return str(file.relative_to(self.root))
        return str(Path(*file.parts[-2:]))


def standard_library() -> Path:
    """Where the standard library of this Python lies."""
    return Path(sysconfig.get_path("stdlib"))


def find_sources(root: Path, limit: int | None, workshop: Path) -> Sources:
    """Python files below `root`, at most `limit`, broken ones among them: if `root` has none, a few damaged copies
    are made in the folder `workshop`. Raises ConfigError if there are no files at all."""
    root = root.resolve()
    found = sorted(path for path in root.rglob("*.py") if not _NOT_OURS & set(path.parts) and path.is_file())
    if not found:
        raise ConfigError(f"there is no Python file below {str(root)!r}")
    broken = [path for path in found if _may_be_broken(path) and is_broken(path)]
    chosen = found if limit is None or limit >= len(found) else _choose(found, broken, limit)
    damaged = [] if broken else _damage(chosen, workshop)
    return Sources(root, len(found), [*chosen, *damaged], damaged)


def is_broken(path: Path) -> bool:
    """Whether a file cannot be catalogued: it is tried, here and now."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            catalogue_file(str(path))
        except Exception:
            return True
    return False


def _may_be_broken(path: Path) -> bool:
    """Where CPython keeps sources that its own tests expect to fail."""
    return path.name.startswith("bad") or path.parent.name in {"data", "tokenizedata"}


def _choose(found: Sequence[Path], broken: Sequence[Path], limit: int) -> list[Path]:
    """A fair sample, except that broken files make up a quarter if there are so many."""
    first = broken[: -(-limit // 4)]
    others = sorted(set(found) - set(first))
    count = limit - len(first)
    return sorted([*first, *(others[index * len(others) // count] for index in range(count))])


def _damage(files: Sequence[Path], workshop: Path) -> list[Path]:
    """A copy with each kind of damage, of files in the middle of the field by size."""
    by_size = sorted(files, key=lambda path: path.stat().st_size)
    folder = workshop / "damaged"
    folder.mkdir()
    copies = []
    for number, (name, damage) in enumerate(_DAMAGES.items()):
        original = by_size[(len(by_size) // 2 + number) % len(by_size)]
        copy = folder / f"{original.stem}-{name}.py"
        copy.write_bytes(damage(original.read_bytes()))
        copies.append(copy)
    return copies
