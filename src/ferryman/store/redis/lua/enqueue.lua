-- Enqueue: a batch of jobs, all or none.
--
-- It comes as runs of jobs that differ in nothing but ids and arguments. Those of plain jobs go in by a few
-- commands for all of them; the others are looked at one by one.

local KIND = book.KIND
local WAITING, READY, RUNNING, SUCCEEDED, CANCELLED =
    book.WAITING, book.READY, book.RUNNING, book.SUCCEEDED, book.CANCELLED
local char, pack = string.char, struct.pack

-- -- records ----------------------------------------------------------------------------------------

-- What the records of a run have in common.
local function form_of(run)
    local now = book.now
    local deadline = run.ttl and now + run.ttl or run.deadline
    return {
        enqueued_at = now, first_at = math.max(now, run.at or now + (run.delay or 0)),
        deadline = deadline and math.max(1, deadline) or 0, max_attempts = run.max_attempts, kind = run.kind,
        priority = run.priority, key_size = run.key and #run.key or 0, names = run.names,
    }
end

-- The common part is given, since it is put together once for all.
local function record_of(seq, run, common, args)
    local size, tail, names_size = #args, run.tail, #run.names
    if size < 256 then
        return pack('>I8I4I4', seq, size + 2 + #tail, names_size)
            .. common .. '\196' .. char(size) .. args .. tail .. run.rest
    end
    local body = book.bin(args) .. tail
    return pack('>I8I4I4', seq, #body, names_size) .. common .. body .. run.rest
end

-- -- plain jobs, all at once --------------------------------------------------------------------------

local function is_any_known(ids)
    local stored = book.fields('job', ids)
    for index = 1, #ids do
        if stored[index] then
            return true
        end
    end
    return false
end

local function store_plain(run, ids, common, jobs, first)
    local count = #ids
    local seq = book.numbers(count) - count
    local records, line, spots = {}, {}, {}
    for index = 1, count do
        local id = ids[index]
        local spot = book.spot(seq + index, id)
        records[2 * index - 1] = id
        records[2 * index] = record_of(seq + index, run, common, jobs[first + 2 * index - 1])
        line[2 * index - 1], line[2 * index] = '0', spot
        spots[index] = spot
    end
    local lane = book.lane(run.queue, run.priority)
    book.note(book.many, 'HDEL', book.key('job'), ids)
    book.many('HSET', book.key('job'), records)
    for _, key in ipairs({book.key('all'), lane.ready, book.is_arranged(run.queue) and lane.arrivals or nil}) do
        book.note(book.many, 'ZREM', key, spots)
        book.many('ZADD', key, line)
    end
    book.forget_missing(ids)
    book.count_jobs(lane, READY, count)
    book.stat(run.names, 'enqueued', 0, count)
    book.woke = true
end

local function is_plain(run, form)
    return run.kind == 0 and form.first_at <= book.now and form.deadline == 0 and not book.settings(run.queue).fair
end

-- All that is packed with an id in it counts on this.
local function check_id(id)
    if #id ~= 32 then
        book.fail('InvalidJob', 'the id of a job is 32 hexadecimal digits, not ' .. id)
    end
end

-- The ids, or nil if one is there twice.
local function distinct_ids(jobs, first, count)
    local ids, seen = {}, {}
    for index = 1, count do
        local id = jobs[first + 2 * index - 2]
        if seen[id] then
            return nil
        end
        check_id(id)
        ids[index], seen[id] = id, true
    end
    return ids
end

-- -- one by one -------------------------------------------------------------------------------------

local function unknown_parent(run, id, parent)
    local task = cmsgpack.unpack(run.names)
    book.fail('UnknownParent', 'job ' .. id .. ' (' .. task .. ') is to wait for job ' .. parent
        .. ', which the store does not have; it was never enqueued, or its retention has passed')
end

-- Tie a new job to its parents. Answers how many are still to finish, and one that failed and takes the job
-- with it.
local function find_parents(run, card, batch)
    local missing, failed, seen = 0, nil, {}
    for _, named in ipairs(run.after) do
        local id = batch.stands_for[named] or named
        if not seen[id] then
            seen[id] = true
            local parent = id ~= card.id and book.card(id)
            if not parent then
                unknown_parent(run, card.id, id)
            end
            local waits = parent.state ~= SUCCEEDED
            if waits and parent.state > RUNNING then
                if run.kind % (2 * KIND.CONTINUE) >= KIND.CONTINUE then
                    waits = false
                elseif run.kind % (2 * KIND.HOLD) < KIND.HOLD then
                    failed = failed or parent
                end
            end
            missing = missing + (waits and 1 or 0)
            if not parent.has_children then
                book.touch(parent)
                parent.has_children = true
            end
            book.zadd('children:' .. id, waits and 1 or 0, card.spot)
            book.push('parents:' .. card.id, id)
        end
    end
    return missing, failed
end

local function known(run, rest, id)
    if book.card(id) then
        return id
    end
    return rest.unique and finish.holder_of(rest.unique) or nil
end

-- Store a job, and let it go as far as it can.
local function bear(run, rest, id, record, batch)
    local card = book.bear(id, record)
    local missing, failed = 0, nil
    if run.after then
        missing, failed = find_parents(run, card, batch)
        book.touch(card)
        card.missing = missing
    end
    if rest.unique then
        finish.take_unique(rest.unique, id, rest.period and book.later(rest.period) or 0)
    end
    if card.key then
        places.join_key(card.key, places.room_of(card))
    end
    if failed then
        finish.finish(card, CANCELLED, finish.why_cancelled(failed))
    elseif missing == 0 then
        places.go_on(card)
    end
    batch.born[#batch.born + 1] = card
end

local function enqueue_each(run, common, jobs, first, batch)
    local rest = run.rest == '' and {} or cmsgpack.unpack(run.rest)
    for index = first, first + 2 * run.count - 1, 2 do
        local id = jobs[index]
        check_id(id)
        local holder = known(run, rest, id)
        if holder then
            batch.stands_for[id] = holder
            batch.duplicates[#batch.duplicates + 1] = (index - 2) / 2
            batch.duplicates[#batch.duplicates + 1] = holder
        else
            bear(run, rest, id, record_of(book.number(), run, common, jobs[index + 1]), batch)
            book.stat(run.names, 'enqueued', 0, 1)
        end
    end
end

-- -- bounds -----------------------------------------------------------------------------------------

local function drop_oldest(queue, excess, most)
    while excess > 0 do
        local spots = book.range('ZRANGE', book.key('arrivals:' .. queue), 0, math.min(excess, 500) - 1)
        if #spots == 0 then
            book.fail('StoreCorrupt', 'queue ' .. queue .. ' counts ' .. excess .. ' more pending jobs than there are')
        end
        for _, spot in ipairs(spots) do
            local card = book.card(book.id_of(spot))
            if not card or card.state >= RUNNING then
                -- One that was dropped may have taken its children along; or somebody has meddled with the keys.
                book.zrem('arrivals:' .. queue, spot)
            elseif excess > 0 then
                finish.finish(card, CANCELLED, 'dropped: queue ' .. queue .. ' was full')
                excess = card.has_children and book.pending(queue) - most or excess - 1
            end
        end
    end
end

-- Refuse the batch if it overfills a bounded queue, or make room, as the queue's rule says. Looking afterwards
-- counts exactly those that take a place: no duplicates, none that were born cancelled.
local function keep_bounds(batch)
    for _, card in ipairs(batch.born) do
        if card.state < RUNNING then
            batch.arrived[card.queue] = (batch.arrived[card.queue] or 0) + 1
        end
    end
    for queue, count in pairs(batch.arrived) do
        local settings = book.settings(queue)
        local most = settings.max_size
        if most then
            local excess = book.pending(queue) - most
            if excess > 0 then
                if settings.overflow ~= 'drop_oldest' or count > most then
                    book.fail('QueueFull', book.text(most) .. ' ' .. queue)
                end
                drop_oldest(queue, excess, most)
            end
        end
    end
end

-- -- the verb ---------------------------------------------------------------------------------------

-- ARGV: MessagePack of the runs; then id and arguments of each job. A run is a map with count, names, queue,
-- priority, max_attempts, kind, tail (MessagePack of options and key), rest, and delay or at, ttl or deadline,
-- key, after where there is one. Answers those that are duplicates: [place in the batch, id of the job that
-- stands for it, ...].
book.verb('enqueue', function(args)
    local batch = {born = {}, arrived = {}, stands_for = {}, duplicates = {}}
    local first = 2
    for _, run in ipairs(cmsgpack.unpack(args[1])) do
        local form = form_of(run)
        local common = book.common_of(form)
        local ids = is_plain(run, form) and distinct_ids(args, first, run.count)
        if ids then
            -- Those that were looked at one by one before must be seen, and must have arrived before.
            book.write()
        end
        if ids and not is_any_known(ids) then
            store_plain(run, ids, common, args, first)
            batch.arrived[run.queue] = (batch.arrived[run.queue] or 0) + run.count
        else
            enqueue_each(run, common, args, first, batch)
        end
        first = first + 2 * run.count
    end
    keep_bounds(batch)
    return batch.duplicates
end)
