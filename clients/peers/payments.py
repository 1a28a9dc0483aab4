"""A payments API with asgi-idempotency-header before it, as its documentation has it.

`python payments.py` prints its address. A charge takes 20 ms, and takes effect at its end, whoever still listens.
"""

import asyncio
import socket
import sys

import uvicorn
from fastapi import FastAPI
from fastapi.responses import JSONResponse
from idempotency_header_middleware import IdempotencyHeaderMiddleware
from idempotency_header_middleware.backends import MemoryBackend
from pydantic import BaseModel

app = FastAPI()
app.add_middleware(IdempotencyHeaderMiddleware, backend=MemoryBackend())
charges = []


class Charge(BaseModel):
    amount: int
    currency: str


@app.get("/payments")
async def listed():
    return {"count": len(charges), "charges": charges}


@app.post("/payments")
async def charge(wanted: Charge):
    await asyncio.sleep(0.02)
    charges.append({"id": len(charges) + 1, "amount": wanted.amount})
    return JSONResponse(charges[-1], status_code=201)


if __name__ == "__main__":
    listener = socket.create_server(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 0))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}/payments", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])
