-- Cargo: jobs packed for another store, jobs that another store has packed, and jobs that live elsewhere now.

local KIND = book.KIND
local WAITING, SCHEDULED, RUNNING, SUCCEEDED, CANCELLED =
    book.WAITING, book.SCHEDULED, book.RUNNING, book.SUCCEEDED, book.CANCELLED

local ENOUGH = 500      -- jobs in one answer of `pack`
local MOST_HISTORY = 1000

local function has(card, bit)
    return card.kind % (2 * bit) >= bit
end

local function if_any(number)
    return number > 0 and number or nil
end

-- -- packing -----------------------------------------------------------------------------------------

-- The parents, as named, and those that it has not been told of yet.
local function parents_of(card)
    if not has(card, KIND.AFTER) then
        return {}, {}
    end
    local parents, waits = book.range('LRANGE', book.full('parents:' .. card.id), 0, -1), {}
    if card.state ~= WAITING then
        return parents, waits
    end
    local scores, others = {}, card.missing
    for index, parent in ipairs(parents) do
        scores[index] = book.range('ZSCORE', book.full('children:' .. parent), card.spot)
        others = others - (scores[index] == '1' and 1 or 0)
    end
    -- Of parents that are gone, nothing but how many are still waited for is known.
    for index, parent in ipairs(parents) do
        if scores[index] == '1' or (not scores[index] and others > 0) then
            waits[#waits + 1] = parent
            others = others - (scores[index] and 0 or 1)
        end
    end
    return parents, waits
end

local function facts_of(card)
    local rest = book.rest(card)
    local holder, ends
    if rest.unique then
        holder, ends = finish.holder_of(rest.unique)
    end
    local held = holder == card.id
    return cmsgpack.pack({
        id = card.id, seq = card.seq, task = card.task, queue = card.queue, priority = card.priority, kind = card.kind,
        state = card.state, attempt = card.attempt, max_attempts = card.max_attempts, deaths = card.deaths,
        enqueued_at = card.enqueued_at, run_at = card.run_at, started_at = if_any(card.started_at),
        finished_at = if_any(card.finished_at), deadline = if_any(card.deadline), worker = card.worker,
        tenant = rest.tenant, tags = rest.tags, reason = card.reason, room = rest.room,
        progress = card.progress >= 0 and card.progress or nil, result_until = if_any(card.result_until),
        unique = rest.unique, period = rest.period, holds = card.holds, held = held, ends = held and if_any(ends) or nil,
    })
end

local function history(has_some, name)
    return has_some and book.range('LRANGE', book.full(name), 0, -1) or {}
end

local function bytes_of(texts)
    local bytes = 0
    for _, text in ipairs(texts) do
        bytes = bytes + #text
    end
    return bytes
end

-- The parcel, and about how many bytes it has.
local function packed(card)
    local parents, waits = parents_of(card)
    local is_over = card.result_until > 0 and card.result_until <= book.now
    local attempts = history(card.has_attempts, 'attempts:' .. card.id)
    local notes = history(card.has_notes, 'notes:' .. card.id)
    return {
        facts_of(card), book.body(card), not is_over and card.result or false, parents, waits, attempts, notes,
    }, #card.record + #(card.result or '') + bytes_of(attempts) + bytes_of(notes)
end

-- ARGV: MessagePack of a filter; limit; after which spot; how many bytes are enough. Answers where to go on with a further
-- call ('': there is nothing more), then for each job, the oldest first, an array: MessagePack of a map of what is known of
-- it; its body (see book.body); its result, or nothing; its parents; those it waits for; its attempts and its notes.
book.verb('pack', function(args)
    local limit, most = tonumber(args[2]), tonumber(args[4])
    local which, from = cmsgpack.unpack(args[1]), args[3]
    local found, on = filters.matching(which, filters.ALL, math.min(limit, ENOUGH), {from = from})
    local answer, size = {on or ''}, 0
    for index, card in ipairs(found) do
        local bytes
        answer[index + 1], bytes = packed(card)
        size = size + bytes
        if size >= most then
            answer[1] = card.spot
            break
        end
    end
    return answer
end, {reads = true})

-- -- unpacking ---------------------------------------------------------------------------------------

local function record_of(cargo, args)
    local form = {
        enqueued_at = cargo.enqueued_at, first_at = cargo.run_at, deadline = cargo.deadline or 0,
        max_attempts = cargo.max_attempts, kind = cargo.kind, priority = cargo.priority,
        key_size = cargo.key and #cargo.key or 0, names = cargo.names,
    }
    return book.record_of(book.number(), form, book.bin(args) .. cargo.tail) .. cargo.rest
end

-- A card in the state WAITING, with all that needs no other job.
local function bear(cargo, args, result)
    local card = book.bear(cargo.id, record_of(cargo, args))
    card.attempt, card.deaths, card.run_at = cargo.attempt, cargo.deaths, cargo.run_at
    card.started_at, card.finished_at = cargo.started_at or 0, cargo.finished_at or 0
    card.worker, card.reason, card.progress = cargo.worker, cargo.reason, cargo.progress or -1
    card.result, card.result_until = cargo.has_result and result or nil, cargo.result_until or 0
    card.has_attempts, card.has_notes = #cargo.attempts > 0, #cargo.notes > 0
    card.has_lived = true
    for _, attempt in ipairs(cargo.attempts) do
        book.push('attempts:' .. card.id, attempt, MOST_HISTORY)
    end
    for _, note in ipairs(cargo.notes) do
        book.push('notes:' .. card.id, note, MOST_HISTORY)
    end
    return card
end

-- Answers how many parents are still to finish, and one that failed and takes the job with it.
local function tie_to_parents(cargo, card)
    local missing, failed, waited_for, seen = 0, nil, {}, {}
    for _, id in ipairs(cargo.waits) do
        waited_for[id] = true
    end
    for _, id in ipairs(cargo.after or {}) do
        local parent = not seen[id] and book.card(id)
        local waits = waited_for[id] and not seen[id] and not (parent and parent.state == SUCCEEDED)
        if waits and not (parent and parent.state <= RUNNING) then
            if has(card, KIND.CONTINUE) then
                waits = false
            elseif not has(card, KIND.HOLD) then
                failed = failed or id
            end
        end
        missing = missing + (waits and 1 or 0)
        if parent then
            book.touch(parent)
            parent.has_children = true
            book.zadd('children:' .. id, waits and 1 or 0, card.spot)
        end
        if not seen[id] then
            book.push('parents:' .. card.id, id)
            seen[id] = true
        end
    end
    return missing, failed
end

-- One that another job has here stays with it.
local function take_unique(cargo)
    if cargo.held and not finish.holder_of(cargo.unique) then
        finish.take_unique(cargo.unique, cargo.id, cargo.ends or 0)
    end
end

local function unpack_one(cargo, args, result)
    local card = bear(cargo, args, result)
    local missing, failed = tie_to_parents(cargo, card)
    take_unique(cargo)
    book.touch(card)
    if cargo.state > RUNNING then
        card.state = cargo.state
        return
    end
    card.missing = missing
    if card.key then
        places.join_key(card.key, places.room_of(card))
    end
    if failed then
        finish.finish(card, CANCELLED, 'parent ' .. failed .. ' did not succeed')
    elseif missing > 0 then
        return
    elseif card.run_at <= book.now then
        places.enter(card, card.run_at)
    else
        places.schedule(card, card.run_at)
        if cargo.holds and has(card, KIND.ORDERED) then
            places.keep_place(card)
        end
    end
end

-- ARGV: for each job MessagePack of a map (see cargo.py), its arguments, and its result or ''. Answers for each 1 if it was
-- new, else 0.
book.verb('unpack', function(args)
    local answer = {}
    for index = 1, #args, 3 do
        local cargo = cmsgpack.unpack(args[index])
        if book.card(cargo.id) then
            answer[#answer + 1] = 0
        else
            unpack_one(cargo, args[index + 1], args[index + 2])
            answer[#answer + 1] = 1
        end
    end
    return answer
end)

-- -- forgetting --------------------------------------------------------------------------------------

-- ARGV: the states whose jobs are meant (an array in MessagePack; none: all), then ids, none twice. Answers how many are
-- forgotten now. Their children are not told.
book.verb('forget', function(args)
    local states, is_meant = cmsgpack.unpack(table.remove(args, 1)), {}
    for _, state in ipairs(states) do
        is_meant[state] = true
    end
    local gone = {}
    for _, card in ipairs(book.cards(args)) do
        if card and card.state ~= RUNNING and (#states == 0 or is_meant[card.state]) then
            gone[#gone + 1] = card
        end
    end
    for _, card in ipairs(gone) do
        if card.state < RUNNING then
            local has_children = card.has_children
            book.touch(card)
            card.has_children = false
            finish.finish(card, CANCELLED, nil)
            book.touch(card)
            card.has_children = has_children
        end
    end
    for _, card in ipairs(gone) do
        finish.forget_unique(card, true)
        finish.erase(card)
    end
    return #gone
end, {drains = true})
