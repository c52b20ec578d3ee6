"""The file of a backup: a line that names the format, then frames, each with its length and a digest.

A frame is a letter, the length of its content (4 bytes, the most significant first), a digest of letter and content (16 bytes of
blake2b), and the content: MessagePack, compressed with zlib. The first is the header, the last the end, which tells how many
jobs there are; between them lie chunks of parcels. So a file that was cut off or changed anywhere is known as such.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import msgspec

from ferryman.errors import StoreCorrupt, StoreError, StoreUnavailable, StoreVersionError
from ferryman.store.cargo import Parcel
from ferryman.store.records import QueueRecord

__all__ = ["FORMAT", "ChestReader", "ChestWriter", "Header"]

FORMAT = 1
"""Grows when an older Ferryman could not read what a newer one writes."""

_MAGIC = b"ferryman backup "
_HEADER, _CHUNK, _END = b"H", b"P", b"E"
_DIGEST = 16
_FRAME = 1 + 4 + _DIGEST
_LEVEL = 3
_MOST = 1 << 30
"""Bytes that a frame may have when it is unpacked, as a guard."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """What a backup says of itself."""

    ferryman: str
    """The version that wrote it."""
    store: str
    """The kind of store it was made of."""
    url: str
    made_at: int
    counts: dict[str, int]
    """Jobs of the store by state, when the backup was begun; others may have come and gone since."""
    queues: tuple[QueueRecord, ...]


class _End(msgspec.Struct, frozen=True):
    jobs: int
    chunks: int


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(Header).decode
_decode_parcels = msgspec.msgpack.Decoder(list[Parcel]).decode
_decode_end = msgspec.msgpack.Decoder(_End).decode


class ChestWriter:
    """Writes a backup under another name, and gives it its own when it is on the disk and has been read once more."""

    def __init__(self, path: Path, header: Header) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._jobs = self._chunks = 0
        try:
            # It holds the arguments of jobs: nobody else's business.
            descriptor = os.open(self._part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise StoreUnavailable(f"the file {str(path)!r} cannot be written: {error.strerror}") from error
        self._stream = os.fdopen(descriptor, "wb")
        try:
            self._write(_MAGIC + b"%d\n" % FORMAT)
            self._frame(_HEADER, _encode(header))
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._close()
        finally:
            self._let_go()

    def put(self, parcels: Sequence[Parcel]) -> None:
        """Add a chunk."""
        self._frame(_CHUNK, _encode(parcels))
        self._jobs += len(parcels)
        self._chunks += 1

    def _close(self) -> None:
        self._frame(_END, _encode(_End(self._jobs, self._chunks)))
        with self._disk_may_fail():
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        try:
            ChestReader(self._part).check()
        except StoreCorrupt as error:
            raise StoreCorrupt(
                f"the file {str(self._path)!r} was not written: its disk does not give back what was put there ({error})"
            ) from error
        with self._disk_may_fail():
            self._part.replace(self._path)
            folder = os.open(self._path.absolute().parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _let_go(self) -> None:
        """Leave nothing of what has not got its name. On a full disk, even closing it fails."""
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._part.unlink(missing_ok=True)

    def _frame(self, kind: bytes, content: bytes) -> None:
        if len(content) >= _MOST:
            raise StoreError(
                f"a backup can hold no job of {len(content):,} bytes; {_MOST:,} is the most that it takes"
            )
        squeezed = zlib.compress(content, _LEVEL)
        self._write(kind + len(squeezed).to_bytes(4) + _digest(kind, squeezed))
        self._write(squeezed)

    def _write(self, data: bytes) -> None:
        with self._disk_may_fail():
            self._stream.write(data)

    @contextlib.contextmanager
    def _disk_may_fail(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StoreUnavailable(
                f"the file {str(self._path)!r} cannot be written: {error.strerror}"
            ) from error


class ChestReader:
    """Reads a backup, as often as asked."""

    def __init__(self, path: Path) -> None:
        """Raises StoreUnavailable, StoreCorrupt if it is no backup or its header is damaged, and StoreVersionError if a
        newer Ferryman made it."""
        self._path = path
        with self._open() as stream:
            self.header: Header = self._decoded(_decode_header, self._next(stream, _HEADER)[1])

    def check(self) -> int:
        """Read all of it. Answers how many jobs there are. Raises StoreCorrupt if anything is damaged or lacking."""
        return sum(len(chunk) for chunk in self.chunks())

    def chunks(self) -> Iterator[list[Parcel]]:
        """Its jobs in order of arrival, chunk by chunk."""
        jobs = chunks = 0
        with self._open() as stream:
            self._next(stream, _HEADER)
            while True:
                kind, content = self._next(stream, _CHUNK, _END)
                if kind == _END:
                    break
                parcels: list[Parcel] = self._decoded(_decode_parcels, content)
                jobs += len(parcels)
                chunks += 1
                yield parcels
            end: _End = self._decoded(_decode_end, content)
            if (end.jobs, end.chunks) != (jobs, chunks):
                raise self._damaged(f"it should hold {end.jobs:,} jobs and holds {jobs:,}")
            if stream.read(1):
                raise self._damaged("something follows its end")

    def _open(self) -> BinaryIO:
        try:
            stream = self._path.open("rb")
        except OSError as error:
            raise StoreUnavailable(
                f"the backup {str(self._path)!r} cannot be read: {error.strerror}"
            ) from error
        first = stream.readline(len(_MAGIC) + 12)
        number = first.removeprefix(_MAGIC).strip()
        if (
            not first.startswith(_MAGIC)
            or not first.endswith(b"\n")
            or not number.isdigit()
            or not int(number)
        ):
            stream.close()
            raise StoreCorrupt(f"{str(self._path)!r} is no backup of Ferryman's")
        if int(number) > FORMAT:
            stream.close()
            raise StoreVersionError(
                f"the backup {str(self._path)!r} has format {int(number)}, and this Ferryman knows formats up to {FORMAT}; "
                "install the newer Ferryman that made it"
            )
        return stream

    def _next(self, stream: BinaryIO, *kinds: bytes) -> tuple[bytes, bytes]:
        head = stream.read(_FRAME)
        if len(head) < _FRAME:
            raise self._damaged("it was cut off")
        kind, size = head[:1], int.from_bytes(head[1:5])
        # No digest is over the size, and what it says would be made room for.
        if size > os.fstat(stream.fileno()).st_size - stream.tell():
            raise self._damaged("it was cut off")
        content = stream.read(size)
        if kind not in kinds or _digest(kind, content) != head[5:]:
            raise self._damaged("a checksum is wrong")
        try:
            inflater = zlib.decompressobj()
            inflated = inflater.decompress(content, _MOST)
        except zlib.error as error:
            raise self._damaged(str(error)) from error
        if not inflater.eof:
            raise self._damaged(f"a part of it has more than {_MOST:,} bytes")
        return kind, inflated

    def _decoded(self, decode: Any, content: bytes) -> Any:
        try:
            return decode(content)
        except msgspec.DecodeError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"the backup {str(self._path)!r} is damaged: {why}; nothing of it can be relied on. Take another copy of it"
        )


def _digest(kind: bytes, content: bytes) -> bytes:
    return hashlib.blake2b(kind + content, digest_size=_DIGEST).digest()
