-- Batches of puts, each to some keys that follow one another.
--
--    BATCH_KEYS=100   how many puts a batch has
--    KEYS=1000        how many keys there are: KEY_PREFIX followed by 1 … KEYS
--    KEY_PREFIX=key-
--    VALUE_BYTES=100  size of a value
--    SEED             of the random numbers; the time, when it is not given
--    JSON=1           print the result as one line of JSON, last

local common = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "common.lua")
local requests = {}

function init(args)
   common.begin(args)
   local prefix, value = common.setting("KEY_PREFIX", "key-"), common.value()
   local keys, size = common.number("KEYS", 1000), common.number("BATCH_KEYS", 100)
   for first = 1, math.max(1, keys - size + 1), size do
      local lines = {}
      for key = first, first + size - 1 do
         lines[#lines + 1] = ('{"op":"put","key":"%s%d","value":"%s"}'):format(prefix, key, value)
      end
      requests[#requests + 1] = wrk.format("POST", "/batch", nil, table.concat(lines, "\n"))
   end
end

function request() return requests[math.random(#requests)] end
