-- What people do to jobs and queues.
--
-- Verbs that take a filter answer an array: how many jobs they changed, and where the walk ended ('': there are no
-- more). One that changed none and has not come to the end is to be called again from there.

local KIND = book.KIND
local READY, RUNNING, PARKED, CANCELLED = book.READY, book.RUNNING, book.PARKED, book.CANCELLED

local AT_ONCE = 1000    -- jobs that one call changes

local function has(card, bit)
    return card.kind % (2 * bit) >= bit
end

-- The cards that match, oldest first, and where the walk ended. ARGV begin with MessagePack of the filter; limit;
-- where to go on, '' to begin.
local function chosen_by(args, among, test)
    local limit = math.min(tonumber(args[2]), AT_ONCE)
    local chosen, on = filters.matching(cmsgpack.unpack(args[1]), among, limit, {from = args[3], test = test})
    return chosen, on or ''
end

-- -- queues ------------------------------------------------------------------------------------------

-- In a queue that is fair no more, jobs with tags shall not wait behind all that come without.
local function drop_tags(queue)
    for _, lane in ipairs(book.range('HKEYS', book.key('lanes'))) do
        if string.match(lane, '^(.*):') == queue then
            local ids = {}
            local line = book.full('ready:' .. lane)
            for index, spot in ipairs(book.range('ZREVRANGEBYSCORE', line, '+inf', '(0', 'LIMIT', 0, AT_ONCE)) do
                ids[index] = book.id_of(spot)
            end
            for _, card in ipairs(book.cards(ids)) do
                book.touch(card)
                card.tag = 0
            end
            if #ids == AT_ONCE then
                return false
            end
        end
    end
    return true
end

-- The first call has those jobs kept by arrival that will be pending; each looks for some of those that are. Answers
-- whether all have been found.
local function arrange(queue)
    local from = book.is_arranged(queue)
    if from == '' then
        return true
    end
    local which = {ids = {}, queues = {queue}, states = {}, tasks = {}, tags = {}, causes = {}}
    local found, on = filters.matching(which, filters.PENDING, AT_ONCE, {from = from or ''})
    local line, spots = {}, {}
    for index, card in ipairs(found) do
        line[2 * index - 1], line[2 * index], spots[index] = '0', card.spot, card.spot
    end
    if #spots > 0 then
        local key = book.key('arrivals:' .. queue)
        -- One of them may have been there: whoever asks again for all after the same spot finds it again.
        book.note(book.many, 'ZREM', key, spots)
        book.many('ZADD', key, line)
    end
    book.arrange(queue, on or '')
    return on == nil
end

-- ARGV: for each queue its name and MessagePack of its QueueSettings. Answers 1 if that is all; 0 if there is more to
-- be done by another call of the same. A queue is not to drop its oldest jobs before these are known.
book.verb('declare', function(args)
    local is_done = true
    for index = 1, #args, 2 do
        local queue, settings = args[index], cmsgpack.unpack(args[index + 1])
        if settings.overflow ~= 'drop_oldest' or not settings.max_size or arrange(queue) then
            book.hset('queue', queue, args[index + 1])
            book.forget_settings()
            is_done = (settings.fair or drop_tags(queue)) and is_done
        else
            is_done = false
        end
    end
    return is_done and 1 or 0
end, {drains = true})

-- ARGV: 1 to pause or 0 to resume, then queues. Answers nothing.
book.verb('pause', function(args)
    for index = 2, #args do
        local queue = args[index]
        if not book.hget('queue', queue) then
            book.hset('queue', queue, '')
        end
        if args[1] == '1' then
            book.sadd('paused', queue)
        else
            book.srem('paused', queue)
            book.woke = true
        end
    end
end, {drains = true})

-- -- jobs --------------------------------------------------------------------------------------------

local function is_not_warned(card)
    return card.state ~= RUNNING or card.warned ~= card.lease
end

-- ARGV: filter, limit, where to go on; the reason, or nothing.
book.verb('cancel', function(args)
    local reason = args[4]
    local chosen, on = chosen_by(args, filters.UNFINISHED, is_not_warned)
    for _, card in ipairs(chosen) do
        if card.state == RUNNING then
            book.touch(card)
            card.warned = card.lease
            workers.leave_order(card.worker, 'cancel', card.id, reason, card.lease)
        elseif card.state < RUNNING then
            -- Else an earlier one was its parent and has taken it along.
            finish.finish(card, CANCELLED, reason)
        end
    end
    return {#chosen, on}
end, {drains = true})

-- A job that is about to run again: with all its attempts, and waiting for nobody.
local function revive(card)
    if card.deadline > 0 then
        book.rewrite(card, {deadline = 0})
    end
    book.touch(card)
    card.attempt, card.deaths, card.missing, card.started_at, card.finished_at = 0, 0, 0, 0, 0
    card.result_until, card.progress = 0, -1
    card.worker, card.reason, card.result = nil, nil, nil
    if has(card, KIND.UNIQUE) or has(card, KIND.UNIQUE_START) then
        finish.take_unique(book.rest(card).unique, card.id, 0)
    end
    if card.key then
        places.rejoin_key(card.key, places.room_of(card))
    end
    places.enter(card, book.now)
end

-- ARGV: filter, limit, where to go on.
book.verb('replay', function(args)
    local taken = {}
    -- Whether its unique key is free; of several that have it, the oldest gets it.
    local function may_be_replayed(card)
        local unique = book.rest(card).unique
        if not unique then
            return true
        end
        local holder = finish.holder_of(unique)
        if taken[unique] or (holder and holder ~= card.id) then
            return false
        end
        taken[unique] = not has(card, KIND.UNIQUE_PERIOD)
        return true
    end
    local chosen, on = chosen_by(args, filters.FINISHED, may_be_replayed)
    for _, card in ipairs(chosen) do
        revive(card)
    end
    return {#chosen, on}
end)

-- ARGV: an id, arguments. Answers 1, or 0 if there is no such job or it is running.
book.verb('edit', function(args)
    local card = book.card(args[1])
    if not card or card.state == RUNNING then
        return 0
    end
    book.rewrite(card, {args = args[2]})
    return 1
end)

-- ARGV: filter, limit, where to go on; the priority.
book.verb('reprioritise', function(args)
    local priority = tonumber(args[4])
    local function has_another(card)
        return card.priority ~= priority
    end
    local chosen, on = chosen_by(args, filters.PENDING, has_another)
    for _, card in ipairs(chosen) do
        book.rewrite(card, {priority = priority})
        if card.state == READY then
            card.tag = places.next_tag(card)
        elseif card.state == PARKED then
            places.park(card)
        end
    end
    return {#chosen, on}
end)

-- ARGV: filter, limit, where to go on.
book.verb('delete', function(args)
    local chosen, on = chosen_by(args, filters.NOT_RUNNING)
    for _, card in ipairs(chosen) do
        if card.state < RUNNING then
            finish.finish(card, CANCELLED, nil)
        end
    end
    for _, card in ipairs(chosen) do
        finish.forget_unique(card, true)
        finish.erase(card)
    end
    return {#chosen, on}
end, {drains = true})
