-- POSTs of 523 bytes of JSON. Arguments: `fresh PREFIX` a new key each time, `same KEY` one key,
-- `none` no key; then `look` to count the replays among the answers. Closes on one line: requests,
-- microseconds, errors, p50 and p99 in microseconds, replays.
local body = '{"amount":1200,"currency":"EUR","description":""}'
body = body:sub(1, -3) .. string.rep("x", 523 - #body) .. '"}'
local kind, word, head, same
local number = 0

local threads = {}
marked = 0

function setup(thread) threads[#threads + 1] = thread end

function init(arguments)
   kind, word = arguments[1], arguments[2]
   head = "POST /v1/payments HTTP/1.1\r\nHost: " .. wrk.host .. "\r\nContent-Type: application/json\r\nContent-Length: "
      .. #body .. "\r\n"
   same = head .. (kind == "same" and "Idempotency-Key: " .. word .. "\r\n" or "") .. "\r\n" .. body
   -- Looking at answers costs wrk time, so only where it was asked to.
   if arguments[3] == "look" then
      response = function(_, headers)
         if headers["idempotent-replayed"] then marked = marked + 1 end
      end
   end
end

function request()
   if kind ~= "fresh" then return same end
   number = number + 1
   return head .. "Idempotency-Key: " .. word .. string.format("%016d", number) .. "\r\n\r\n" .. body
end

function done(summary, latency)
   local e = summary.errors
   local replayed = 0
   for _, thread in ipairs(threads) do replayed = replayed + thread:get("marked") end
   print(string.format("bench %d %d %d %d %d %d", summary.requests, summary.duration,
      e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99), replayed))
end
