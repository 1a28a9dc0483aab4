"""`onceward prove` against other middlewares, as docs/prove.md shows it: what it finds there, and that it tells them apart."""

import json
import subprocess
import sys
import threading
import unittest
from pathlib import Path

from proxy import BINARY, READY_SECONDS

PEERS = Path(__file__).parent.parent / "peers"
BODY = '{"amount": 5, "currency": "EUR"}'


class Peers(unittest.TestCase):
    def serve(self, *command):
        """Starts a peer's server: its URL."""
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        watchdog = threading.Timer(READY_SECONDS, process.kill)
        watchdog.start()
        url = process.stdout.readline().strip()
        watchdog.cancel()
        self.assertTrue(url.startswith("http://"), f"{command} did not start")
        return url

    def verdicts(self, url):
        command = [BINARY, "prove", url, "--body", BODY, "--effects-url", url, "--effects-pointer", "/count"]
        done = subprocess.run(
            [*command, "--rounds", "1", "--timeout", "20s", "--json"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240,
        )
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        rows = json.loads(done.stdout)["attacks"]
        return {row["attack"]: row["verdict"] for row in rows if row["verdict"] != "ok"}

    def test_express_idempotency(self):
        url = self.serve("node", str(PEERS / "payments.cjs"))
        self.assertEqual(self.verdicts(url), {"key-quotes": "double", "key-twice": "double", "empty-key": "double"})

    def test_asgi_idempotency_header(self):
        url = self.serve(sys.executable, str(PEERS / "payments.py"))
        found = {"cut-request": "refused", "key-quotes": "double", "empty-key": "double"}
        self.assertEqual(self.verdicts(url), found)
