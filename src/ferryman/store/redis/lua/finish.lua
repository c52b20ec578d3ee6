-- What becomes of others when a job finishes: its key's next job, its unique key, its children.

local KIND = book.KIND
local WAITING, RUNNING, SUCCEEDED, CANCELLED = book.WAITING, book.RUNNING, book.SUCCEEDED, book.CANCELLED

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

-- Answers the children that go down with their parent.
local function tell_children(parent)
    local line = 'children:' .. parent.id
    local spots = book.range('ZRANGEBYSCORE', book.full(line), 1, 1)
    local doomed, ids = {}, {}
    for index = 1, #spots do
        ids[index] = book.id_of(spots[index])
    end
    for index, child in ipairs(book.cards(ids)) do
        if child and child.state == WAITING then
            if parent.state == SUCCEEDED or has(child, KIND.CONTINUE) then
                book.zadd(line, 0, spots[index])
                book.touch(child)
                child.missing = child.missing - 1
                if child.missing == 0 then
                    places.go_on(child)
                end
            elseif not has(child, KIND.HOLD) then
                doomed[#doomed + 1] = child
            end
        end
    end
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
