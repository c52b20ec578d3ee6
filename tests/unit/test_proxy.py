"""The proxy that tests of lost answers and partitions rely on."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

from tests.services.proxy import Proxy, proxy


class Echo:
    """A server that answers each chunk with itself and remembers all it was sent."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._heard = b""
        self._news = threading.Condition()
        self._threads = [threading.Thread(target=self._listen)]
        self._threads[0].start()

    def heard(self, expected: bytes) -> bool:
        """Whether it has been sent this and no more, before long."""
        with self._news:
            return self._news.wait_for(lambda: self._heard == expected, 10)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for thread in self._threads[1:]:
            thread.join()
        for end in [self._listener, *self._connections]:
            end.close()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            thread = threading.Thread(target=self._echo, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _echo(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(1 << 16):
                with self._news:
                    self._heard += data
                    self._news.notify_all()
                connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def line(echo: Echo) -> Iterator[Proxy]:
    with proxy(echo.port) as between:
        yield between


@pytest.fixture
def client(line: Proxy) -> Iterator[socket.socket]:
    with call(line) as end:
        yield end


def call(line: Proxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", line.port), timeout=10)


def ask(end: socket.socket, question: bytes) -> bytes:
    end.sendall(question)
    return receive(end, len(question))


def receive(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := end.recv(count - len(data))):
        data += more
    return data


def is_silent(end: socket.socket) -> bool:
    """Whether nothing comes, for a moment."""
    end.settimeout(0.1)
    try:
        return not end.recv(1)
    except TimeoutError:
        return True
    finally:
        end.settimeout(10)


def is_reset(end: socket.socket) -> bool:
    try:
        return not end.recv(1)
    except ConnectionResetError:
        return True


def test_bytes_pass_both_ways_in_full(client: socket.socket) -> None:
    question = bytes(range(256)) * 4_000
    answers: list[bytes] = []
    listening = threading.Thread(target=lambda: answers.append(receive(client, len(question))))
    listening.start()

    client.sendall(question)
    listening.join()

    assert answers == [question]


def test_a_url_leads_through_the_proxy_and_keeps_all_else(line: Proxy) -> None:
    url = line.url("postgresql://ann:secret@10.0.0.1:5432/jobs?schema=a")

    assert url == f"postgresql://ann:secret@127.0.0.1:{line.port}/jobs?schema=a"


def test_a_stall_holds_back_and_loses_nothing(echo: Echo, line: Proxy, client: socket.socket) -> None:
    assert ask(client, b"before") == b"before"

    line.stall()
    client.sendall(b"during")
    silent = is_silent(client)
    unheard = echo.heard(b"before")
    line.go_on()

    assert (silent, unheard) == (True, True)
    assert receive(client, 6) == b"during"


def test_a_stall_to_the_client_lets_the_server_hear(echo: Echo, line: Proxy, client: socket.socket) -> None:
    line.stall("to_client")

    client.sendall(b"request")

    assert echo.heard(b"request")
    assert is_silent(client)
    line.go_on()
    assert receive(client, 7) == b"request"


def test_new_connections_are_made_in_a_stall_and_served_after_it(line: Proxy) -> None:
    line.stall()

    with call(line) as late:
        late.sendall(b"late")
        silent = is_silent(late)
        line.go_on()

        assert silent
        assert receive(late, 4) == b"late"


def test_connections_that_are_dropped_are_reset_and_new_ones_work(line: Proxy, client: socket.socket) -> None:
    assert ask(client, b"one") == b"one"

    dropped = line.drop()

    assert dropped == 1
    assert is_reset(client)
    with call(line) as again:
        assert ask(again, b"two") == b"two"


def test_a_drop_in_a_stall_ends_the_connection_at_once(line: Proxy, client: socket.socket) -> None:
    assert ask(client, b"one") == b"one"
    line.stall()
    client.sendall(b"two")

    line.drop()

    assert is_reset(client)
    line.go_on()


def test_who_refuses_lets_nobody_in_until_he_accepts(line: Proxy, client: socket.socket) -> None:
    assert ask(client, b"one") == b"one"

    line.refuse()

    assert is_reset(client)
    with pytest.raises(ConnectionRefusedError):
        call(line)
    line.accept()
    with call(line) as again:
        assert ask(again, b"two") == b"two"


def test_a_drop_after_some_bytes_cuts_a_request_in_two(
    echo: Echo, line: Proxy, client: socket.socket
) -> None:
    line.drop_after(4, "to_server")

    client.sendall(b"half a request")

    assert echo.heard(b"half")
    assert is_reset(client)
    with call(line) as again:
        assert ask(again, b"whole") == b"whole"


def test_a_drop_after_some_bytes_cuts_an_answer_in_two(line: Proxy, client: socket.socket) -> None:
    line.drop_after(3, "to_client")

    client.sendall(b"answer")

    assert receive(client, 3) == b"ans"
    assert is_reset(client)


def test_a_lost_answer_is_of_a_request_that_the_server_got(
    echo: Echo, line: Proxy, client: socket.socket
) -> None:
    lost = line.lose_answer()

    client.sendall(b"write")

    assert lost.wait(10)
    assert echo.heard(b"write")
    assert is_reset(client)
    with call(line) as again:
        assert ask(again, b"again") == b"again"


def test_what_is_misheard_is_what_the_server_says(line: Proxy, client: socket.socket) -> None:
    line.mishear(b"green", b"amber")

    assert ask(client, b"green, red") == b"amber, red"


def test_only_the_answer_to_the_request_that_was_named_is_lost(line: Proxy, client: socket.socket) -> None:
    lost = line.lose_answer(to=b"write")

    first = ask(client, b"read")
    client.sendall(b"a write")

    assert first == b"read"
    assert lost.wait(10)
    assert is_reset(client)


def test_who_calls_while_the_server_is_gone_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]

    with proxy(port) as line_to_nowhere:
        try:
            client = call(line_to_nowhere)
        except ConnectionResetError:
            return  # So soon that he did not see it accepted.
        with client:
            assert is_reset(client)


def test_who_hangs_up_hears_the_last_answer(line: Proxy) -> None:
    with call(line) as client:
        client.sendall(b"bye")
        client.shutdown(socket.SHUT_WR)

        answer, end = receive(client, 3), client.recv(1)

    assert (answer, end) == (b"bye", b"")
