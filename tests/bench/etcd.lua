-- What put.lua and get.lua of tests/load do, in the words of etcd's JSON gateway.
--
--    OPERATION        PUT or GET
--    and the settings of put.lua

local common = dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "../load/common.lua")
local next_request

local ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

local function base64(text)
   local bits = text:gsub(".", function(letter)
      local byte, out = letter:byte(), {}
      for n = 7, 0, -1 do out[#out + 1] = math.floor(byte / 2 ^ n) % 2 end
      return table.concat(out)
   end)
   local padded = bits .. ("0"):rep(-#bits % 6)
   local encoded = padded:gsub("%d%d%d%d%d%d", function(six)
      local n = tonumber(six, 2) + 1
      return ALPHABET:sub(n, n)
   end)
   return encoded .. ("="):rep(-#encoded % 4)
end

function init(args)
   common.begin(args)
   local prefix = common.setting("KEY_PREFIX", "key-")
   local path, rest = "/v3/kv/range", "}"
   if common.setting("OPERATION") == "PUT" then
      path, rest = "/v3/kv/put", ',"value":"' .. base64(common.value()) .. '"}'
   end
   next_request = common.on_random_keys(function(key)
      return wrk.format("POST", path, nil, '{"key":"' .. base64(prefix .. key) .. '"' .. rest)
   end)
end

function request() return next_request() end
