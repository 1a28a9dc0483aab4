// A payments API with express-idempotency before it, as its documentation has it: `node payments.cjs` prints its address.
// A charge takes 20 ms, and takes effect at its end, whoever still listens.
const express = require("express");
const { idempotency, getSharedIdempotencyService } = require("express-idempotency");

const charges = [];
const app = express();
app.use(express.json());
app.get("/payments", (_request, response) => response.json({ count: charges.length, charges }));
app.post("/payments", idempotency(), async (request, response) => {
  // The middleware has answered, and leaves it to the handler to do nothing.
  if (getSharedIdempotencyService().isHit(request)) return;
  await new Promise((charged) => setTimeout(charged, 20));
  charges.push({ id: charges.length + 1, key: request.get("Idempotency-Key"), amount: request.body.amount });
  response.status(201).json(charges.at(-1));
});
const server = app.listen(Number(process.argv[2] ?? 0), "127.0.0.1", () => {
  console.log(`http://127.0.0.1:${server.address().port}/payments`);
});
