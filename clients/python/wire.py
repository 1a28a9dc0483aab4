"""HTTP/1.1 as bytes, for what a client library would hide: exact heads, chunks, trailers, ends."""

import asyncio
import socket
from dataclasses import dataclass, field

# What a replay leaves out or makes anew by the contract, and Onceward's own.
NOT_COMPARED = {
    "date", "server", "connection", "keep-alive", "transfer-encoding", "x-request-id", "content-length",
    "idempotent-replayed", "idempotency-expires", "idempotency-status",
}


@dataclass
class Answer:
    status: int
    headers: list
    body: bytes
    trailers: list = field(default_factory=list)
    whole: bool = True

    def header(self, name):
        values = [value for key, value in self.headers if key == name.lower()]
        return values[0] if len(values) == 1 else (values or None)

    @property
    def replayed(self):
        return self.header("idempotent-replayed") == "true"

    def same_as(self, other):
        """What must be equal between a first answer and its replay."""
        return self.comparable() == other.comparable()

    def comparable(self):
        headers = [(name, announced(value) if name == "trailer" else value) for name, value in self.headers]
        headers = [(name, value) for name, value in headers if name not in NOT_COMPARED and value]
        return self.status, headers, self.body, self.trailers


def announced(trailers):
    """The names in a Trailer header, without the one that Onceward may have to say something in."""
    names = [name.strip() for name in trailers.split(",")]
    return ", ".join(name for name in names if name.lower() != "idempotency-status")


def post(port, path, key, body=b'{"amount":1}', headers=(), timeout=60):
    """One request on a connection of its own."""
    return asyncio.run(_post(port, path, key, body, headers, timeout))


async def _post(port, path, key, body, headers, timeout):
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
    try:
        writer.write(message(path, key, body, headers))
        return await asyncio.wait_for(read_answer(reader), timeout)
    finally:
        writer.close()


def message(path, key, body=b'{"amount":1}', headers=()):
    """A whole POST."""
    lines = [f"POST {path} HTTP/1.1", "Host: api.test", f"Content-Length: {len(body)}"]
    if not any(name.lower() == "content-type" for name, _ in headers):
        lines.append("Content-Type: application/json")
    if key is not None:
        lines.append(f"Idempotency-Key: {key}")
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def read_head(reader):
    status = int((await reader.readline()).split(b" ")[1])
    return status, await read_fields(reader)


async def read_fields(reader):
    headers = []
    while (line := await reader.readline()) not in (b"\r\n", b""):
        name, value = line.decode("latin-1").split(":", 1)
        headers.append((name.lower(), value.strip()))
    return headers


async def read_answer(reader):
    status, headers = await read_head(reader)
    while 100 <= status < 200:
        status, headers = await read_head(reader)
    answer = Answer(status, headers, b"")
    length = answer.header("content-length")
    parts = []
    try:
        if status in (204, 304):
            pass
        elif (answer.header("transfer-encoding") or "").lower() == "chunked":
            while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
                parts.append(await reader.readexactly(size))
                await reader.readexactly(2)
            answer.trailers = await read_fields(reader)
        elif length is not None:
            parts.append(await reader.readexactly(int(length)))
        else:
            parts.append(await reader.read(-1))
    except (asyncio.IncompleteReadError, ConnectionError) as cut:
        parts.append(getattr(cut, "partial", b""))
        answer.whole = False
    answer.body = b"".join(parts)
    return answer


def open_request(port, path, key):
    """A request under way, whose answer nobody reads: a socket to be closed."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(message(path, key))
    return connection
