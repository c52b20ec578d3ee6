-- From a filter to cards, by arrival, however many jobs there are.
--
-- A filter is the table of a `ferryman.store.records.Filter`: ids, queues, states, tasks, tags, causes (arrays; empty:
-- all will do), since, until (nil: none). Its cards are found by a walk along the narrowest lines that hold all jobs
-- that may match: those of the ids; or of the tags; or of the states, which for ready jobs are the lanes of the
-- queues; or `all`. Lines that are not in the order of arrival (by time, or by fairness) are read whole if they are
-- short; else they are of no use. A walk along `all` leaps over stretches of jobs that are not meant: a backlog
-- does not hide what is behind it. A walk looks at some thousand cards and tells where it ended, so that another call
-- can go on.

local READY, RUNNING, DEAD = book.READY, book.RUNNING, book.DEAD

local LOOKS = 2000       -- cards that one call looks at
local GLANCE = 0.4       -- looks that a glance at a record counts for
local LARGE = 4096       -- a card of so many bytes counts for two, and so on: their bytes are read too
local STEP = 128         -- cards that are read at once
local SHORT = 5000       -- lines out of order that are together no longer are read whole
local LINES = 64         -- lines that are walked side by side
local NAMES = 1000       -- lines that are looked at for that

-- States whose jobs are in one line by arrival.
local BY_ARRIVAL = {
    [book.WAITING] = 'waiting', [book.SCHEDULED] = 'arrived:scheduled', [book.PARKED] = 'arrived:parked',
    [DEAD] = 'arrived:dead', [book.CANCELLED] = 'arrived:cancelled', [book.EXPIRED] = 'arrived:expired',
}

-- Sets of states.
filters.ALL = {[0] = true, true, true, true, true, true, true, true, true}
filters.PENDING = {[0] = true, true, true, true}
filters.UNFINISHED = {[0] = true, true, true, true, true}
filters.FINISHED = {[5] = true, [6] = true, [7] = true, [8] = true}
filters.NOT_RUNNING = {[0] = true, true, true, true, nil, true, true, true, true}

local function set_of(list)
    local set = {}
    for _, item in ipairs(list) do
        set[item] = true
    end
    return set
end

-- -- conditions --------------------------------------------------------------------------------------

