-- Prune: finished jobs whose time is over or that are too many, and the small things that age.

local RUNNING = book.RUNNING

local LOOKS = 1000      -- finished jobs that one call looks at
local STEP = 100        -- jobs that are read at once
local SMALL = 1000      -- small things of each kind that one call forgets
local REST = 60000      -- ms before jobs that had to stay are looked at again, if they are many

-- -- small things ------------------------------------------------------------------------------------
-- Each of these answers how many it has forgotten; as many as SMALL, and there may be more.

local function forget_faded()
    local faded = book.range('ZRANGEBYSCORE', book.key('fading'), '-inf', book.text(book.now), 'LIMIT', 0, SMALL)
    for _, member in ipairs(faded) do
        local hash, field = string.match(member, '^(%S+) (.*)$')
        book.hdel(hash, field)
        book.zrem('fading', member)
    end
    return #faded
end

local function forget_results()
    local line, ids = book.key('result_until'), {}
    for index, spot in ipairs(book.range('ZRANGEBYSCORE', line, '-inf', book.text(book.now), 'LIMIT', 0, SMALL)) do
        ids[index] = book.id_of(spot)
    end
    for _, card in ipairs(book.cards(ids)) do
        book.touch(card)
        card.result = nil
    end
    return #ids
end

local function forget_minutes(age)
    local before = '(' .. book.text(book.now - age)
    local minutes = book.range('ZRANGEBYSCORE', book.key('minutes'), '-inf', before, 'LIMIT', 0, SMALL)
    for _, minute in ipairs(minutes) do
        book.drop('stat:' .. minute)
        book.zrem('minutes', minute)
    end
    return #minutes
end

