// One POST by axios with axios-retry, as their documentation has it; the answer as JSON on stdout.
const axios = require("axios").default;
const axiosRetry = require("axios-retry").default;

const { url, key, body, timeout_ms, tries, headers } = JSON.parse(process.argv[2]);
const again = [409, 502, 503, 504];

axiosRetry(axios, {
  retries: tries - 1,
  shouldResetTimeout: true,
  retryCondition: (error) =>
    axiosRetry.isNetworkError(error) || error.code === "ECONNABORTED" || again.includes(error.response?.status),
  retryDelay: axiosRetry.exponentialDelay,
});

axios
  .post(url, body, {
    timeout: timeout_ms,
    headers: { "Content-Type": "application/json", "Idempotency-Key": key, ...headers },
    responseType: "arraybuffer",
    proxy: false,
  })
  .catch((error) => {
    if (error.response) return error.response;
    throw error;
  })
  .then(({ status, headers, data }) => {
    console.log(JSON.stringify({ status, headers, body: Buffer.from(data).toString("base64") }));
  });
