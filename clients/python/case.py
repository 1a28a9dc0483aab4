"""What every test here stands on: an upstream, a proxy in front of it, and keys that are new."""

import itertools
import json
import shutil
import tempfile
import unittest
import uuid

from proxy import Proxy
from upstream import Upstream


class Case(unittest.TestCase):
    """A class of tests has one upstream and one proxy, which end with it also where a test fails."""

    config = ""

    @classmethod
    def setUpClass(cls):
        cls.upstream = Upstream()
        cls.addClassCleanup(cls.upstream.stop)
        cls.folder = tempfile.mkdtemp(prefix="onceward-clients-")
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.proxy = Proxy(cls.folder, cls.upstream, cls.config)
        cls.addClassCleanup(cls.proxy.stop)
        cls._numbers = itertools.count()

    def setUp(self):
        number = next(self._numbers)
        self.path = f"/v1/charges-{number}"
        self.key = str(uuid.uuid4())

    def url(self):
        return self.proxy.url + self.path

    def effects(self):
        return len(self.upstream.effects[self.path])

    def calls(self):
        return self.upstream.requests[self.path]

    def assert_problem(self, answer, status, slug):
        """The answer is this problem; returns it."""
        self.assertEqual(answer.status, status, answer)
        self.assertEqual(answer.header("content-type"), "application/problem+json", answer)
        problem = json.loads(answer.body)
        self.assertEqual(problem["type"], f"urn:onceward:problem:{slug}", problem)
        return problem

    def assert_replay_of(self, first, again):
        """The same answer, marked."""
        self.assertEqual(again.comparable(), first.comparable())
        self.assertTrue(again.replayed, again)

    def resolve(self, *arguments):
        """Settles this test's key."""
        return self.proxy.keys("resolve", "--key", self.key, "--route", f"default POST {self.path}", *arguments)
