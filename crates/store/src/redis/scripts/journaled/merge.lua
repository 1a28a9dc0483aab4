    -- Merges `row` into what is `there` under the key `record`; fences up to `before` (8 bytes) are of earlier views: the larger fence counts, of one fence the larger rank, of
    -- one rank the later step (A4), of one step the later end. Rows say of claims that they were sent, and so does then a claim that says no more (A5).
    -- A row that has ended is of use against what says less. What is open there and of an earlier view, above the row or another
    -- claim of its fence, was never used, or the journal would have it: it gives way (A13).
    -- What cannot be read is left to those who ask for it.
    local raised, changed = false, false
    local ehi, elo = unpack('>I4I4', row, 45)
    local is_over = (ehi > 0 or elo > 0) and (ehi < nhi or (ehi == nhi and elo <= nlo))
    local is_other = there and (#there < 60 or sub(there, 1, 2) ~= 'J\1' or sub(there, 9, 11) ~= 'OW\1')
    if not (is_over and not there) and not is_other and (there or call('EXISTS', record) == 0) then
      local fhi, flo, vhi, vlo = unpack('>I4I4I4I4', row, 21)
      local order, ohi, olo = -1, 0, 0
      if there then
        local hhi, hlo
        hhi, hlo, ohi, olo = unpack('>I4I4I4I4', there, 21)
        if hhi ~= fhi then
          order = hhi - fhi
        elseif hlo ~= flo then
          order = hlo - flo
        end
        if hhi == fhi and hlo == flo then
          local hrank, rank = byte(there, 3), byte(row, 3)
          -- Completed and failed are one rank.
          if hrank > 3 then hrank = hrank - 1 end
          if rank > 3 then rank = rank - 1 end
          order = hrank - rank
          if order == 0 then order = (unpack('>I4', there, 5)) - (unpack('>I4', row, 5)) end
          if order == 0 then
            local khi, klo = unpack('>I4I4', there, 45)
            order = khi - ehi
            if order == 0 then order = klo - elo end
          end
        end
        local is_behind = fhi < hhi or (fhi == hhi and flo < hlo) or
          (fhi == hhi and flo == hlo and sub(there, 65, 80) ~= sub(row, 65, 80))
        if is_behind and byte(there, 3) <= 2 then
          local bhi, blo = unpack('>I4I4', before)
          if hhi < bhi or (hhi == bhi and hlo <= blo) then order = -1 end
        end
      end
      olo = olo + 1
      if olo >= 4294967296 then ohi, olo = ohi + 1, olo - 4294967296 end
      if order < 0 then
        if vhi > ohi or (vhi == ohi and vlo > olo) then ohi, olo = vhi, vlo end
        there, changed = sub(row, 1, 28) .. pack('>I4I4', ohi, olo) .. sub(row, 37), true
        -- What the journal has needs to be here no longer than it counts, unless something of it is dirty.
        if byte(row, 3) > 1 and (ehi > 0 or elo > 0) and call('SISMEMBER', KEYS[3], sub(record, 17, 59)) == 0 then
          -- By the server's own clock, as in `clean.lua`.
          local left = ((ehi - whi) * 4294967296 + elo - wlo) / 1000
          if left < 0 then left = 0 end
          left = left + 10000
          if left > 3162240000000 then left = 3162240000000 end
          call('SET', record, there, 'PX', string.format('%.0f', left))
        else
          call('SET', record, there)
        end
      elseif order == 0 and byte(there, 3) == 1 and byte(there, 4) % 2 == 0 and byte(there, 14) % 2 == 0 then
        there = sub(there, 1, 3) .. '\1' .. sub(there, 5, 28) .. pack('>I4I4', ohi, olo) .. sub(there, 37)
        changed = true
        call('SET', record, there)
      end
      if changed and (fhi > mhi or (fhi == mhi and flo > mlo)) then mhi, mlo, raised = fhi, flo, true end
    end
