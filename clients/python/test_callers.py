"""Each client, unmodified, with its own way of trying again: one effect a key, all answers equal."""

import os
import unittest

import upstream
from callers import ALL, Curl
from case import Case


class EachClient(Case):
    """Run once for each client, below."""

    def test_an_answer_that_came_too_late_is_given_again(self):
        self.upstream.plan(self.path, upstream.slow(1.5))
        first = self.caller.post(self.url(), self.key, timeout=1)
        self.assertEqual(first.status, 201)
        self.assert_replay_of(first, self.caller.post(self.url(), self.key))
        self.assertEqual((len(self.calls()), self.effects()), (1, 1))

    def test_a_refusal_runs_again_until_there_is_an_effect(self):
        self.upstream.plan(self.path, upstream.busy, upstream.busy, upstream.charge)
        first = self.caller.post(self.url(), self.key)
        self.assertEqual(first.status, 201)
        self.assert_replay_of(first, self.caller.post(self.url(), self.key))
        self.assertEqual((len(self.calls()), self.effects()), (3, 1))

    def test_a_dropped_answer_is_an_unknown_outcome_until_it_is_settled(self):
        self.upstream.plan(self.path, upstream.drop)
        self.assert_problem(self.caller.post(self.url(), self.key, tries=3), 409, "outcome-unknown")
        self.assertEqual((len(self.calls()), self.effects()), (1, 1))
        answer = os.path.join(self.folder, "answer")
        with open(answer, "w") as file:
            file.write('{"found":"in the ledger"}')
        self.resolve("--as", "executed", "--status", "201", "--body", f"@{answer}")
        settled = self.caller.post(self.url(), self.key)
        self.assertEqual((settled.status, settled.body), (201, b'{"found":"in the ledger"}'))
        self.assertTrue(settled.replayed)
        self.assertEqual((len(self.calls()), self.effects()), (1, 1))

    def test_the_key_with_another_body_is_refused(self):
        self.caller.post(self.url(), self.key, body=b'{"amount":1}')
        problem = self.assert_problem(self.caller.post(self.url(), self.key, body=b'{"amount":2}'), 422, "key-reused")
        self.assertIn("/amount", str(problem))
        self.assertEqual(self.effects(), 1)


def load_tests(loader, _, __):
    suite = unittest.TestSuite()
    for caller in ALL:
        each = type(type(caller).__name__, (EachClient,), {"caller": caller})
        suite.addTests(loader.loadTestsFromTestCase(each))
    return suite
