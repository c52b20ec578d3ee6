"""From a URL to a place for blobs. Its module is imported only when its URL is used."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from ferryman.blob.port import Blobs
from ferryman.errors import ConfigError

__all__ = ["open_blobs"]


def open_blobs(url: str) -> Blobs:
    """The place that a URL names; nothing is connected to yet. Raises ConfigError for a URL that names none, and does
    not repeat it, since it may hold keys."""
    parts = _split(url)
    match parts.scheme:
        case "file" if not parts.netloc and len(parts.path) > 1:
            from ferryman.blob.directory import DirectoryBlobs

            return DirectoryBlobs(Path(unquote(parts.path)))
        case "s3" if parts.netloc and ":" not in parts.netloc:
            from ferryman.blob.s3 import S3Blobs

            options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
            endpoint, region = options.pop("endpoint", None), options.pop("region", None)
            if options:
                raise ConfigError(
                    f"blobs.url has an option {next(iter(options))!r}; it may have endpoint=… and region=…"
                )
            if endpoint is not None:
                _check_endpoint(endpoint)
            return S3Blobs(parts.netloc, unquote(parts.path), endpoint, region)
        case _:
            raise ConfigError(
                "blobs.url names no place that Ferryman knows; write file:///var/lib/ferryman/blobs, "
                "s3://bucket/prefix or s3://bucket/prefix?endpoint=https://minio.example.com:9000"
            )


def _check_endpoint(endpoint: str) -> None:
    parts = _split(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ConfigError("the endpoint in blobs.url must be a URL, such as https://minio.example.com:9000")


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigError("blobs.url, or the endpoint in it, is no URL") from None
    # A secret may hold what seems to be the end of it.
    if "@" in parts.netloc or (parts.scheme != "file" and "@" in url):
        raise ConfigError(
            "blobs.url may not hold keys, since it is shown in messages; set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or use ~/.aws, and write s3://bucket/prefix (an @ that belongs to a prefix is %40)"
        )
    return parts
