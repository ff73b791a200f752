-- Reads of random keys. A key that is not there is answered 404, which wrk counts as an error: write them first, with
-- fill.lua.
--
--    KEYS=1000        how many keys there are: KEY_PREFIX followed by 1 … KEYS
--    KEY_PREFIX=key-
--    SEED             of the random numbers; the time, when it is not given
--    JSON=1           print the result as one line of JSON, last

local common = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "common.lua")
local next_request

function init(args)
   common.begin(args)
   next_request = common.on_random_keys(function(key)
      return wrk.format("GET", common.path(key))
   end)
end

function request() return next_request() end
