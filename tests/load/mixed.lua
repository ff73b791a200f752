-- Reads of, and writes to, random keys. A read of a key that is not there is answered 404, which wrk counts as an error:
-- write them first, with fill.lua.
--
--    READ_SHARE=0.9   how many of the requests are reads, from 0 to 1
--    KEYS=1000        how many keys there are: KEY_PREFIX followed by 1 … KEYS
--    KEY_PREFIX=key-
--    VALUE_BYTES=100  size of a value
--    SEED             of the random numbers; the time, when it is not given
--    JSON=1           print the result as one line of JSON, last

local common = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "common.lua")
local random = math.random
local next_read, next_write, read_share

function init(args)
   common.begin(args)
   read_share = common.number("READ_SHARE", 0.9)
   local value = common.value()
   next_read = common.on_random_keys(function(key)
      return wrk.format("GET", common.path(key))
   end)
   next_write = common.on_random_keys(function(key)
      return wrk.format("PUT", common.path(key), nil, value)
   end)
end

function request()
   if random() < read_share then return next_read() end
   return next_write()
end
