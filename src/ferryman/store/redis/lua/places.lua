-- Letting jobs into their lanes: places of keys, and tags of fair queues.

local READY, SCHEDULED, PARKED = book.READY, book.SCHEDULED, book.PARKED
local KIND = book.KIND

local AHEAD = 100  -- parked jobs of a key that are looked up at once

-- Keys and fair lanes that the call has in hand, and the keys that have changed.
local keys, changed, fair_lanes

book.at_start(function()
    keys, changed, fair_lanes = {}, {}, {}
end)

-- -- keys -------------------------------------------------------------------------------------------

-- A key's places and jobs. `parked` are the first spots of its line, once they have been looked up; `is_stale`
-- tells that the line in the server is not what it will be when the book is written.
local function key_of(name)
    local key = keys[name]
    if not key then
        local stored = call('HGET', book.key('key'), name)
        key = {name = name, stored = stored, jobs = 0, used = 0, is_stale = false}
        key.line = book.full('parked:' .. name)
        if stored then
            local room, used, jobs = string.match(stored, '(%d+) (%d+) (%d+)')
            key.room, key.used, key.jobs = tonumber(room), tonumber(used), tonumber(jobs)
        end
        keys[name] = key
    end
    return key
end

local function change(key, jobs, used)
    key.jobs, key.used = key.jobs + jobs, key.used + used
    changed[key] = true
end

local function write_key(key)
    local hash, name, before = book.key('key'), key.name, key.stored
    local after = key.jobs > 0 and string.format('%d %d %d', key.room, key.used, key.jobs)
    if after == before then
        return
    end
    if before then
        book.note(call, 'HSET', hash, name, before)
    else
        book.note(call, 'HDEL', hash, name)
    end
    if after then
        call('HSET', hash, name, after)
    else
        call('HDEL', hash, name)
    end
    key.stored = after
end

book.at_write(function()
    if next(changed) then
        for key in pairs(changed) do
            write_key(key)
        end
        changed = {}
    end
end)

-- The first job that is parked at a key, if there is one.
local function first_parked(key)
    while true do
        if not key.parked then
            if key.is_stale then
                book.write()
                key.is_stale = false
            end
            key.parked, key.at = call('ZRANGE', key.line, 0, AHEAD - 1), 0
        end
        key.at = key.at + 1
        local spot = key.parked[key.at]
        if spot then
            local card = book.card(book.id_of(spot))
            if card and card.state == PARKED then
                return card
            end
        elseif #key.parked < AHEAD then
            -- The last one was reached.
            key.at = key.at - 1
            return nil
        else
            -- What is not parked any more is gone from the line when the book is written.
            book.write()
            if call('ZRANGE', key.line, 0, 0)[1] == key.parked[1] then
                book.fail('StoreCorrupt', 'jobs are parked at ' .. key.line .. ' that are not there')
            end
            key.parked = nil
        end
    end
end

-- Let in parked jobs while there is room. Those that hold a place are not parked, so there may be none to look for.
local function admit(key)
    while key.jobs > key.used and key.used < key.room do
        local card = first_parked(key)
        if not card then
            return
        end
        change(key, 0, 1)
        book.touch(card)
        card.holds = true
        places.enter(card, book.now)
    end
end

-- Count an unfinished job to its key, which has as many places from now on as this job says.
function places.join_key(name, room)
    local key = key_of(name)
    key.room = room
    admit(key)
    change(key, 1, 0)
end

-- Count a replayed job to its key; what later jobs said of its places goes on to hold.
function places.rejoin_key(name, room)
    local key = key_of(name)
    key.room = key.jobs > 0 and key.room or room
    change(key, 1, 0)
end

-- Let a job that is scheduled have a place of its key, if one is free.
function places.keep_place(card)
    local key = key_of(card.key)
    if key.used < key.room then
        change(key, 0, 1)
        book.touch(card)
        card.holds = true
    end
end

-- Give a job's place back, if it has one, and let in the parked jobs for which there is room now.
function places.free_place(card)
    if card.holds then
        book.touch(card)
        card.holds = false
        local key = key_of(card.key)
        change(key, 0, -1)
        admit(key)
    end
