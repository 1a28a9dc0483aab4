"""Answers of every shape: replayed byte for byte, or refused, and never run again."""

import gzip
import unittest

import upstream
import wire
from case import Case

LARGE = bytes(range(256)) * (3_000_000 // 256)


def sized(status, body, *lines):
    head = "".join(f"{line}\r\n" for line in [*lines, f"Content-Length: {len(body)}"])
    return f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode() + body


def chunked(*chunks, lines=(), trailers=()):
    head = "".join(f"{line}\r\n" for line in [*lines, "Transfer-Encoding: chunked"])
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    end = "0\r\n" + "".join(f"{line}\r\n" for line in trailers) + "\r\n"
    return f"HTTP/1.1 200 OK\r\n{head}\r\n".encode() + body + end.encode()


class Answers(Case):
    config = """
[[route]]
name = "large"
match = { methods = ["POST"], path = "/large" }
limits = { recorded_body = "3MiB" }
"""

    def post(self, *headers):
        return wire.post(self.proxy.port(), self.path, self.key, headers=headers)

    def replayed(self, message, *headers, close=False):
        """The answer to this message of the upstream, after it was seen to be replayed."""
        self.upstream.plan(self.path, upstream.raw(message, close))
        first = self.post(*headers)
        self.assertTrue(first.whole)
        self.assertFalse(first.replayed)
        for _ in range(2):
            self.assert_replay_of(first, self.post(*headers))
        self.assertEqual((len(self.calls()), self.effects()), (1, 1))
        return first

    def test_binary(self):
        body = bytes(range(256))
        first = self.replayed(sized(200, body, "Content-Type: application/octet-stream"))
        self.assertEqual(first.body, body)

    def test_empty(self):
        self.assertEqual(self.replayed(sized(201, b"", "Location: /v1/x")).header("location"), "/v1/x")

    def test_no_content(self):
        first = self.replayed(b"HTTP/1.1 204 No Content\r\nX-Effect: 1\r\n\r\n")
        self.assertEqual((first.status, first.body), (204, b""))

    def test_not_modified(self):
        first = self.replayed(b'HTTP/1.1 304 Not Modified\r\nETag: "a"\r\n\r\n')
        self.assertEqual((first.status, first.header("etag")), (304, '"a"'))

    def test_an_error_of_the_upstream(self):
        self.assertEqual(self.replayed(sized(500, b"broken")).status, 500)

    def test_gzip_is_replayed_as_it_was(self):
        first = self.replayed(upstream.gzipped(b"text " * 100), ("Accept-Encoding", "gzip"))
        self.assertEqual(gzip.decompress(first.body), b"text " * 100)

    # Of the contract, and not built yet: the recorded coding is replayed to everybody.
    def test_gzip_is_decoded_for_who_does_not_take_it(self):
        self.replayed(upstream.gzipped(b"text " * 100), ("Accept-Encoding", "gzip"))
        plain = self.post(("Accept-Encoding", "identity"))
        self.assertEqual((plain.status, plain.body, plain.replayed), (200, b"text " * 100, True))
        self.assertIsNone(plain.header("content-encoding"))

    def test_chunks(self):
        first = self.replayed(chunked(b"one ", b"two ", b"three"))
        self.assertEqual(first.body, b"one two three")

    def test_until_the_connection_ends(self):
        first = self.replayed(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\nto the end", close=True)
        self.assertEqual(first.body, b"to the end")

    def test_trailers(self):
        message = chunked(b"summed", lines=["Trailer: X-Sum"], trailers=["X-Sum: 6"])
        first = self.replayed(message, ("TE", "trailers"))
        self.assertEqual((first.body, first.trailers), (b"summed", [("x-sum", "6")]))

    def test_repeated_headers_stay_repeated_and_in_order(self):
        lines = ["Link: </a>; rel=a", "X-Between: 1", "Link: </b>; rel=b", "Link: </c>; rel=c"]
        first = self.replayed(sized(200, b"x", *lines))
        self.assertEqual(first.header("link"), ["</a>; rel=a", "</b>; rel=b", "</c>; rel=c"])

    def test_cookies_are_set_once(self):
        self.upstream.plan(self.path, upstream.raw(sized(200, b"x", "Set-Cookie: session=1")))
        self.assertEqual(self.post().header("set-cookie"), "session=1")
        again = self.post()
        self.assertEqual((again.status, again.header("set-cookie"), again.replayed), (200, None, True))

    def test_three_megabytes_are_replayed_where_the_route_keeps_so_much(self):
        self.path = "/large"
        self.assertEqual(self.replayed(sized(200, LARGE)).body, LARGE)

    def test_three_megabytes_are_refused_where_the_route_keeps_less_and_never_run_again(self):
        self.assert_not_kept(sized(200, LARGE), LARGE)

    def test_three_megabytes_in_chunks_are_refused_likewise(self):
        self.assert_not_kept(chunked(*[LARGE[at : at + 65536] for at in range(0, len(LARGE), 65536)]), LARGE)

    def test_an_event_stream_is_passed_on_and_its_repetition_refused(self):
        events = [b"data: %d\n\n" % number for number in range(3)]
        self.assert_not_kept(chunked(*events, lines=["Content-Type: text/event-stream"]), b"".join(events))

    def assert_not_kept(self, message, body):
        self.upstream.plan(self.path, upstream.raw(message))
        first = self.post()
        self.assertEqual((first.status, first.whole, len(first.body)), (200, True, len(body)))
        self.assertEqual(first.body, body)
        for _ in range(2):
            problem = self.assert_problem(self.post(), 409, "response-not-kept")
            self.assertIn("200", str(problem))
        self.assertEqual((len(self.calls()), self.effects()), (1, 1))
