"""A database in memory with the store's contract (errors are StoreErrors, transactions are atomic), and HTTP receivers."""

import contextlib
import http.server
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence

import duckdb
import pytest

from weft.pipeline.errors import StoreError


class MemoryDatabase:
    """One DuckDB connection in memory."""

    def __init__(self) -> None:
        self.connection = duckdb.connect()

    def query(self, sql: str, params: Sequence[object] = ()) -> list[dict[str, object]]:
        try:
            cursor = self.connection.execute(sql, list(params))
        except duckdb.Error as error:
            raise StoreError(str(error), "correct it") from error
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def execute(self, sql: str, params: Sequence[object] = ()) -> None:
        self.query(sql, params)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        self.connection.execute("BEGIN")
        try:
            yield
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")


@pytest.fixture
def scratch() -> Iterator[Callable[[], MemoryDatabase]]:
    """Open empty databases in memory; they are closed after the test."""
    opened: list[MemoryDatabase] = []

    def open_one() -> MemoryDatabase:
        opened.append(MemoryDatabase())
        return opened[-1]

    yield open_one
    for database in opened:
        database.connection.close()


class Receiver:
    """A real HTTP server on loopback that gives the configured answers and records the requests.

    ``answers`` are used up in order, the last one for ever: a status, or (status, headers), or a callable that gets the
    request handler. ``base`` is its address.
    """

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.answers: list[object] = [200]
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}, body))
                answer = receiver.answers.pop(0) if len(receiver.answers) > 1 else receiver.answers[0]
                if callable(answer):
                    answer(self)
                    return
                status, headers = answer if isinstance(answer, tuple) else (answer, {})
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"do not show this body")

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            def handle_error(self, request: object, client_address: object) -> None:
                pass  # Some tests make the client close the connection early.

        self._server = Server(("127.0.0.1", 0), Handler)
        scheme = "http"
        if context is not None:
            scheme = "https"
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.base = f"{scheme}://localhost:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@pytest.fixture
def receivers() -> Iterator[Callable[..., Receiver]]:
    """Open HTTP receivers on loopback; they are closed after the test."""
    opened: list[Receiver] = []

    def open_one(context: ssl.SSLContext | None = None) -> Receiver:
        opened.append(Receiver(context))
        return opened[-1]

    yield open_one
    for receiver in opened:
        receiver.close()
