-- Asks the requests of a file in turn, and tells what came of it as one line of JSON.
--
--     wrk … --script wrk.lua URL -- REQUESTS
--
-- REQUESTS are whole requests, each after its length (32 bits, little-endian), made beforehand: while the load runs, a
-- request costs one step through a table.

local requests, at = {}, 0

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local text = file:read("*a")
  file:close()
  local place = 1
  while place < #text do
    local a, b, c, d = text:byte(place, place + 3)
    local length = a + 256 * (b + 256 * (c + 256 * d))
    requests[#requests + 1] = text:sub(place + 4, place + 3 + length)
    place = place + 4 + length
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"requests": %d, "duration_us": %d, "bytes": %d, "errors": %d}\n',
    summary.requests, summary.duration, summary.bytes,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
