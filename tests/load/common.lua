-- What the load scripts of wrk share: settings, keys, requests that are built ahead, and the result as JSON.
--
-- Knows wrk and nothing of the server but its paths. The scripts that use it are put.lua, get.lua, mixed.lua and
-- unique.lua, each with its settings at its head; a setting is an environment variable, or NAME=VALUE after `--`.
--
-- A request has to cost the load generator little, or it is what gets measured. So requests are built once, before
-- anything is sent, where they fit into memory; else a request is one concatenation of a part before the key, a number,
-- and a part after it, and nothing is encoded.

local common = {}

local PREBUILT_MAX = 100000
local PREBUILT_BYTES_MAX = 128 * 1024 * 1024

local arguments = {}

-- The text of a setting; nil when it is not given and there is no default.
function common.setting(name, default)
   return arguments[name] or os.getenv(name) or default
end

function common.number(name, default)
   local text = common.setting(name, default)
   return tonumber(text) or error(name .. " is not a number: " .. text)
end

-- To be called first in `init`. Each thread of wrk has a Lua state of its own, so each has a seed of its own.
function common.begin(args)
   for _, argument in ipairs(args) do
      local name, value = argument:match("^([%w_]+)=(.*)$")
      if not name then error(argument .. " is not NAME=VALUE") end
      arguments[name] = value
   end
   math.randomseed(common.number("SEED", os.time()) * 1000 + wrk_thread)
   for _ = 1, 10 do math.random() end -- seeds that are close give first numbers that are close
end

function common.value()
   return string.rep("v", common.number("VALUE_BYTES", 100))
end

function common.path(key)
   return "/kv/" .. common.setting("KEY_PREFIX", "key-") .. key
end

-- A function that returns a request for a random key. `build(key)` makes one; it is given a number as text.
function common.on_random_keys(build)
   local random, keys = math.random, common.number("KEYS", 1000)
   if keys > PREBUILT_MAX or keys * #build("0") > PREBUILT_BYTES_MAX then
      local before, after = common.around_key(build)
      return function() return before .. random(keys) .. after end
   end
   local requests = {}
   for key = 1, keys do requests[key] = build(tostring(key)) end
   return function() return requests[random(keys)] end
end

-- The parts of a request before and after its key.
function common.around_key(build)
   local mark = "@KEY@"
   local request = build(mark)
   local first, last = request:find(mark, 1, true)
   return request:sub(1, first - 1), request:sub(last + 1)
end

-- The following two are called by wrk, in a state that belongs to no thread.

local threads = 0

function setup(thread)
   thread:set("wrk_thread", threads)
   threads = threads + 1
end

local RESULT = '{"requests":%d,"duration_us":%d,"bytes":%d,'
   .. '"latency_us":{"p50":%d,"p90":%d,"p99":%d,"max":%d},'
   .. '"errors":{"connect":%d,"read":%d,"write":%d,"timeout":%d,"status":%d}}'

function done(summary, latency)
   if os.getenv("JSON") ~= "1" then return end
   local errors = summary.errors
   print(RESULT:format(
      summary.requests, summary.duration, summary.bytes,
      latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max,
      errors.connect, errors.read, errors.write, errors.timeout, errors.status
   ))
end

return common
