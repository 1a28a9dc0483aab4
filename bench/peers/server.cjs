// A payments API that keeps its own idempotency keys in Redis, by a library for Express: what P15 compares with.
// Arguments: `node-idempotency` or `express-idempotency`, and the address of Redis. Says where it answers.
const express = require("express");

const answer = { id: "ch_1", note: "x".repeat(300 - JSON.stringify({ id: "ch_1", note: "" }).length) };

async function nodeIdempotency(url) {
  const { Idempotency } = require("@node-idempotency/core");
  const { RedisStorageAdapter } = require("@node-idempotency/storage-adapter-redis");
  const storage = new RedisStorageAdapter({ url });
  await storage.connect();
  const library = new Idempotency(storage, { inProgressStrategy: { wait: true } });
  return async (request, response) => {
    const { headers, path, method, body } = request;
    const known = await library.onRequest({ headers, path, method, body });
    if (known) return response.status(known.additional.status).json(known.body);
    await library.onResponse({ headers, path, method, body }, { body: answer, additional: { status: 201 } });
    response.status(201).json(answer);
  };
}

async function expressIdempotency(url, app) {
  const library = require("express-idempotency");
  const RedisAdapter = require("express-idempotency-redis-adapter").default;
  const dataAdapter = new RedisAdapter({ connectionConfig: { url } });
  await dataAdapter.connect();
  app.use(library.idempotency({ dataAdapter }));
  return (request, response) => {
    // It has answered already.
    if (library.getSharedIdempotencyService().isHit(request)) return;
    response.status(201).json(answer);
  };
}

async function main([, , which, url]) {
  const app = express();
  app.use(express.json());
  const make = { "node-idempotency": nodeIdempotency, "express-idempotency": expressIdempotency }[which];
  app.post("/v1/payments", await make(url, app));
  const server = app.listen(0, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
}

main(process.argv);