end

-- A job has finished: it counts no more. A key is forgotten with its last job.
function places.leave_key(card)
    local key = key_of(card.key)
    change(key, -1, 0)
    places.free_place(card)
end

function places.room_of(card)
    return card.kind % (2 * KIND.ORDERED) >= KIND.ORDERED and 1 or book.rest(card).room or 1
end

-- -- lanes ------------------------------------------------------------------------------------------

-- Nothing holds the job any more but its moment and its key.
function places.go_on(card)
    if card.run_at > book.now then
        places.schedule(card, card.run_at)
    else
        places.enter(card, book.now)
    end
end

function places.schedule(card, run_at)
    book.touch(card)
    card.state, card.run_at = SCHEDULED, run_at
end

-- Let a job that wants to run into its lane, or park it. `since` is the moment it became ready.
function places.enter(card, since)
    if card.key and not card.holds then
        local key = key_of(card.key)
        if key.used >= key.room then
            places.park(card)
            return
        end
        change(key, 0, 1)
        book.touch(card)
        card.holds = true
    end
    local tag = places.next_tag(card)
    book.touch(card)
    card.state, card.run_at, card.tag = READY, since, tag
end

-- Ordered jobs are let in by arrival alone, others by priority first.
function places.park(card)
    book.touch(card)
    card.state = PARKED
    local key = key_of(card.key)
    key.parked, key.is_stale = nil, true
end

-- -- fair queues ------------------------------------------------------------------------------------

local function fair_lane(lane)
    if not lane.tenants then
        lane.clock = tonumber(call('HGET', book.key('lanes'), lane.name) or 0)
        lane.tenants, lane.tags = book.full('tenants:' .. lane.name), {}
        fair_lanes[#fair_lanes + 1] = lane
    end
    return lane
end

-- The place of a job in its lane: 0 unless the queue is fair.
--
-- Start-time fair queueing (Goyal, Vin and Cheng, 1996): the later of the lane's virtual time and the tenant's last
-- tag, plus the cost of one job.
function places.next_tag(card)
    local lane = card.lane
    local settings = book.settings(lane.queue)
    if not settings.fair then
        return 0
    end
    fair_lane(lane)
    local tenant = book.rest(card).tenant or ''
    local entry = lane.tags[tenant]
    if not entry then
        local stored = call('HGET', lane.tenants, tenant)
        entry = {stored = stored, tag = tonumber(stored or 0)}
        lane.tags[tenant] = entry
    end
    entry.tag = math.max(lane.clock, entry.tag) + 1 / (settings.weights[tenant] or 1)
    return entry.tag
end

-- A job with this tag was claimed.
function places.pass(lane, tag)
    if tag > 0 then
        fair_lane(lane)
        lane.clock = math.max(lane.clock, tag)
        lane.ticked = true
    end
end

-- A tenant that is not ahead of the clock is as one that was never here. Each new one looks at two others, so
-- that the hash stays small without a walk through all of it.
local function sweep(lane)
    local drawn = call('HRANDFIELD', lane.tenants, 2, 'WITHVALUES')
    for index = 1, #drawn, 2 do
        if tonumber(drawn[index + 1]) <= lane.clock and not lane.tags[drawn[index]] then
            book.note(call, 'HSET', lane.tenants, drawn[index], drawn[index + 1])
            call('HDEL', lane.tenants, drawn[index])
        end
    end
end

local function write_tags(lane)
    for tenant, entry in pairs(lane.tags) do
        local after = book.text(entry.tag)
        if after ~= entry.stored then
            if entry.stored then
                book.note(call, 'HSET', lane.tenants, tenant, entry.stored)
            else
                book.note(call, 'HDEL', lane.tenants, tenant)
                sweep(lane)
            end
            call('HSET', lane.tenants, tenant, after)
            entry.stored = after
        end
    end
end

book.at_write(function()
    for _, lane in ipairs(fair_lanes) do
        write_tags(lane)
        if lane.ticked then
            book.hset('lanes', lane.name, book.text(lane.clock))
            lane.ticked = nil
        end
    end
end)
