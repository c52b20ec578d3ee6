"""Values to bytes and back: MessagePack by default, JSON, or the user's own; never pickle unless asked.

The first byte of a payload says how the rest is written, so a worker can read what any producer wrote,
except for formats that it was not given. Compression comes above a size only.
"""

from __future__ import annotations

import functools
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ferryman.errors import ConfigError, PayloadError

__all__ = ["Codec", "Decoder", "Format", "JsonFormat", "MsgpackFormat", "PickleFormat"]

Decoder = Callable[[bytes], Any]

_COMPRESSED = 0x80
_KNOWN = {1: "msgpack", 2: "json", 3: "pickle"}
_FIRST_OWN_TAG = 16


class Format(Protocol):
    """A way to write values down. `tag` is 16 to 127 for formats that are not Ferryman's own."""

    tag: int

    def encoder(self) -> Callable[[Any], bytes]: ...

    def decoder(self, type: Any) -> Decoder:
        """A function that decodes bytes to exactly this type, or raises."""
        ...


def _enc_hook(value: Any) -> Any:
    if isinstance(value, pathlib.PurePath):
        return str(value)
    raise NotImplementedError(
        f"a value of type {type(value).__qualname__} cannot be encoded; pass plain values, dataclasses, "
        "msgspec structs, or give the app a codec with hooks"
    )


def _dec_hook(type: Any, value: Any) -> Any:
    if isinstance(value, type):
        return value
    if isinstance(type, _TypeObject) and issubclass(type, pathlib.PurePath) and isinstance(value, str):
        return type(value)
    raise NotImplementedError(f"values of type {type!r} cannot be decoded; give the app a codec with hooks")


_TypeObject = type


class MsgpackFormat:
    """MessagePack through msgspec: dataclasses, datetimes, UUIDs, Decimals and enums arrive as annotated."""

    tag = 1

    def __init__(
        self,
        enc_hook: Callable[[Any], Any] = _enc_hook,
        dec_hook: Callable[[Any, Any], Any] = _dec_hook,
    ) -> None:
        self._enc_hook, self._dec_hook = enc_hook, dec_hook

    def encoder(self) -> Callable[[Any], bytes]:
        return msgspec.msgpack.Encoder(enc_hook=self._enc_hook).encode

    def decoder(self, type: Any) -> Decoder:
        return msgspec.msgpack.Decoder(type, dec_hook=self._dec_hook).decode


class JsonFormat:
    """JSON through msgspec, for those who want to read payloads with other tools."""

    tag = 2

    def __init__(
        self,
        enc_hook: Callable[[Any], Any] = _enc_hook,
        dec_hook: Callable[[Any, Any], Any] = _dec_hook,
    ) -> None:
        self._enc_hook, self._dec_hook = enc_hook, dec_hook

    def encoder(self) -> Callable[[Any], bytes]:
        return msgspec.json.Encoder(enc_hook=self._enc_hook).encode

    def decoder(self, type: Any) -> Decoder:
        return msgspec.json.Decoder(type, dec_hook=self._dec_hook).decode


class PickleFormat:
    """Pickle, for those who trust everybody that can write to the store: unpickling runs code."""

    tag = 3

    def encoder(self) -> Callable[[Any], bytes]:
        import pickle

        return functools.partial(pickle.dumps, protocol=5)

    def decoder(self, type: Any) -> Decoder:  # noqa: ARG002
        import pickle

        return pickle.loads


class Codec:
    """Encodes arguments and results. Thread-safe.

    `format` writes; MessagePack, JSON and `format` are read. Payloads longer than `compress_above` bytes
    are compressed if that makes them smaller; those longer than `max_bytes` (before compression) are
    refused in both directions.
    """

    def __init__(
        self,
        format: Format | None = None,
        *,
        compress_above: int | None = 2_048,
        max_bytes: int = 4 * 1024 * 1024,
    ) -> None:
        chosen = format or MsgpackFormat()
        if chosen.tag not in _KNOWN and not _FIRST_OWN_TAG <= chosen.tag < _COMPRESSED:
            raise ConfigError(f"the tag of format {chosen!r} must lie between 16 and 127")
        self._formats: dict[int, Format] = {1: MsgpackFormat(), 2: JsonFormat(), chosen.tag: chosen}
        self._encode = chosen.encoder()
        self._tag = bytes([chosen.tag])
        self._compressed_tag = bytes([chosen.tag | _COMPRESSED])
        self._compress_above = max_bytes if compress_above is None else min(compress_above, max_bytes)
        self.max_bytes = max_bytes

    def encode(self, value: Any) -> bytes:
        """Bytes of a value. Raises PayloadError if it has no encoding or is too large."""
        try:
            data = self._encode(value)
        except Exception as error:
            raise PayloadError(f"cannot be encoded: {error}") from error
        if len(data) <= self._compress_above:
            return self._tag + data
        if len(data) > self.max_bytes:
            raise PayloadError(
                f"{len(data):,} bytes are more than the {self.max_bytes:,} allowed; store the data elsewhere "
                "and pass a reference, or raise the setting max_payload (max_bytes of a codec of your own)"
            )
        squeezed = zlib.compress(data, 1)
        if len(squeezed) >= len(data):
            return self._tag + data
        return self._compressed_tag + squeezed

    def decoder(self, type: Any) -> Decoder:
        """A function from bytes to a value of `type`; it raises PayloadError if they do not fit."""
        readers = {tag: format.decoder(type) for tag, format in self._formats.items()}

        def decode(data: bytes) -> Any:
            if not data:
                raise PayloadError("the payload is empty")
            tag = data[0]
            body = data[1:]
            if len(body) > self.max_bytes:
                raise PayloadError(f"{len(body):,} bytes are more than the {self.max_bytes:,} allowed")
            if tag & _COMPRESSED:
                body = self._inflate(body)
                tag &= ~_COMPRESSED
            reader = readers.get(tag)
            if reader is None:
                name = _KNOWN.get(tag, f"number {tag}")
                raise PayloadError(
                    f"the payload has format {name}, which this app was not given; pass it as Ferryman(codec=…)"
                )
            try:
                return reader(body)
            except Exception as error:
                raise PayloadError(f"cannot be decoded: {error}") from error

        return decode

    def _inflate(self, body: bytes) -> bytes:
        inflater = zlib.decompressobj()
        try:
            data = inflater.decompress(body, self.max_bytes)
        except zlib.error as error:
            raise PayloadError(f"the compressed payload is damaged: {error}") from error
        if not inflater.eof:
            raise PayloadError(
                f"the payload is damaged or inflates to more than the {self.max_bytes:,} bytes allowed"
            )
        return data
