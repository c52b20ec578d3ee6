-- What becomes of others when a job finishes: its key's next job, its unique key, its children.

local KIND = book.KIND
local WAITING, READY, SUCCEEDED, CANCELLED = book.WAITING, book.READY, book.SUCCEEDED, book.CANCELLED

local function has(card, bit)
    return card.kind % (2 * bit) >= bit
end

-- -- unique keys ------------------------------------------------------------------------------------

-- The job that holds a unique key, and until when (0: as long as it lasts); nil if it is free.
function finish.holder_of(unique)
    local entry = call('HGET', book.key('unique'), unique)
    if not entry then
        return nil
    end
    local id, ends = string.match(entry, '^(%S+) (%d+)$')
    ends = tonumber(ends)
    if ends > 0 and ends <= book.now then
        return nil
    end
    return id, ends
end

function finish.take_unique(unique, id, ends)
    book.hset('unique', unique, id .. ' ' .. book.text(ends))
    if ends > 0 then
        book.zadd('fading', book.text(ends), 'unique ' .. unique)
    else
        book.zrem('fading', 'unique ' .. unique)
    end
end

function finish.drop_unique(unique)
    book.hdel('unique', unique)
    book.zrem('fading', 'unique ' .. unique)
end

-- Free the unique key that a job has; one taken for a period only if told so.
function finish.forget_unique(card, with_period)
    if not (has(card, KIND.UNIQUE) or has(card, KIND.UNIQUE_START) or has(card, KIND.UNIQUE_PERIOD)) then
        return
    end
    local unique = book.rest(card).unique
    local entry = call('HGET', book.key('unique'), unique)
    local id, ends = string.match(entry or '', '^(%S+) (%d+)$')
    if id == card.id and (with_period or ends == '0') then
        finish.drop_unique(unique)
    end
end

-- A job that was claimed but never started has again what it gave back at the claim, unless another has it by now.
function finish.take_back_unique(card)
    if has(card, KIND.UNIQUE_START) and card.attempt == 0 then
        local unique = book.rest(card).unique
        if not finish.holder_of(unique) then
            finish.take_unique(unique, card.id, 0)
        end
    end
end

-- -- the end of a job -------------------------------------------------------------------------------

-- The reason of a child that goes down with its parent.
function finish.why_cancelled(parent)
    return 'parent ' .. parent.id .. ' did not succeed'
end

local function finish_one(card, state, reason)
    book.touch(card)
    card.finished_at, card.reason, card.state = book.now, reason, state
    if card.key then
        places.leave_key(card)
    end
    if card.kind >= KIND.UNIQUE then
        finish.forget_unique(card, false)
    end
end

-- -- children ---------------------------------------------------------------------------------------
-- A job may have a hundred thousand. They are told in pages; those of a page that concern nobody else are dealt with
-- together, by lists, without cards.

local PAGE = 250

-- What becomes of a child, if it can be told so: WAITING for others, READY, CANCELLED; nil if it takes a card.
local function simple_fate(parent, form, life)
    if parent.state == SUCCEEDED or has(form, KIND.CONTINUE) then
        if life.missing > 1 then
            return WAITING
        end
        local is_free = not has(form, KIND.KEYED) and life.run_at <= book.now
        return is_free and not book.settings(form.lane.queue).fair and READY or nil
    end
    local is_alone = form.is_simple and form.deadline == 0 and not life.has_children and not has(form, KIND.HOLD)
    return is_alone and CANCELLED or nil
end

-- A life after it. Of children that were enqueued together, all have the same.
local function life_after(parent, life, fate)
    life.after = life.after or {}
    if not life.after[fate] then
        local next_life = setmetatable({state = fate}, {__index = life})
        if fate == CANCELLED then
            next_life.finished_at, next_life.reason = book.now, finish.why_cancelled(parent)
        else
            next_life.missing = life.missing - 1
            next_life.run_at = fate == READY and book.now or life.run_at
        end
        life.after[fate] = book.pack_life(next_life)
    end
    return life.after[fate]
end

local function move_simply(work, lane, spot, fate)
    book.reindex(work, book.key('waiting'), spot, 0, nil)
    if fate == READY then
        book.reindex(work, lane.ready, spot, nil, 0)
        book.woke = true
    else
        book.reindex(work, book.key('cancelled'), spot, nil, book.now)
        book.reindex(work, book.key('arrived:cancelled'), spot, nil, 0)
        if book.is_arranged(lane.queue) then
            book.reindex(work, lane.arrivals, spot, 0, nil)
        end
        book.done = true
    end
    book.count_jobs(lane, WAITING, -1)
    book.count_jobs(lane, fate, 1)
end

-- Tell one that takes a card. It may join those that go down with their parent.
local function tell_card(parent, line, child, doomed)
    if parent.state == SUCCEEDED or has(child, KIND.CONTINUE) then
        book.zadd(line, 0, child.spot)
        book.touch(child)
        child.missing = child.missing - 1
        if child.missing == 0 then
            places.go_on(child)
        end
    elseif not has(child, KIND.HOLD) then
        doomed[#doomed + 1] = child
    end
end

local function tell_page(parent, line, spots, lives_seen, doomed)
    local ids, work, life_key = {}, book.new_work(), book.key('life')
    for index = 1, #spots do
        ids[index] = book.id_of(spots[index])
    end
    local records, lives = book.fields('job', ids), book.fields('life', ids)
    for index = 1, #ids do
        local id, spot, record, life = ids[index], spots[index], records[index], lives[index]
        -- One that waits has a life.
        local seen = record and life and (lives_seen[life] or book.fields_of(life))
        if seen and seen.state == WAITING then
            lives_seen[life] = seen
            local form = book.read_record(record)
            local fate = not book.has_in_hand(id) and simple_fate(parent, form, seen)
            if fate then
                book.change_blob(work, life_key, id, life, life_after(parent, seen, fate))
                if fate ~= CANCELLED then
                    book.reindex(work, book.full(line), spot, 1, 0)
                end
                if fate ~= WAITING then
                    move_simply(work, form.lane, spot, fate)
                end
            else
                tell_card(parent, line, book.adopt(id, record, life), doomed)
            end
        end
    end
    book.carry_out(work)
end

-- Answers the children that go down with their parent and have others that must learn of it.
local function tell_children(parent)
    local line, doomed, lives_seen = 'children:' .. parent.id, {}, {}
    -- Those that have been told come first, and those that are told now join them.
    local at = book.range('ZCOUNT', book.full(line), 0, 0)
    repeat
        local spots = book.range('ZRANGE', book.full(line), at, at + PAGE - 1)
        tell_page(parent, line, spots, lives_seen, doomed)
        at = at + #spots
    until #spots < PAGE
    return doomed
end

-- End an unfinished job, and let go what waits for its end, down through its children.
function finish.finish(card, state, reason)
    finish_one(card, state, reason)
    if not card.has_children then
        return
    end
    local ended, next_one = {card}, 1
    while ended[next_one] do
        local parent = ended[next_one]
        for _, child in ipairs(tell_children(parent)) do
            -- It may have been ended meanwhile, by another of its parents.
            if child.state == WAITING then
                finish_one(child, CANCELLED, finish.why_cancelled(parent))
                if child.has_children then
                    ended[#ended + 1] = child
                end
            end
        end
        next_one = next_one + 1
    end
end

-- Forget a finished job, and that its parents had it.
function finish.erase(card)
    if has(card, KIND.AFTER) then
        for _, parent in ipairs(call('LRANGE', book.full('parents:' .. card.id), 0, -1)) do
            book.zrem('children:' .. parent, card.spot)
        end
    end
    book.erase(card)
end
