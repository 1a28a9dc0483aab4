"""The claim in the application's own transaction, from Python: psycopg and plain SQL, no SDK."""

import hashlib
import os
import threading
import unittest
from concurrent.futures import ThreadPoolExecutor

import psycopg
from fastapi.testclient import TestClient

import payments_postgres
from postgres import Postgres


class TheClaimInYourOwnTransaction(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.postgres = Postgres()
        cls.addClassCleanup(cls.postgres.stop)
        os.environ["DATABASE_URL"] = cls.postgres.url
        cls.connection = psycopg.connect(cls.postgres.url, autocommit=True)
        cls.addClassCleanup(cls.connection.close)
        cls.connection.execute(
            "create table payment (id bigint generated always as identity, idem_id bytea not null unique, amount bigint not null)"
        )
        cls.connection.execute("select onceward.guard_table('payment', 'idem_id')")

    def payments(self, key):
        made = "select count(*) from payment where idem_id = onceward.record_id('default', 'default', 'anonymous', 'create-payment', %s)"
        return self.connection.execute(made, (key,)).fetchone()[0]

    def test_twenty_at_once_are_one_payment_and_equal_answers(self):
        with TestClient(payments_postgres.app) as client, ThreadPoolExecutor(20) as pool:
            post = lambda _: client.post("/v1/payments", content=b"1200", headers={"Idempotency-Key": "at-once"})
            answers = list(pool.map(post, range(20)))
        self.assertEqual({(answer.status_code, answer.content) for answer in answers}, {(201, answers[0].content)})
        self.assertEqual(sum(answer.headers["idempotent-replayed"] == "false" for answer in answers), 1)
        self.assertEqual(self.payments("at-once"), 1)

    def test_another_request_under_the_key_is_refused(self):
        self.assertEqual(payments_postgres.pay(self.postgres.url, "reused", b"1")[0], 201)
        self.assertEqual(payments_postgres.pay(self.postgres.url, "reused", b"2")[0], 422)
        self.assertEqual(self.payments("reused"), 1)

    def test_a_process_that_dies_before_commit_leaves_nothing_and_the_next_one_pays(self):
        with psycopg.connect(self.postgres.url) as dying:
            row = dying.execute(payments_postgres.CLAIM, ("dies", hashlib.sha256(b"5").digest())).fetchone()
            self.assertEqual(row[1], "granted")
            dying.execute("insert into payment (idem_id, amount) values (%s, 5)", (row[0],))
            waiting = ThreadPoolExecutor(1).submit(payments_postgres.pay, self.postgres.url, "dies", b"5")
            pid = dying.info.backend_pid
            blocked = "select count(*) from pg_stat_activity where %s = any(pg_blocking_pids(pid))"
            while self.connection.execute(blocked, (pid,)).fetchone()[0] == 0:
                threading.Event().wait(0.01)
            self.connection.execute("select pg_terminate_backend(%s)", (pid,))
            status, _, replayed = waiting.result(30)
            dying.close()
        self.assertEqual((status, replayed), (201, False))
        self.assertEqual(self.payments("dies"), 1)

    def test_a_payment_without_its_claim_cannot_be_committed(self):
        record = self.connection.execute("select onceward.record_id('default', 'default', 'anonymous', 'create-payment', 'none')").fetchone()[0]
        with self.assertRaises(psycopg.Error) as refused:
            self.connection.execute("insert into payment (idem_id, amount) values (%s, 1)", (record,))
        self.assertEqual(refused.exception.sqlstate, "ID003")
        self.assertEqual(self.payments("none"), 0)
