    -- What is settled is true in every view.
    if not readable or ended or byte(there, 3) <= 2 then return '4' end
