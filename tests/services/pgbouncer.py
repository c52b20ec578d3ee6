"""PgBouncer before a PostgreSQL server, pooling by transactions unless it is told otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

from tests.services.postgres import USER
from tests.services.programs import PGBOUNCER
from tests.services.server import Server, answers, free_port, modest_user, new_folder

__all__ = ["pgbouncer"]

POOL = {"pool_mode": "transaction", "max_client_conn": "500", "default_pool_size": "4"}

# A client's wish for encryption, and the answer that there is none.
ASK_FOR_SSL = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"
NO_SSL = b"N"


@contextlib.contextmanager
def pgbouncer(port_of_server: int, **options: str) -> Iterator[Server]:
    """A pooler for the server on this port. Options are those of the section ``[pgbouncer]``."""
    program, port, user = PGBOUNCER.find(), free_port(), modest_user()
    folder = new_folder("pgbouncer", user)

    def command(options: Mapping[str, str]) -> list[str]:
        settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "any",
            **options,
        }
        lines = [
            "[databases]",
            f"* = host=127.0.0.1 port={port_of_server} user={USER}",
            "[pgbouncer]",
            *(f"{name} = {value}" for name, value in settings.items()),
        ]
        (folder / "pgbouncer.ini").write_text("\n".join(lines) + "\n")
        return [str(program), str(folder / "pgbouncer.ini")]

    server = Server(
        f"postgresql://{USER}@127.0.0.1:{port}/postgres",
        port,
        folder,
        command=command,
        ready=lambda _: answers(port, ASK_FOR_SSL, NO_SSL),
        options={**POOL, **options},
        user=user,
    )
    try:
        server.start()
        yield server
    finally:
        server.close()
