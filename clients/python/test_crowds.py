"""Many repetitions of one key: one call to the upstream, and nothing that grows with them."""

import asyncio
import threading
import time

import upstream
import wire
from case import Case

ANSWERS_SECONDS_MAX = 120


class Crowd(Case):
    # So long that no wait ends while a slow machine is still opening connections.
    config = '[defaults]\nin_flight = { wait = "100s", waiters_per_key = 1024 }\ntimeout = "110s"\n'

    def setUp(self):
        super().setUp()
        self.gate = threading.Event()
        self.addCleanup(self.gate.set)
        self.upstream.plan(self.path, upstream.held(self.gate))

    async def open(self, count):
        """So many connections, each with the request on its way."""
        opened = []
        for _ in range(count):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port())
            writer.write(wire.message(self.path, self.key))
            opened.append((reader, writer))
        return opened

    async def waiting(self, count):
        """Until the proxy says that so many wait."""
        for _ in range(600):
            waiters = await asyncio.to_thread(self.proxy.metric, "onceward_waiters")
            if waiters >= count:
                return
            await asyncio.sleep(0.1)
        self.fail(f"{waiters} wait, not {count}")

    def assert_one_answer(self, answers):
        """All are the same, and all but the one that ran are marked."""
        self.assertEqual({str(answer.comparable()) for answer in answers}, {str(answers[0].comparable())})
        self.assertEqual(answers[0].status, 201)
        self.assertEqual(sum(answer.replayed for answer in answers), len(answers) - 1)
        self.assertEqual((len(self.calls()), self.effects()), (1, 1))

    def test_200_at_once_are_one_call_and_200_equal_answers(self):
        async def crowd():
            opened = await self.open(200)
            await self.waiting(199)
            self.gate.set()
            return await asyncio.gather(*(wire.read_answer(reader) for reader, _ in opened))

        self.assert_one_answer(asyncio.run(asyncio.wait_for(crowd(), ANSWERS_SECONDS_MAX)))

    def test_10_000_duplicates_are_one_call_and_memory_does_not_grow_with_them(self):
        connections, rounds = 200, 50

        async def caller(reader, writer):
            answers = [await wire.read_answer(reader)]
            for _ in range(rounds - 1):
                writer.write(wire.message(self.path, self.key))
                answers.append(await wire.read_answer(reader))
            writer.close()
            return answers

        async def crowd():
            opened = await self.open(connections)
            await self.waiting(connections - 1)
            before = self.proxy.resident_mib()
            self.gate.set()
            per_caller = await asyncio.gather(*(caller(*pair) for pair in opened))
            return before, [answer for answers in per_caller for answer in answers]

        start = self.proxy.resident_mib()
        before, answers = asyncio.run(asyncio.wait_for(crowd(), ANSWERS_SECONDS_MAX))
        after = self.proxy.resident_mib()
        print(f"\n10 000 duplicates: resident {start:.1f} MiB, {before:.1f} with 200 connections, {after:.1f} after")
        self.assertEqual(len(answers), connections * rounds)
        self.assert_one_answer(answers)
        # 10 000 answers of 300 bytes with their requests would be some 10 MiB if each left itself behind.
        self.assertLess(after - before, 8)

    def test_1_000_that_wait_cost_next_to_nothing(self):
        waiters, seconds = 1000, 10

        async def crowd():
            opened = await self.open(waiters + 1)
            await self.waiting(waiters)
            before, start = self.proxy.cpu_seconds(), time.monotonic()
            await asyncio.sleep(seconds)
            spent, took = self.proxy.cpu_seconds() - before, time.monotonic() - start
            self.gate.set()
            return spent, took, await asyncio.gather(*(wire.read_answer(reader) for reader, _ in opened))

        spent, took, answers = asyncio.run(asyncio.wait_for(crowd(), ANSWERS_SECONDS_MAX))
        print(f"\n1 000 that wait: {spent:.2f} s of CPU in {took:.1f} s")
        self.assert_one_answer(answers)
        # A waiter that looked ten times a second would cost some seconds of it.
        self.assertLess(spent, 1.0)
