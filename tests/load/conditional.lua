-- Writes to random keys, each on a condition. All write the same value, so its tag is a condition that always holds.
--
--    KEYS=1000        how many keys there are: KEY_PREFIX followed by 1 … KEYS; write them first, with fill.lua
--    KEY_PREFIX=key-
--    VALUE_BYTES=100  size of a value
--    ETAG=*           what If-Match says: the tag of that value, in its quotes
--    SEED             of the random numbers; the time, when it is not given
--    JSON=1           print the result as one line of JSON, last

local common = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "common.lua")
local next_request

function init(args)
   common.begin(args)
   local value, condition = common.value(), {["If-Match"] = common.setting("ETAG", "*")}
   next_request = common.on_random_keys(function(key)
      return wrk.format("PUT", common.path(key), condition, value)
   end)
end

function request() return next_request() end
