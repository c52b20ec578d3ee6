-- Writing cards back: from what they were and what they are now follows what has to change in every line and index.

local READY, SCHEDULED, RUNNING = book.READY, book.SCHEDULED, book.RUNNING
local KIND = book.KIND
local MINUTE = 60000

local arranged

book.at_start(function()
    arranged = {}
end)

-- -- lists of arguments, by key ------------------------------------------------------------------------

local function list_of(lists, key)
    local list = lists[key]
    if not list then
        list = {}
        lists[key] = list
    end
    return list
end

local function put(lists, key, value)
    local list = list_of(lists, key)
    list[#list + 1] = value
end

local function put_pair(lists, key, first, second)
    local list = list_of(lists, key)
    local count = #list
    list[count + 1], list[count + 2] = first, second
end

-- A spot of an index had the rank `before` (nil: it was not there) and is to have the rank `after`.
function book.reindex(work, line, spot, before, after)
    if before == after then
        return
    end
    if after then
        put_pair(work.add, line, book.text(after), spot)
    else
        put(work.remove, line, spot)
    end
    if before then
        put_pair(work.restore, line, book.text(before), spot)
    else
        put(work.unadd, line, spot)
    end
end

-- -- what follows from a card --------------------------------------------------------------------------

-- Whether a queue's pending jobs are kept by arrival: a spot, if those that were there before are known up to it only.
function book.is_arranged(queue)
    if arranged[queue] == nil then
        arranged[queue] = call('HGET', book.key('arranged'), queue)
    end
    return arranged[queue]
end

-- Keep a queue's pending jobs by arrival from now on; those that were there before are known up to this spot.
function book.arrange(queue, spot)
    book.hset('arranged', queue, spot)
    arranged[queue] = spot
end

local function change_line(work, card)
    local line, rank
    if not card.erased then
        line, rank = book.place(card)
    end
    local was_line, was_rank = card.was_line, card.was_rank
    if line == was_line and rank == was_rank then
        return
    end
    if line == was_line then
        book.reindex(work, line, card.spot, was_rank, rank)
    else
        if was_line then
            book.reindex(work, was_line, card.spot, was_rank, nil)
        end
        if line then
            book.reindex(work, line, card.spot, nil, rank)
        end
    end
    if card.state == READY and line then
        book.woke = true
    elseif card.state == SCHEDULED and line then
        work.soonest = math.min(work.soonest or rank, rank)
    end
end

-- Lines of states whose own line is in another order.
book.ARRIVED = {
    [SCHEDULED] = 'arrived:scheduled', [book.PARKED] = 'arrived:parked', [book.DEAD] = 'arrived:dead',
    [book.CANCELLED] = 'arrived:cancelled', [book.EXPIRED] = 'arrived:expired',
}

-- Jobs of such a state by arrival: what people search and steer.
local function change_arrived(work, card)
    local before = card.was_state and book.ARRIVED[card.was_state]
    local after = not card.erased and book.ARRIVED[card.state]
    if before ~= after then
        if before then
            book.reindex(work, book.key(before), card.spot, 0, nil)
        end
        if after then
            book.reindex(work, book.key(after), card.spot, nil, 0)
        end
    end
end

local function change_counts(work, card)
    local lane, was_lane, state, before = card.lane, card.was_lane, card.state, card.was_state
    if before == state and was_lane == lane and not card.erased then
        return
    end
    if before then
        book.count_jobs(was_lane, before, -1)
    end
    if not card.erased then
        book.count_jobs(lane, state, 1)
        book.done = book.done or state > RUNNING
    end
    local was_pending = before ~= nil and before < RUNNING
    local is_pending = state < RUNNING and not card.erased
    if was_pending ~= is_pending and book.is_arranged(lane.queue) then
        book.reindex(work, lane.arrivals, card.spot, was_pending and 0 or nil, is_pending and 0 or nil)
    end
end

local function change_indexes(work, card)
    local spot, erased = card.spot, card.erased
    if card.was_deadline or card.deadline > 0 then
        local deadline = card.deadline > 0 and card.state < RUNNING and not erased and card.deadline or nil
        book.reindex(work, book.key('deadline'), spot, card.was_deadline, deadline)
    end
    if card.was_result_end or card.result_until > 0 then
        local ends = not erased and book.result_end(card) or nil
        book.reindex(work, book.key('result_until'), spot, card.was_result_end, ends)
    end
    if card.born or erased then
        local before, after = not card.born and 0 or nil, not erased and 0 or nil
        book.reindex(work, book.key('all'), spot, before, after)
        if card.kind >= KIND.TAGGED then
            for _, tag in ipairs(book.rest(card).tags) do
                book.reindex(work, book.full('tag:' .. tag), spot, before, after)
            end
        end
    end
end

-- Whether it needs no life: as it was born, and ready.
local function is_plain(card)
    return card.state == READY and card.tag == 0 and card.run_at == card.first_at
        and not card.holds and not card.has_children
end

-- The field of a hash had a value (nil: it was not there) and is to have another.
function book.change_blob(work, key, id, before, after)
    if before == after then
        return
    end
    if after then
        put_pair(work.set, key, id, after)
    else
        put(work.forget, key, id)
    end
    if before then
        put_pair(work.reset, key, id, before)
    else
        put(work.unset, key, id)
    end
end

local function change_blobs(work, card)
    local id, erased = card.id, card.erased
    if card.born or erased or card.old_record then
        local before = not card.born and (card.old_record or card.record) or nil
        book.change_blob(work, book.key('job'), id, before, not erased and card.record or nil)
    end
    local life
    if not erased and not (card.born and not card.has_lived and is_plain(card)) then
        life = book.pack_life(card)
    end
    book.change_blob(work, book.key('life'), id, card.life or nil, life)
    card.life = life
end

local function drop_what_hangs_on(card)
    if card.has_children then book.drop('children:' .. card.id) end
    if card.has_attempts then book.drop('attempts:' .. card.id) end
    if card.has_notes then book.drop('notes:' .. card.id) end
    if card.kind % (2 * KIND.AFTER) >= KIND.AFTER then book.drop('parents:' .. card.id) end
end

-- -- carrying it out -----------------------------------------------------------------------------------

-- Lists of arguments by the keys that they are for: to add to lines (rank and spot) and to remove from them; to
-- set and to forget fields of hashes; and what undoes these: `unadd`, `restore`, `unset`, `reset`.
function book.new_work()
    return {add = {}, remove = {}, unadd = {}, restore = {}, set = {}, forget = {}, unset = {}, reset = {}}
end

-- Inverses are noted before anything is done, so that what breaks off half-way is undone too.
function book.carry_out(work)
    for key, list in pairs(work.restore) do book.note(book.many, 'ZADD', key, list) end
    for key, list in pairs(work.unadd) do book.note(book.many, 'ZREM', key, list) end
    for key, list in pairs(work.reset) do book.note(book.many, 'HSET', key, list) end
    for key, list in pairs(work.unset) do book.note(book.many, 'HDEL', key, list) end
    for key, list in pairs(work.remove) do book.many('ZREM', key, list) end
    for key, list in pairs(work.add) do book.many('ZADD', key, list) end
    for key, list in pairs(work.forget) do book.many('HDEL', key, list) end
    for key, list in pairs(work.set) do book.many('HSET', key, list) end
end

-- A job that is scheduled sooner than all others ends the sleep of a worker.
local function look_at_schedule(soonest)
    local head = call('ZRANGE', book.key('scheduled'), 0, 0, 'WITHSCORES')[2]
    if not head or soonest < tonumber(head) then
        book.woke = true
    end
end

book.at_write(function()
    local cards = book.take_touched()
    if not cards then
        return
    end
    local work = book.new_work()
    for position = 1, #cards do
        local card = cards[position]
        change_line(work, card)
        change_arrived(work, card)
        change_counts(work, card)
        change_indexes(work, card)
        change_blobs(work, card)
        if card.erased and not card.born then
            drop_what_hangs_on(card)
        end
        card.touched, card.born, card.old_record = nil, nil, nil
    end
    if work.soonest then
        look_at_schedule(work.soonest)
    end
    book.carry_out(work)
end)

-- -- counts --------------------------------------------------------------------------------------------

local function set_if_new(key, field, value)
    local is_new = call('HSETNX', key, field, value) == 1
    if is_new then
        book.note(call, 'HDEL', key, field)
    end
    return is_new
end

local function count_lane(lane)
    for state, by in pairs(lane.changes) do
        if by ~= 0 and book.count(book.key('count:' .. book.STATES[state]), lane.name, by) == by
            and set_if_new(book.key('lanes'), lane.name, '0') then
            set_if_new(book.key('queue'), lane.queue, '')
        end
    end
    lane.changes = {}
end

local function begin_minute()
    local minute = book.text(book.now - book.now % MINUTE)
    if not call('ZSCORE', book.key('minutes'), minute) then
        book.zadd('minutes', minute, minute)
    end
    return minute
end

book.at_write(function()
    if not book.has_counted then
        return
    end
    book.has_counted = false
    for _, lane in pairs(book.lanes) do
        if next(lane.changes) then
            count_lane(lane)
        end
    end
    local minute
    for _, trade in pairs(book.trades) do
        if next(trade.counts) then
            minute = minute or begin_minute()
            for kind, counts in pairs(trade.counts) do
                for bucket, by in pairs(counts) do
                    book.count(book.key('stat:' .. minute), kind .. ' ' .. bucket .. trade.suffix, by)
                end
            end
            trade.counts = {}
        end
    end
end)
