"""Blobs as files of one directory, which all machines of the fleet see under its own path."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path

from ferryman.blob.port import Found
from ferryman.errors import BlobError

__all__ = ["DirectoryBlobs"]

_UNFINISHED = ".part"


class DirectoryBlobs:
    """See `ferryman.blob.port.Blobs`. A file appears under its name only when it is whole and on the disk."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.url = f"file://{self._root}"
        self._lasting: set[Path] = set()
        """Folders of which this process knows that a loss of power leaves them where they are."""

    def begin(self, store: str) -> None:
        folder = self._path(store)
        try:
            missing = [each for each in (folder, *folder.parents) if not each.exists()]
            folder.mkdir(parents=True, exist_ok=True)
            for each in {self._root, *(made.parent for made in missing)}:
                _sync_folder(each)
        except OSError as error:
            raise BlobError(
                f"payloads cannot be kept in {self.url}: {error.strerror}; mend its rights"
            ) from error

    def put(self, name: str, data: bytes) -> None:
        path = self._path(name)
        part = path.with_name(f"{path.name}.{secrets.token_hex(8)}{_UNFINISHED}")
        try:
            self._make_folder(path.parent)
            try:
                _write_through(part, data)
                part.rename(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise
            _sync_folder(path.parent)
        except FileNotFoundError:
            raise self._away(name) from None
        except OSError as error:
            raise BlobError(
                f"{len(data):,} bytes cannot be kept in {self.url}: {error.strerror}; make room there or mend its rights"
            ) from error

    def get(self, name: str, most: int) -> bytes | None:
        try:
            with self._path(name).open("rb") as stream:
                return stream.read(most + 1)
        except FileNotFoundError:
            if os.path.isdir(self._home(name)):
                return None
            raise self._away(name) from None
        except OSError as error:
            raise BlobError(f"{name} cannot be read from {self.url}: {error.strerror}") from error

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            try:
                self._path(name).unlink(missing_ok=True)
            except OSError as error:
                raise BlobError(f"{name} cannot be deleted from {self.url}: {error.strerror}") from error

    def list(self, prefix: str) -> Iterator[Found]:
        """Files that a killed process left unfinished are told of as well, so that they are swept away in time."""
        try:
            for folder, _, files in os.walk(self._path(prefix), onerror=_unless_missing):
                for file in files:
                    path = Path(folder, file)
                    with contextlib.suppress(FileNotFoundError):  # Somebody else sweeps too.
                        yield Found(
                            path.relative_to(self._root).as_posix(), path.stat().st_mtime_ns // 1_000_000
                        )
        except OSError as error:
            raise BlobError(f"the blobs of {self.url} cannot be listed: {error.strerror}") from error

    def _make_folder(self, folder: Path) -> None:
        """Below the store's own, which is there already if this is the place."""
        folder.mkdir(exist_ok=True)
        if folder not in self._lasting:
            # Whoever made it may not have come so far.
            _sync_folder(folder.parent)
            self._lasting.add(folder)

    def _home(self, name: str) -> Path:
        """The folder of the store that a blob is of."""
        return self._root / name.partition("/")[0]

    def _away(self, name: str) -> BlobError:
        home = str(self._home(name))
        return BlobError(
            f"the directory {home!r}, where the store keeps its payloads, is not there; is it mounted on this machine? "
            "(If blobs.url named another place before, make this directory and copy to it what lies there under the same name.)"
        )

    def _path(self, name: str) -> Path:
        # A name can come from whoever can write to the store: it must not lead out of the directory.
        path = self._root / name
        if ".." in path.parts or not path.is_relative_to(self._root):
            raise BlobError(f"{name!r} is no name of a blob")
        return path


def _unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _write_through(path: Path, data: bytes) -> None:
    with path.open("xb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
