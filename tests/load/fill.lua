-- Writes every key once, from the first to the last, and then again; for the scripts that read. Give wrk one thread
-- (-t1), or each thread writes them all, and enough time: it ends by the clock and not with the last key.
--
--    KEYS=1000        how many keys there are: KEY_PREFIX followed by 1 … KEYS
--    KEY_PREFIX=key-
--    VALUE_BYTES=100  size of a value
--    JSON=1           print the result as one line of JSON, last

local common = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "common.lua")
local before, after, keys, number

function init(args)
   common.begin(args)
   keys = common.number("KEYS", 1000)
   number = keys - 1 -- wrk asks once for a request that it does not send
   local value = common.value()
   before, after = common.around_key(function(key)
      return wrk.format("PUT", common.path(key), nil, value)
   end)
end

function request()
   number = number % keys + 1
   return before .. number .. after
end
