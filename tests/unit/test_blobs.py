"""Places for blobs: what their URLs may say, and how each of them fails."""

from __future__ import annotations

import http.server
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ferryman.blob.open import open_blobs
from ferryman.blob.port import Blobs
from ferryman.blob.s3 import S3Blobs
from ferryman.errors import BlobError, ConfigError, MissingExtra


@pytest.mark.parametrize(
    "url",
    [
        "ftp://x/y",
        "file://host/path",
        "s3://",
        "s3://b/p?colour=red",
        "nonsense",
        "s3://b/p?endpoint=minio:9000",
        "s3://b/p?endpoint=minio",
        "s3://[b/p",
        "s3://b/p?endpoint=http://[minio",
    ],
)
def test_a_url_that_names_no_place_is_an_error_that_says_what_would(url: str) -> None:
    with pytest.raises(ConfigError, match=r"s3://|endpoint|blobs\.url"):
        open_blobs(url)


@pytest.mark.parametrize(
    "url",
    [
        "minio://KEY:HUSH@host/bucket",
        "s3://KEY:HUSH@bucket/prefix",
        "s3://bucket/prefix?endpoint=https://KEY:HUSH@minio.example.com",
        "minio://bucket/prefix?key=KEY&secret=HUSH",
        "KEY:HUSH@bucket",
    ],
)
def test_keys_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        open_blobs(url)

    assert "hush" not in str(refused.value).lower()


def test_a_reference_cannot_lead_out_of_the_directory(tmp_path: Path) -> None:
    blobs = open_blobs(f"file://{tmp_path}/blobs")
    (tmp_path / "secret").write_bytes(b"secret")

    for name in ("../secret", "/etc/passwd", "a/../../secret"):
        with pytest.raises(BlobError, match="no name of a blob"):
            blobs.get(name, 100)


def test_a_folder_is_on_the_disk_before_a_payload_in_it_is_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    sync = os.fsync

    def note(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(tmp_path))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    blobs, other = open_blobs(f"file://{tmp_path}/new/blobs"), open_blobs(f"file://{tmp_path}/new/blobs")

    blobs.begin("one")
    begun, synced = synced, []
    blobs.put("one/ab/x.args", b"x")
    first, synced = synced, []
    blobs.put("one/ab/y.args", b"y")
    second, synced = synced, []
    other.put("one/ab/z.args", b"z")

    assert {Path(), Path("new"), Path("new/blobs")} <= set(begun)
    assert set(first) == {Path("new/blobs/one"), Path("new/blobs/one/ab")}
    assert set(second) == {Path("new/blobs/one/ab")}
    assert set(synced) == set(first), "whoever made the folder may not have synced it yet"


def test_a_listing_that_cannot_be_made_is_an_error_of_the_place(tmp_path: Path) -> None:
    blobs = open_blobs(f"file://{tmp_path}/blobs")
    blobs.begin("one")
    (tmp_path / "blobs/one/ab").write_bytes(b"a file where a folder should be")

    assert list(blobs.list("one/cd")) == []
    with pytest.raises(BlobError, match="cannot be listed"):
        list(blobs.list("one/ab"))


@pytest.fixture
def _keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")


def _each_verb(blobs: Blobs) -> list[Callable[[], object]]:
    return [
        lambda: blobs.begin("one"),
        lambda: blobs.put("one/ab/x", b""),
        lambda: blobs.get("one/ab/x", 1),
        lambda: blobs.delete(["one/ab/x"]),
        lambda: list(blobs.list("one")),
    ]


@pytest.mark.usefixtures("_keys")
def test_each_verb_names_the_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("boto3", "botocore", "botocore.config", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, module, None)

    for verb in _each_verb(open_blobs("s3://ferry/cargo?endpoint=http://127.0.0.1:9")):
        with pytest.raises(MissingExtra, match=r"ferryman\[s3\]"):
            verb()


@pytest.mark.usefixtures("_keys")
@pytest.mark.parametrize("cause", ["an endpoint that is none", "a profile that nobody knows"])
def test_whatever_keeps_a_client_from_being_made_is_an_error_of_the_place(
    monkeypatch: pytest.MonkeyPatch, cause: str
) -> None:
    endpoint = "minio:9000" if cause == "an endpoint that is none" else "http://127.0.0.1:9"
    if cause == "a profile that nobody knows":
        monkeypatch.setenv("AWS_PROFILE", "nobody")

    for verb in _each_verb(S3Blobs("ferry", "cargo", endpoint, "us-east-1")):
        with pytest.raises(BlobError, match="s3://ferry/cargo"):
            verb()


def test_a_service_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    blobs = open_blobs("s3://ferry/cargo?endpoint=http://127.0.0.1:9&region=us-east-1")

    with pytest.raises(BlobError, match="s3://ferry/cargo"):
        blobs.put("a", b"b")


_DENIED = b"""<?xml version="1.0" encoding="UTF-8"?>
<DeleteResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">
<Error><Key>cargo/one/ab/x</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>
</DeleteResult>"""


class _Denies(http.server.BaseHTTPRequestHandler):
    """Answers each deletion as the API reference of Amazon S3 has it for keys that may not be deleted."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(_DENIED)))
        self.end_headers()
        self.wfile.write(_DENIED)

    def log_message(self, *_: object) -> None: ...


@pytest.mark.usefixtures("_keys")
def test_a_deletion_that_is_denied_is_no_success() -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Denies) as server:
        threading.Thread(target=server.serve_forever).start()
        blobs = open_blobs(
            f"s3://ferry/cargo?endpoint=http://127.0.0.1:{server.server_port}&region=us-east-1"
        )
        try:
            with pytest.raises(BlobError, match="Access Denied"):
                blobs.delete(["one/ab/x"])
        finally:
            server.shutdown()
