-- Writes, each to a key that was never used before: the server's memory grows with each.
--
--    KEY_PREFIX=key-
--    VALUE_BYTES=100  size of a value
--    RUN              what tells the keys of this run from those of others; the time, when it is not given
--    JSON=1           print the result as one line of JSON, last

local common = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "common.lua")
local before, after
local number = 0

function init(args)
   common.begin(args)
   local value = common.value()
   local run = common.setting("RUN", tostring(os.time()))
   before, after = common.around_key(function(key)
      return wrk.format("PUT", common.path(run .. "-" .. wrk_thread .. "-" .. key), nil, value)
   end)
end

function request()
   number = number + 1
   return before .. number .. after
end
