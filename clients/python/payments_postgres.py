"""A payments API whose payments are committed together with their claims and answers: psycopg and plain SQL.

    uvicorn payments_postgres:app      (with DATABASE_URL, and once: onceward migrate)
"""

import hashlib
import os
import time

import psycopg
from fastapi import FastAPI, Request, Response

app = FastAPI()

CLAIM = """
    select i.id, c.outcome, c.fence, c.status, c.body
    from onceward.record_id('default', 'default', 'anonymous', 'create-payment', %s) i(id),
         lateral onceward.claim(i.id, %s, route => 'create-payment') c
"""
ATTEMPTS_MAX = 8


def pay(url, key, amount):
    """Status, body, whether it is a replay. The answer is only returned once it is committed."""
    for attempt in range(ATTEMPTS_MAX):
        try:
            # Commits at its end, and rolls back where an error leaves it.
            with psycopg.connect(url) as connection:
                fingerprint = hashlib.sha256(amount).digest()
                record, outcome, fence, status, body = connection.execute(CLAIM, (key, fingerprint)).fetchone()
                if outcome == "replay":
                    return status, body, True
                if outcome != "granted":
                    return 409, outcome.encode(), False
                insert = "insert into payment (idem_id, amount) values (%s, %s) returning id"
                (number,) = connection.execute(insert, (record, int(amount))).fetchone()
                body = f"payment {number}".encode()
                connection.execute("select onceward.complete(%s, %s, 201, body => %s)", (record, fence, body))
            return 201, body, False
        except psycopg.Error as error:
            if error.sqlstate == "ID002":
                return 422, b"the key was used for another request", False
            if error.sqlstate == "ID004":
                return 410, b"the key was erased", False
            if error.sqlstate == "55P03":
                return 409, b"in_flight", False
            # A conflict, or a lost connection, also at COMMIT: claiming again finds out what became of it.
            is_lost = error.sqlstate is None or error.sqlstate[:2] == "08" or error.sqlstate[:3] == "57P"
            if not is_lost and error.sqlstate not in ("40001", "40P01"):
                raise
            time.sleep(min(0.02 * 2**attempt, 1))
    return 503, b"try again", False


@app.post("/v1/payments")
async def create(request: Request):
    from starlette.concurrency import run_in_threadpool

    key = request.headers.get("idempotency-key")
    amount = await request.body()
    if not key or not amount.isdigit():
        return Response("it needs an Idempotency-Key and an amount", status_code=400)
    status, body, replayed = await run_in_threadpool(pay, os.environ["DATABASE_URL"], key, amount)
    return Response(body, status_code=status, headers={"idempotent-replayed": str(replayed).lower()})
