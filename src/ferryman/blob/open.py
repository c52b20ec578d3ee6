"""From a URL to a place for blobs. Its module is imported only when its URL is used."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from ferryman.blob.port import Blobs
from ferryman.errors import ConfigError

__all__ = ["open_blobs"]


def open_blobs(url: str) -> Blobs:
    """The place that a URL names; nothing is connected to yet. Raises ConfigError for a URL that names none."""
    parts = urlsplit(url)
    match parts.scheme:
        case "file" if not parts.netloc and len(parts.path) > 1:
            from ferryman.blob.directory import DirectoryBlobs

            return DirectoryBlobs(Path(unquote(parts.path)))
        case "s3" if parts.netloc:
            from ferryman.blob.s3 import S3Blobs

            options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            blobs = S3Blobs(
                parts.netloc, unquote(parts.path), options.pop("endpoint", None), options.pop("region", None)
            )
            if options:
                raise ConfigError(
                    f"blobs.url has an option {next(iter(options))!r}; it may have endpoint=… and region=…"
                )
            return blobs
        case _:
            raise ConfigError(
                f"the blobs URL {url!r} is none that Ferryman knows; write file:///var/lib/ferryman/blobs, "
                "s3://bucket/prefix or s3://bucket/prefix?endpoint=https://minio.example.com:9000"
            )
