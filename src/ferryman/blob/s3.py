"""Blobs as objects in a bucket of a service that speaks S3, through boto3."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from ferryman.blob.port import Found
from ferryman.errors import BlobError, FerrymanError, MissingExtra

__all__ = ["S3Blobs"]

_DELETE_AT_ONCE = 1_000
"""What one request may name (API reference of Amazon S3, DeleteObjects)."""


class S3Blobs:
    """See `ferryman.blob.port.Blobs`. Keys and regions are found as boto3 finds them: in the environment, in
    ``~/.aws`` or with the machine's role."""

    def __init__(self, bucket: str, prefix: str, endpoint: str | None, region: str | None) -> None:
        prefix = prefix.strip("/")
        self.url = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = endpoint
        self._region = region
        self._opening = threading.Lock()
        self._client: Any = None
        self._pid = 0

    def begin(self, store: str) -> None:
        """Folders need not be made; but a bucket that takes nothing shall not become the store's place."""
        with self._trouble("payloads cannot be kept in"):
            self._open().put_object(Bucket=self._bucket, Key=f"{self._prefix}{store}.begun", Body=b"")

    def put(self, name: str, data: bytes) -> None:
        with self._trouble(f"{len(data):,} bytes cannot be kept in"):
            self._open().put_object(Bucket=self._bucket, Key=self._prefix + name, Body=data)

    def get(self, name: str, most: int) -> bytes | None:
        with self._trouble(f"{name} cannot be read from"):
            client = self._open()
            try:
                answer = client.get_object(Bucket=self._bucket, Key=self._prefix + name)
            except client.exceptions.NoSuchKey:
                return None
            data: bytes = answer["Body"].read(most + 1)
            return data

    def delete(self, names: Sequence[str]) -> None:
        for start in range(0, len(names), _DELETE_AT_ONCE):
            keys = [{"Key": self._prefix + name} for name in names[start : start + _DELETE_AT_ONCE]]
            with self._trouble(f"{len(keys)} blobs cannot be deleted from"):
                answer = self._open().delete_objects(
                    Bucket=self._bucket, Delete={"Objects": keys, "Quiet": True}
                )
                # Some services count what is not there as an error.
                left = [each for each in answer.get("Errors", ()) if each.get("Code") != "NoSuchKey"]
            if left:
                raise BlobError(
                    f"{len(left)} of {len(keys)} blobs cannot be deleted from {self.url}, "
                    f"{left[0].get('Key')} for one: {left[0].get('Message') or left[0].get('Code')}"
                )

    def list(self, prefix: str) -> Iterator[Found]:
        with self._trouble("the blobs cannot be listed of"):
            pages = self._open().get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=f"{self._prefix}{prefix}/"):
                for item in page.get("Contents", ()):
                    written_at = int(item["LastModified"].timestamp() * 1000)
                    yield Found(item["Key"].removeprefix(self._prefix), written_at)

    def _open(self) -> Any:
        """A client of this process: its connections must not be shared across a fork."""
        with self._opening:
            if self._client is None or self._pid != os.getpid():
                self._client, self._pid = self._connect(), os.getpid()
            return self._client

    def _connect(self) -> Any:
        try:
            import boto3
            import botocore.config
        except ImportError as error:
            raise MissingExtra(
                f"payloads in {self.url} need boto3; install it with: pip install 'ferryman[s3]'"
            ) from error
        return boto3.session.Session().client(
            "s3",
            endpoint_url=self._endpoint,
            region_name=self._region,
            config=botocore.config.Config(
                connect_timeout=5, read_timeout=30, retries={"mode": "standard", "total_max_attempts": 4}
            ),
        )

    @contextlib.contextmanager
    def _trouble(self, what: str) -> Iterator[None]:
        try:
            yield
        except (FerrymanError, MemoryError):
            raise
        except Exception as error:
            # boto3 has no root of its errors: an unusable endpoint, for one, is a ValueError.
            raise BlobError(f"{what} {self.url}: {error}") from error