local function forget_workers(age)
    -- However many of those that are alive came before them.
    local gone, count = call('ZDIFF', 2, book.key('workers'), book.key('alive')), 0
    for index = 1, math.min(#gone, SMALL) do
        local worker = gone[index]
        if tonumber(book.hget('worker:' .. worker, 'seen_at')) < book.now - age then
            book.drop('worker:' .. worker)
            book.zrem('workers', worker)
            count = count + 1
        end
    end
    return count
end

local function forget_small_things(retention)
    return math.max(forget_faded(), forget_results(), forget_minutes(retention.stats),
        forget_workers(retention.workers))
end

-- -- finished jobs -----------------------------------------------------------------------------------

local function count(lines)
    local total = 0
    for _, line in ipairs(lines) do
        for _, number in ipairs(book.range('HVALS', book.key('count:' .. line.state))) do
            total = total + number
        end
    end
    return total
end

-- Whether an unfinished child waits for it, or will want its result. Such a child is rather among the last ones.
local function is_wanted(card, walk)
    if not card.has_children then
        return false
    end
    local line, at = book.full('children:' .. card.id), 0
    while true do
        local spots, ids = book.range('ZREVRANGE', line, at, at + STEP - 1), {}
        for index, spot in ipairs(spots) do
            ids[index] = book.id_of(spot)
        end
        walk.looks = walk.looks - #ids
        for _, child in ipairs(book.cards(ids)) do
            if child and child.state <= RUNNING then
                return true
            end
        end
        if #spots < STEP then
            return false
        end
        at = at + STEP
    end
end

local bare  -- jobs to be deleted that have nothing but a record and a life, by their states

book.at_start(function()
    bare = {}
end)

-- Whether nothing but its line, its lane's counts and `all` know of a finished job.
local function is_bare(card)
    return card.kind == 0 and card.deadline == 0 and card.result_until == 0
        and not (card.has_children or card.has_attempts or card.has_notes)
end

local function erase_bare(state, cards)
    local ids, spots, ranks, arrivals, records, lives = {}, {}, {}, {}, {}, {}
    for index = 1, #cards do
        local card, at = cards[index], 2 * index
        ids[index], spots[index] = card.id, card.spot
        ranks[at - 1], ranks[at] = book.text(card.finished_at), card.spot
        arrivals[at - 1], arrivals[at] = '0', card.spot
        records[at - 1], records[at] = card.id, card.record
        lives[at - 1], lives[at] = card.id, card.life
        book.count_jobs(card.lane, state, -1)
    end
    local work, lines = book.new_work(), {all = arrivals, [book.STATES[state]] = ranks}
    if book.ARRIVED[state] then
        lines[book.ARRIVED[state]] = arrivals
    end
    for name, before in pairs(lines) do
        work.remove[book.key(name)], work.restore[book.key(name)] = spots, before
    end
    for name, before in pairs({job = records, life = lives}) do
        work.forget[book.key(name)], work.reset[book.key(name)] = ids, before
    end
    book.carry_out(work)
end

-- Before any page of a line is read, and at the end.
local function erase_all_bare()
    for state, cards in pairs(bare) do
        bare[state] = nil
        erase_bare(state, cards)
    end
end

local function erase(card)
    if is_bare(card) then
        bare[card.state] = bare[card.state] or {}
        table.insert(bare[card.state], card)
        book.strike_out(card)
    else
        finish.erase(card)
    end
end

-- The next card of a line, in the order in which they finished, nil at its end. `line.passed` are those that stay, the
-- last of them `line.last`.
local function head_of(line)
    if not line.page or (not line.page[line.at] and #line.page == STEP) then
        erase_all_bare()
        local ids = {}
        for index, spot in ipairs(book.range('ZRANGE', line.key, line.passed, line.passed + STEP - 1)) do
            ids[index] = book.id_of(spot)
        end
        line.page, line.at = book.cards(ids), 1
    end
    return line.page[line.at]
end

-- The line whose next card finished first.
local function first_of(lines)
    local first
    for _, line in ipairs(lines) do
        local card, best = head_of(line), first and head_of(first)
        if card and (not best or card.finished_at < best.finished_at
            or (card.finished_at == best.finished_at and card.spot < best.spot)) then
            first = line
        end
    end
    return first
end

-- Delete the oldest finished jobs of some lines: those finished before a moment, and so many more as are too many.
local function prune_lines(lines, before, excess, walk)
    while walk.looks > 0 and walk.deleted < walk.limit do
        local line = first_of(lines)
        local card = line and head_of(line)
        if not card or (card.finished_at >= before and excess <= 0) then
            return
        end
        walk.looks = walk.looks - 1
        line.at = line.at + 1
        if (card.result_until > book.now and excess <= 0) or is_wanted(card, walk) then
            line.passed, line.last = line.passed + 1, card
        else
            erase(card)
            walk.deleted, excess = walk.deleted + 1, excess - 1
        end
    end
end

-- -- jobs that had to stay ----------------------------------------------------------------------------
-- They are the first of their line, and there may be a million of them. So a call that meets many leaves marks where the
-- next one goes on; and when one has come to the end, none begins anew for a while.

-- How many jobs of a line come before its mark, or with it.
local function count_passed(key, mark)
    local finished_at, spot = string.match(mark, '^(%d+) (.*)$')
    if tonumber(call('ZSCORE', key, spot) or -1) == tonumber(finished_at) then
        return call('ZRANK', key, spot) + 1
    end
    -- It is gone, or has run again. Others of the same moment may have been beyond it: their turn comes with the next walk.
    return call('ZCOUNT', key, '-inf', finished_at)
end

local function open_lines()
    local ends = tonumber(book.hget('passed', 'until'))
    if ends and ends <= book.now then
        book.drop('passed')
    end
    local lines = {}
    for index, state in ipairs({'succeeded', 'dead', 'cancelled', 'expired'}) do
        local key, mark = book.key(state), book.hget('passed', state)
        lines[index] = {state = state, key = key, passed = mark and count_passed(key, mark) or 0}
    end
    return lines
end

local function leave_marks(lines, walk)
    local has_met_many = walk.looks <= 0
    if not has_met_many and call('EXISTS', book.key('passed')) == 0 then
        return
    end
    for _, line in ipairs(lines) do
        if line.last then
            book.hset('passed', line.state, book.text(line.last.finished_at) .. ' ' .. line.last.spot)
        end
    end
    if not has_met_many and walk.deleted < walk.limit and not book.hget('passed', 'until') then
        book.hset('passed', 'until', book.text(book.later(REST)))
    end
end

-- ARGV: MessagePack of the Retention; limit. Answers an array: how many jobs were deleted, and 1 if there may be more to
-- forget, else 0.
book.verb('prune', function(args)
    local retention, walk = cmsgpack.unpack(args[1]), {limit = tonumber(args[2]), deleted = 0, looks = LOOKS}
    local most, lines = forget_small_things(retention), open_lines()
    local groups = {{'succeeded', lines[1]}, {'dead', lines[2]}, {'other', lines[3], lines[4]}}
    -- ferryman.store.records.ARRIVING.
    for _, group in ipairs(coordinate.lasting('kv', 'ferryman.arriving') and {} or groups) do
        local kind = table.remove(group, 1)
        local excess = count(group) - retention[kind .. '_count']
        prune_lines(group, book.now - retention[kind], excess, walk)
    end
    erase_all_bare()
    leave_marks(lines, walk)
    local more = walk.looks <= 0 or walk.deleted >= walk.limit or most == SMALL
    return {walk.deleted, more and 1 or 0}
end, {drains = true})
