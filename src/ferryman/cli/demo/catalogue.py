"""The app of the demo: a job for each source file, and one that makes a report of them all."""

from __future__ import annotations

import ast
import hashlib
import io
import time
import tokenize
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path

import msgspec

from ferryman import Context, Ferryman, Retry, State

__all__ = ["QUEUE", "Catalogue", "FileFacts", "app", "catalogue_file", "report"]

QUEUE = "demo"

_LISTED = 5

app = Ferryman()


class FileFacts(msgspec.Struct, frozen=True):
    """What the catalogue says of one file."""

    path: str
    bytes: int
    lines: int
    tokens: int
    functions: int
    classes: int
    seconds: float
    """The processor's time that it took."""
    sha256: str


class Catalogue(msgspec.Struct, frozen=True, kw_only=True):
    """What all files come to."""

    paths: Sequence[str]
    """The files that were counted, one entry for each time."""
    bytes: int
    lines: int
    tokens: int
    functions: int
    classes: int
    seconds: float
    largest: Sequence[FileFacts]
    slowest: Sequence[FileFacts]


# A file that cannot be read as text may be in the middle of being written: it is worth a second look. One that is
# text, but not Python, will not be mended by reading it again.
@app.task(
    name="demo.catalogue_file",
    queue=QUEUE,
    retry=Retry(max_attempts=3, base=0.3, give_up_on=(SyntaxError, tokenize.TokenError)),
)
def catalogue_file(path: str) -> FileFacts:
    """Read, hash, parse and tokenise one file."""
    began = time.thread_time()
    data = Path(path).read_bytes()
    text = _decode(data)
    functions = classes = 0
    for node in ast.walk(ast.parse(text, Path(path).name)):
        functions += isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        classes += isinstance(node, ast.ClassDef)
    return FileFacts(
        path=path,
        bytes=len(data),
        lines=data.count(b"\n"),
        tokens=sum(1 for _ in tokenize.generate_tokens(io.StringIO(text).readline)),
        functions=functions,
        classes=classes,
        seconds=time.thread_time() - began,
        sha256=hashlib.sha256(data).hexdigest(),
    )


def _decode(data: bytes) -> str:
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    except SyntaxError as error:
        # Python calls it an error of syntax, but no syntax has been looked at yet.
        raise UnicodeError(str(error)) from error
    return data.decode(encoding)


@app.task(name="demo.report", queue=QUEUE, priority="high", on_parent_failure="continue")
def report(ctx: Context) -> Catalogue:
    """Add up what the jobs that this one waited for have found; those that failed are left out."""
    decode = app.codec.decoder(FileFacts)
    files = [
        decode(parent.result)
        for parent in ctx.parents()
        if parent.state is State.SUCCEEDED and parent.result is not None
    ]
    return Catalogue(
        paths=[each.path for each in files],
        bytes=sum(each.bytes for each in files),
        lines=sum(each.lines for each in files),
        tokens=sum(each.tokens for each in files),
        functions=sum(each.functions for each in files),
        classes=sum(each.classes for each in files),
        seconds=sum(each.seconds for each in files),
        largest=sorted(files, key=attrgetter("bytes"), reverse=True)[:_LISTED],
        slowest=sorted(files, key=attrgetter("seconds"), reverse=True)[:_LISTED],
    )
