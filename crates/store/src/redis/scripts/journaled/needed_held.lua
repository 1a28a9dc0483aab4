    -- Only whoever was granted in this view may write without: what was seen is void with the view that it was seen in.
    if sub(said, 97, 97) ~= 'h' then return '4' end
    ahi, alo = unpack('>I4I4', said, 98)
    local bhi, blo = unpack('>I4I4', view, 33)
    if ahi < bhi or (ahi == bhi and alo <= blo) then return '4' end
