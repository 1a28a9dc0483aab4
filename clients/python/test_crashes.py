"""Who dies in the middle: the proxy, the client."""

import os
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor

import upstream
import wire
from case import Case


class Crash(Case):
    """A held request and a `kill -9`."""

    def killed_in_a_slow_request(self):
        """Afterwards the proxy runs again, and nobody knows whether the effect was."""
        gate = threading.Event()
        self.addCleanup(gate.set)
        self.upstream.plan(self.path, upstream.held(gate), upstream.charge)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(wire.post, self.proxy.port(), self.path, self.key)
            self.upstream.wait_for(self.path)
            self.proxy.kill()
            self.assertIsNotNone(asked.exception(30))
        self.proxy.start()

    def post(self):
        return wire.post(self.proxy.port(), self.path, self.key)


class KilledProxy(Crash):
    def test_a_killed_proxy_leaves_an_unknown_outcome_that_can_be_settled_as_executed(self):
        self.killed_in_a_slow_request()
        problem = self.assert_problem(self.post(), 409, "outcome-unknown")
        self.assertIs(problem["retryable"], False)
        listed = self.proxy.records("--state", "unknown")
        self.assertIn("unknown", [record["state"] for record in listed], listed)
        answer = os.path.join(self.folder, "answer")
        with open(answer, "w") as file:
            file.write("charged")
        self.resolve("--as", "executed", "--status", "201", "--body", f"@{answer}")
        first = self.post()
        self.assertEqual((first.status, first.body, first.replayed), (201, b"charged", True))
        self.assert_replay_of(first, self.post())
        self.assertEqual(len(self.calls()), 1)

    def test_a_killed_proxy_s_outcome_settled_as_not_executed_runs_again_under_a_larger_fence(self):
        self.killed_in_a_slow_request()
        self.assert_problem(self.post(), 409, "outcome-unknown")
        self.resolve("--as", "not-executed")
        self.assertEqual(self.post().status, 201)
        before, after = self.calls()
        self.assertGreater(after.fence, before.fence)

    def test_completed_answers_outlive_a_kill(self):
        first = self.post()
        self.assertEqual(first.status, 201)
        self.proxy.kill()
        self.proxy.start()
        self.assert_replay_of(first, self.post())
        self.assertEqual(self.effects(), 1)


class KilledProxyThatRetries(Crash):
    config = '[defaults]\non_unknown = ["retry"]\n'

    def test_with_retry_an_unknown_outcome_runs_as_the_second_attempt_under_a_larger_fence(self):
        self.killed_in_a_slow_request()
        first = self.post()
        self.assertEqual(first.status, 201)
        before, after = self.calls()
        self.assertEqual((before.attempt, after.attempt), (1, 2))
        self.assertGreater(after.fence, before.fence)
        self.assertEqual(before.key, after.key)
        self.assert_replay_of(first, self.post())


class KilledClient(Case):
    def test_a_client_that_is_killed_gets_the_first_one_s_answer_when_it_comes_again(self):
        gate = threading.Event()
        self.addCleanup(gate.set)
        self.upstream.plan(self.path, upstream.held(gate))
        command = ["curl", "--silent", "--noproxy", "*", "--data-binary", '{"amount":1}']
        command += ["--header", "Content-Type: application/json", "--header", f"Idempotency-Key: {self.key}", self.url()]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as client:
            self.upstream.wait_for(self.path)
            client.kill()
        with ThreadPoolExecutor(1) as pool:
            again = pool.submit(wire.post, self.proxy.port(), self.path, self.key)
            gate.set()
            first = again.result(30)
        self.assertEqual(first.status, 201)
        self.assert_replay_of(first, wire.post(self.proxy.port(), self.path, self.key))
        self.assertEqual((len(self.calls()), self.effects()), (1, 1))
