"""An API that is slow, loses answers and refuses, on request, and writes down every effect it had.

Each path has a plan: what to do with the first request to it, the second, and so on; the last entry
goes on for ever. An entry is a function of the connection, the request and its number on that path.
"""

import gzip
import socket
import threading
from collections import defaultdict
from dataclasses import dataclass

HEAD_BYTES_MAX = 64 * 1024


@dataclass
class Request:
    method: str
    path: str
    headers: list
    body: bytes

    def header(self, name):
        """The one value of a header, or None."""
        values = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(values) <= 1, f"{name} came {len(values)} times"
        return values[0] if values else None

    @property
    def key(self):
        return self.header("Idempotency-Key")

    @property
    def attempt(self):
        return int(self.header("Idempotency-Attempt"))

    @property
    def fence(self):
        return int(self.header("Idempotency-Fence"))


class Upstream:
    """Listens on a free port of loopback until `stop`."""

    def __init__(self):
        self._plans = {}
        self._lock = threading.Lock()
        self._arrived = threading.Condition(self._lock)
        self.requests = defaultdict(list)
        self.effects = defaultdict(list)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._stopped = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self):
        self._stopped.set()
        # Closing alone does not wake a thread that accepts.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def plan(self, path, *behaviours):
        """What the requests to `path` meet, in order."""
        assert behaviours
        self._plans[path] = behaviours

    def wait_for(self, path, count=1, seconds=30):
        """Until `count` requests to `path` have come."""
        with self._arrived:
            came = self._arrived.wait_for(lambda: len(self.requests[path]) >= count, seconds)
        assert came, f"{path}: {len(self.requests[path])} requests came, {count} were waited for"

    def effect(self, request):
        """Writes down that the request took effect, and says how many have on its path."""
        with self._lock:
            self.effects[request.path].append(request)
            return len(self.effects[request.path])

    def _accept(self):
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as reader:
            try:
                while (request := read_request(reader)) is not None:
                    path = request.path.split("?")[0]
                    request.path = path
                    with self._arrived:
                        number = len(self.requests[path])
                        self.requests[path].append(request)
                        self._arrived.notify_all()
                    plan = self._plans.get(path, (charge,))
                    if plan[min(number, len(plan) - 1)](self, connection, request) is CLOSE:
                        return
            except OSError:
                return  # whoever called went away


def read_request(reader):
    line = reader.readline(HEAD_BYTES_MAX)
    if not line:
        return None
    method, path, _ = line.decode("latin-1").split(" ")
    headers = []
    while (line := reader.readline(HEAD_BYTES_MAX)) not in (b"\r\n", b""):
        name, value = line.decode("latin-1").split(":", 1)
        headers.append((name, value.strip()))
    request = Request(method, path, headers, b"")
    if (request.header("Transfer-Encoding") or "").lower() == "chunked":
        while size := int(reader.readline(HEAD_BYTES_MAX).split(b";")[0], 16):
            request.body += reader.read(size)
            reader.readline()
        while reader.readline(HEAD_BYTES_MAX) not in (b"\r\n", b""):
            pass
    else:
        request.body = reader.read(int(request.header("Content-Length") or 0))
    return request


# What a plan is made of.

CLOSE = object()


def answer(connection, status, headers, body=b""):
    head = f"HTTP/1.1 {status} Status\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
    connection.sendall(head.encode("latin-1") + b"\r\n" + body)


def charge(upstream, connection, request):
    """Takes effect and says so; each effect's answer differs from every other's."""
    number = upstream.effect(request)
    body = b'{"charge":"%s","number":%d}' % (request.path.encode(), number)
    answer(
        connection,
        201,
        [
            ("Content-Type", "application/json"),
            ("Location", f"{request.path}/{number}"),
            ("X-Effect", number),
            ("Content-Length", len(body)),
        ],
        body,
    )


def slow(seconds):
    """Takes effect, and answers so much later."""

    def behaviour(upstream, connection, request):
        threading.Event().wait(seconds)
        charge(upstream, connection, request)

    return behaviour


def held(gate):
    """Answers once the gate, an Event, is set; the effect comes then too."""

    def behaviour(upstream, connection, request):
        assert gate.wait(60), "the gate was never opened"
        charge(upstream, connection, request)

    return behaviour


def drop(upstream, connection, request):
    """Takes effect, and closes the connection without an answer."""
    upstream.effect(request)
    return CLOSE


def busy(upstream, connection, request):
    """Does nothing and says so: 503 with Retry-After."""
    answer(connection, 503, [("Retry-After", "1"), ("Content-Length", "4")], b"busy")


def raw(message, close=False):
    """Takes effect and answers these bytes."""

    def behaviour(upstream, connection, request):
        upstream.effect(request)
        connection.sendall(message)
        return CLOSE if close else None

    return behaviour


def gzipped(body):
    """A whole gzip answer, the same bytes each time."""
    packed = gzip.compress(body, mtime=0)
    return (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n"
        b"Vary: Accept-Encoding\r\nContent-Length: %d\r\n\r\n" % len(packed)
    ) + packed
