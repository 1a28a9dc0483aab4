"""Clients as their users use them: each posts, and tries again by its own means.

A caller's `post` returns what its user sees at the end, or raises what its user would get.
"""

import base64
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from wire import Answer

AGAIN = [409, 502, 503, 504]
HERE = Path(__file__).parent


class Curl:
    """curl in a loop that tries again what failed."""

    def post(self, url, key, body=b'{"amount":1}', timeout=10, tries=8, headers=None):
        for left in reversed(range(tries)):
            code, answer = self.once(url, key, body, timeout, headers or {})
            if code == 0 and answer.status not in AGAIN or left == 0:
                break
            time.sleep(0.1)
        assert code == 0, f"curl ended with {code}"
        return answer

    def once(self, url, key, body, timeout, headers, retry=()):
        with tempfile.TemporaryDirectory() as folder:
            head, content = Path(folder, "head"), Path(folder, "body")
            command = ["curl", "--silent", "--noproxy", "*", "--max-time", str(timeout), *retry]
            command += ["--dump-header", head, "--output", content, "--data-binary", "@-"]
            given = {"Content-Type": "application/json", "Idempotency-Key": key, **headers}
            for name, value in given.items():
                command += ["--header", f"{name}: {value}"]
            code = subprocess.run([*command, url], input=body, timeout=120).returncode
            if code != 0:
                return code, None
            # One head an attempt; the last counts.
            last = head.read_bytes().decode("latin-1").strip().split("\r\n\r\n")[-1].split("\r\n")
            fields = [line.split(":", 1) for line in last[1:]]
            body = content.read_bytes() if content.exists() else b""
            return 0, Answer(int(last[0].split()[1]), [(k.lower(), v.strip()) for k, v in fields], body)


class CurlRetry(Curl):
    """curl that tries again by itself."""

    def post(self, url, key, body=b'{"amount":1}', timeout=10, tries=8, headers=None):
        retry = ("--retry", str(tries - 1), "--retry-all-errors")
        code, answer = self.once(url, key, body, timeout, headers or {}, retry)
        assert code == 0, f"curl ended with {code}"
        return answer


class Requests:
    """requests over urllib3's Retry."""

    def post(self, url, key, body=b'{"amount":1}', timeout=10, tries=8, headers=None):
        retry = Retry(
            total=tries - 1, allowed_methods=None, status_forcelist=AGAIN, backoff_factor=0.1, raise_on_status=False
        )
        with requests.Session() as session:
            session.trust_env = False
            session.mount("http://", HTTPAdapter(max_retries=retry))
            given = {"Content-Type": "application/json", "Idempotency-Key": key, **(headers or {})}
            got = session.post(url, data=body, headers=given, timeout=timeout)
            fields = [(name.lower(), value) for name, value in got.headers.items()]
            return Answer(got.status_code, fields, got.content)


class Httpx:
    """httpx in the loop that people write around it."""

    def post(self, url, key, body=b'{"amount":1}', timeout=10, tries=8, headers=None):
        given = {"Content-Type": "application/json", "Idempotency-Key": key, **(headers or {})}
        with httpx.Client(timeout=timeout, trust_env=False) as client:
            for left in reversed(range(tries)):
                try:
                    got = client.post(url, content=body, headers=given)
                except httpx.TransportError:
                    if left == 0:
                        raise
                    continue
                if got.status_code not in AGAIN or left == 0:
                    break
                time.sleep(float(got.headers.get("Retry-After", "0.1")))
        fields = [(name.lower(), value) for name, value in got.headers.multi_items()]
        return Answer(got.status_code, fields, got.content)


class Axios:
    """axios with axios-retry."""

    def post(self, url, key, body=b'{"amount":1}', timeout=10, tries=8, headers=None):
        wish = {"url": url, "key": key, "body": body.decode(), "timeout_ms": int(timeout * 1000)}
        wish |= {"tries": tries, "headers": headers or {}}
        script = HERE.parent / "node" / "post.cjs"
        done = subprocess.run(
            ["node", script, json.dumps(wish)], capture_output=True, text=True, timeout=120, env=os.environ
        )
        assert done.returncode == 0, done.stderr
        got = json.loads(done.stdout)
        fields = []
        for name, value in got["headers"].items():
            fields += [(name.lower(), one) for one in (value if isinstance(value, list) else [value])]
        return Answer(got["status"], fields, base64.b64decode(got["body"]))


ALL = [Curl(), CurlRetry(), Requests(), Httpx(), Axios()]
