-- Now: microseconds of the server's clock, and never before what the process was told.
-- Numbers of 64 bits are pairs (hi, lo), since Lua's are doubles. Bytes are compared for equality only.
local time = call('TIME')
local wlo = time[1] * 1000000 + time[2]
local whi = (wlo - wlo % 4294967296) / 4294967296
wlo = wlo % 4294967296
--CLOCK
local nhi, nlo = whi, wlo
local ahi, alo = unpack('>I4I4', said, 33)
if nhi < ahi or (nhi == ahi and nlo < alo) then nhi, nlo = ahi, alo end
local now = pack('>I4I4', nhi, nlo)