-- The lanes with jobs of a state, of these queues (a set; nil: of all).
local function lanes_with(state, queues)
    local lanes, counts = {}, book.range('HGETALL', book.key('count:' .. book.STATES[state]))
    for index = 1, #counts, 2 do
        if not queues or queues[string.match(counts[index], '^(.*):')] then
            lanes[#lanes + 1] = counts[index]
        end
    end
    return lanes
end

-- The states that are meant and that jobs of these queues are in: the counts know.
local function states_of(which, among, queues)
    local named = #which.states > 0 and set_of(which.states)
    local states = {}
    for state in pairs(among) do
        local meant = (not named or named[state]) and (#which.causes == 0 or state == DEAD)
        if meant and #lanes_with(state, queues) > 0 then
            states[state] = true
        end
    end
    return states
end

local function has_one_of(list, set)
    for _, item in ipairs(list or {}) do
        if set[item] then
            return true
        end
    end
    return false
end

-- A function that tells of a record's form (see cards.lua) whether a card of it can match, for which its life need not be
-- read; nil if all can.
local function glance_of(which, queues)
    local tasks, since, before = #which.tasks > 0 and set_of(which.tasks), which.since, which['until']
    if not (tasks or queues or since or before) then
        return nil
    end
    return function(form)
        return (not queues or queues[form.trade.queue])
            and (not tasks or tasks[form.trade.task])
            and (not since or form.enqueued_at >= since)
            and (not before or form.enqueued_at < before)
    end
end

-- A function that tells whether a card matches that passed the glance.
local function condition_of(which, states, test)
    local causes, tags = #which.causes > 0 and set_of(which.causes), #which.tags > 0 and set_of(which.tags)
    return function(card)
        return states[card.state]
            and (not causes or causes[card.reason or ''])
            and (not tags or has_one_of(book.rest(card).tags, tags))
            and (not test or test(card))
    end
end

-- -- lines -------------------------------------------------------------------------------------------

-- Spots by arrival, each once. A line is such a list, or the full name of a key that is one.
local function in_order(spots)
    table.sort(spots)
    local once = {}
    for _, spot in ipairs(spots) do
        if spot ~= once[#once] then
            once[#once + 1] = spot
        end
    end
    return once
end

local function line_of_ids(ids)
    local spots = {}
    for _, card in ipairs(book.cards(ids)) do
        if card then
            spots[#spots + 1] = card.spot
        end
    end
    return in_order(spots)
end

-- The keys in which the jobs of a state are.
local function keys_of(state, queues)
    local keys = {}
    if BY_ARRIVAL[state] then
        keys[1] = book.key(BY_ARRIVAL[state])
    elseif state == READY then
        for index, lane in ipairs(lanes_with(state, queues)) do
            keys[index] = book.full('ready:' .. lane)
        end
    elseif state == RUNNING then
        for index, worker in ipairs(book.range('ZRANGE', book.key('alive'), 0, -1)) do
            keys[index] = book.full('running:' .. worker)
        end
    else
        keys[1] = book.key(book.STATES[state])
    end
    return keys
end

-- A line whose scores are all the same is in the order of arrival.
local function is_in_order(key)
    local first = book.range('ZRANGE', key, 0, 0, 'WITHSCORES')
    local last = book.range('ZRANGE', key, -1, -1, 'WITHSCORES')
    return first[2] == last[2]
end

-- The lines of these states, and how long they are together; nil if they are too many, or too long to be put in
-- order.
local function lines_of(states, queues)
    local keys = {}
    for state in pairs(states) do
        for _, key in ipairs(keys_of(state, queues)) do
            keys[#keys + 1] = key
        end
    end
    if #keys > NAMES then
        return nil
    end
    local lines, others, length, out_of_order = {}, {}, 0, 0
    for _, key in ipairs(keys) do
        local size = book.range('ZCARD', key)
        length = length + size
        if size > 0 and is_in_order(key) then
            lines[#lines + 1] = key
        elseif size > 0 then
            others[#others + 1] = key
            out_of_order = out_of_order + size
        end
    end
    if #lines >= LINES or out_of_order > SHORT then
        return nil
    end
    local spots = {}
    for _, key in ipairs(others) do
        for _, spot in ipairs(book.range('ZRANGE', key, 0, -1)) do
            spots[#spots + 1] = spot
        end
    end
    lines[#lines + 1] = in_order(spots)
    return lines, length
end

local function narrowest(which, states, queues)
    if #which.ids > 0 then
        return {line_of_ids(which.ids)}
    end
    local chosen = {book.key('all')}
    local least = book.range('ZCARD', chosen[1])
    if #which.tags > 0 and #which.tags <= LINES then
        chosen, least = {}, 0
        for index, tag in ipairs(which.tags) do
            chosen[index] = book.full('tag:' .. tag)
            least = least + book.range('ZCARD', chosen[index])
        end
    end
    local lines, length = lines_of(states, queues)
    if lines and length < least then
        return lines
    end
    return chosen
end

-- -- walking -----------------------------------------------------------------------------------------

-- The next spots of a line after `from` (nil: from its beginning), `most` at most.
local function page_of(line, from, newest_first, most)
    if type(line) == 'string' then
        if newest_first then
            return book.range('ZREVRANGEBYLEX', line, from and '(' .. from or '+', '-', 'LIMIT', 0, most)
        end
        return book.range('ZRANGEBYLEX', line, from and '(' .. from or '-', '+', 'LIMIT', 0, most)
    end
    local page = {}
    local first, last, step = 1, #line, 1
    if newest_first then
        first, last, step = #line, 1, -1
    end
    for index = first, last, step do
        local spot = line[index]
        if not from or (newest_first and spot < from) or (not newest_first and spot > from) then
            page[#page + 1] = spot
            if #page == most then
                break
            end
        end
    end
    return page
end

-- The next spots of several lines together, about `most`, and where to go on; nil at their end.
local function next_spots(lines, from, newest_first, most)
    local share = math.max(16, math.ceil(most / #lines))
    if #lines == 1 then
        local page = page_of(lines[1], from, newest_first, share)
        return page, page[share]
    end
    local found, horizon = {}, nil
    for _, line in ipairs(lines) do
        local page = page_of(line, from, newest_first, share)
        for _, spot in ipairs(page) do
            found[#found + 1] = spot
        end
        local last = page[share]
        if last and (not horizon or (last > horizon) == newest_first) then
            horizon = last
        end
    end
    local spots = in_order(found)
    if newest_first then
        for index = 1, math.floor(#spots / 2) do
            local other = #spots + 1 - index
            spots[index], spots[other] = spots[other], spots[index]
        end
    end
    -- Beyond the horizon, a line that gave no more than its share may have others.
    while horizon and spots[#spots] ~= horizon do
        spots[#spots] = nil
    end
    return spots, horizon
end

-- Lines in the order of arrival whose jobs are not meant: those of other states, and lanes of other queues; nil if
-- there are none or too many.
local function lines_to_skip(states, queues)
    local skipped = {}
    for state, name in pairs(BY_ARRIVAL) do
        if not states[state] and book.range('ZCARD', book.key(name)) > 0 then
            skipped[#skipped + 1] = book.key(name)
        end
    end
    for _, lane in ipairs(lanes_with(READY, nil)) do
        local key = book.full('ready:' .. lane)
        local is_meant = states[READY] and (not queues or queues[string.match(lane, '^(.*):')])
        if not is_meant and is_in_order(key) then
            skipped[#skipped + 1] = key
            if #skipped > LINES then
                return nil
            end
        end
    end
    return skipped[1] and skipped
end

-- Where to go on along `all` so that what lies between is nothing but jobs of these lines: the stretch is doubled as
-- long as the lines have as many spots in it as there are.
local function leap(lines, from, newest_first)
    local all, length = book.key('all'), STEP
    local range, rank_of = 'ZRANGE', 'ZRANK'
    if newest_first then
        range, rank_of = 'ZREVRANGE', 'ZREVRANK'
    end
    while true do
        local first = page_of(all, from, newest_first, 1)[1]
        local rank = first and book.range(rank_of, all, first)
        local last = rank and book.range(range, all, rank + length - 1, rank + length - 1)[1]
        local count = 0
        if last then
            local low, high = first, last
            if newest_first then
                low, high = last, first
            end
            for _, line in ipairs(lines) do
                count = count + book.range('ZLEXCOUNT', line, '[' .. low, '[' .. high)
                if count == length then
                    break
                end
            end
        end
        if count == length then
            from, length = last, length * 2
        elseif length > STEP then
            length = STEP
        else
            return from
        end
    end
end

-- The ids of spots, without those that fail a glance at their records; and what the glance cost in looks.
local function glance_at(spots, glance)
    local ids, cost = {}, 0
    for index, spot in ipairs(spots) do
        ids[index] = book.id_of(spot)
    end
    if not glance then
        return ids, cost
    end
    local kept = {}
    for index, record in ipairs(book.fields('job', ids)) do
        if record then
            cost = cost + GLANCE + math.floor(#record / LARGE)
            if glance((book.read_record(record))) then
                kept[#kept + 1] = ids[index]
            end
        end
    end
    return kept, cost
end

-- Up to `limit` cards that match and are of the states in the set `among`. `options`: newest_first, else they come
-- oldest first; test(card), a further condition; from: where an earlier walk ended, or '' to begin.
-- Answers the cards, and where it ended: nil if there are no more.
function filters.matching(which, among, limit, options)
    local queues = #which.queues > 0 and set_of(which.queues) or nil
    local states = states_of(which, among, queues)
    local picked = {}
    if not next(states) or limit <= 0 then
        return picked, nil
    end
    local lines = narrowest(which, states, queues)
    local glance, matches = glance_of(which, queues), condition_of(which, states, options.test)
    local newest_first, from, looked = options.newest_first or false, options.from, 0
    if from == '' then
        from = nil
    end
    local skipped = lines[1] == book.key('all') and lines_to_skip(states, queues)
    local is_barren = true
    while looked < LOOKS do
        if skipped and is_barren then
            from = leap(skipped, from, newest_first)
        end
        is_barren = true
        local spots, horizon = next_spots(lines, from, newest_first, STEP)
        local ids, cost = glance_at(spots, glance)
        looked = looked + cost
        for _, card in ipairs(book.cards(ids)) do
            if card then
                looked = looked + 1 + math.floor((#card.record + #(card.life or '')) / LARGE)
                is_barren = is_barren and not states[card.state]
                if matches(card) then
                    picked[#picked + 1] = card
                    if #picked == limit then
                        return picked, card.spot
                    end
                end
            end
        end
        from = horizon
        if not from then
            return picked, nil
        end
    end
    return picked, from
end
