"""What Ferryman asks of a place for large payloads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

__all__ = ["Blobs", "Found"]


class Found(NamedTuple):
    """A blob as a listing tells of it."""

    name: str
    written_at: int
    """ms since the epoch, by the clock of the place."""


class Blobs(Protocol):
    """Bytes by name. A name is ``store/folder/file``, of letters, digits, ``-`` and ``.``, and begins with the store that
    the blob is of. Thread-safe; all methods block.

    All raise BlobError when the place cannot be reached or does not do its part, and MissingExtra without its library.
    """

    url: str
    """Without passwords, fit to be shown."""

    def begin(self, store: str) -> None:
        """Get ready for a store's first blob; once in its life, though it may be done again. From then on, a place that
        shows no trace of the store is taken for another one, such as a directory where nothing is mounted."""
        ...

    def put(self, name: str, data: bytes) -> None:
        """Keep these bytes; once this returns they are safe. Putting a name again replaces what it had, at once."""
        ...

    def get(self, name: str, most: int) -> bytes | None:
        """What was put; None if there is nothing of this name, though it is the right place. At most `most` + 1 bytes
        are read of it."""
        ...

    def delete(self, names: Sequence[str]) -> None:
        """Forget these; those that are not there are no error."""
        ...

    def list(self, prefix: str) -> Iterator[Found]:
        """All blobs whose names begin with `prefix` and a slash, in no order."""
        ...
