-- What people look at. Nothing here writes.
--
-- A job is answered as MessagePack of a map: the fields of `ferryman.job.Job` that it has, without args, options,
-- result.

local DEAD = book.DEAD

local ENOUGH = 500      -- jobs in one answer of `find`
local GROUPED = 2000    -- dead letters in one answer of `causes`
local MINUTES = 30      -- minutes in one answer of `stats`

local function if_any(moment)
    return moment > 0 and moment or nil
end

local function job_of(card)
    local rest = book.rest(card)
    return cmsgpack.pack({
        id = card.id, seq = card.seq, task = card.task, queue = card.queue, priority = card.priority,
        state = card.state, attempt = card.attempt, max_attempts = card.max_attempts, deaths = card.deaths,
        enqueued_at = card.enqueued_at, run_at = card.run_at, started_at = if_any(card.started_at),
        finished_at = if_any(card.finished_at), deadline = if_any(card.deadline), worker = card.worker,
        key = card.key, tenant = rest.tenant, tags = rest.tags, reason = card.reason,
        progress = card.progress >= 0 and card.progress or nil,
    })
end

-- The result, unless its time is over.
local function result_of(card)
    local is_over = card.result_until > 0 and card.result_until <= book.now
    return not is_over and card.result or false
end

-- The job, its body (see book.body), its result and until when that is kept.
local function in_full(card)
    return {job_of(card), book.body(card), result_of(card), if_any(card.result_until) or false}
end

-- -- jobs --------------------------------------------------------------------------------------------

-- ARGV: MessagePack of ids. Answers for each id nothing, or an array: the job; its body, which is MessagePack of
-- args, options and key; its result, and until when it is kept.
book.verb('get', function(args)
    local answer = {}
    for index, card in ipairs(book.cards(cmsgpack.unpack(args[1]))) do
        answer[index] = card and in_full(card)
    end
    return answer
end, {reads = true})

-- ARGV: MessagePack of the filter; limit; where to go on, '' to begin. Answers where to go on with a further call
-- ('': there is nothing more), then jobs, the newest first.
book.verb('find', function(args)
    local which, limit, from = cmsgpack.unpack(args[1]), tonumber(args[2]), args[3]
    local options = {newest_first = true, from = from}
    local found, on = filters.matching(which, filters.ALL, math.min(limit, ENOUGH), options)
    local answer = {on or ''}
    for index, card in ipairs(found) do
        answer[index + 1] = job_of(card)
    end
    return answer
end, {reads = true})

-- ARGV: an id. Answers nothing, or an array: what `get` answers for the job; its attempts and notes, each MessagePack
-- of an array; ids of its parents, as named; ids of its children, the oldest first.
book.verb('history', function(args)
    local card = book.card(args[1])
    if not card then
        return false
    end
    local children = book.range('ZRANGE', book.full('children:' .. card.id), 0, -1)
    table.sort(children)
    for index, spot in ipairs(children) do
        children[index] = book.id_of(spot)
    end
    local function list(name)
        return book.range('LRANGE', book.full(name .. card.id), 0, -1)
    end
    return {in_full(card), list('attempts:'), list('notes:'), list('parents:'), children}
end, {reads = true})

-- The last attempt of a job that died, if it told of an error.
local function last_failure(card)
    local line = book.full('attempts:' .. card.id)
    for back = 1, book.range('LLEN', line) do
        local attempt = book.range('LINDEX', line, -back)
        if cmsgpack.unpack(attempt)[6] then
            return attempt
        end
    end
    return false
end

-- ARGV: an id, offset, limit. Answers for each of its parents, as they were named, an array: id, task, state, result,
-- and if it is dead the last attempt that told of an error, as in `history`.
book.verb('parent_results', function(args)
    local offset, limit = tonumber(args[2]), tonumber(args[3])
    local answer, passed = {}, 0
    for _, id in ipairs(book.range('LRANGE', book.full('parents:' .. args[1]), 0, -1)) do
        if #answer == limit then
            break
        elseif passed < offset then
            passed = passed + book.range('HEXISTS', book.key('job'), id)
        else
            local card = book.card(id)
            if card then
                local failure = card.state == DEAD and last_failure(card)
                answer[#answer + 1] = {id, card.task, card.state, result_of(card), failure}
            end
        end
    end
    return answer
end, {reads = true})

-- ARGV: MessagePack of the filter; where to go on, '' to begin. Answers where to go on with a further call ('': there
-- is nothing more), then for each group of dead letters found meanwhile: task, cause, how many, when the first and
-- the last died.
book.verb('causes', function(args)
    local options = {from = args[2]}
    local found, on = filters.matching(cmsgpack.unpack(args[1]), {[DEAD] = true}, GROUPED, options)
    local groups, answer = {}, {on or ''}
    for _, card in ipairs(found) do
        local name = #card.task .. ' ' .. card.task .. (card.reason or '')
        local group = groups[name]
        if not group then
            group = {card.task, card.reason or '', 0, card.finished_at, card.finished_at}
            groups[name] = group
            answer[#answer + 1] = group
        end
        group[3] = group[3] + 1
        group[4], group[5] = math.min(group[4], card.finished_at), math.max(group[5], card.finished_at)
    end
    return answer
end, {reads = true})

-- -- queues, workers, statistics -----------------------------------------------------------------------

-- Answers for each lane an array: '<queue>:<priority>', how many jobs are in each state, and since when its first
-- ready job is ready (-1: there is none).
book.verb('lanes', function()
    local lanes, by_name, ready, heads = {}, {}, {}, {}
    for index, name in ipairs(book.range('HKEYS', book.key('lanes'))) do
        lanes[index] = {name, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1}
        by_name[name] = lanes[index]
    end
    for state = book.WAITING, book.EXPIRED do
        local counts = book.range('HGETALL', book.key('count:' .. book.STATES[state]))
        for index = 1, #counts, 2 do
            local lane = by_name[counts[index]]
            lane[2 + state] = tonumber(counts[index + 1])
            if state == book.READY then
                ready[#ready + 1] = lane
                heads[#ready] = book.id_of(book.head(book.full('ready:' .. lane[1])))
            end
        end
    end
    for index, card in ipairs(book.cards(heads)) do
        ready[index][11] = card.run_at
    end
    return lanes
end, {reads = true})

-- Answers the time.
book.verb('time', function()
    return book.text(book.now)
end, {reads = true})

-- Answers the queues, each with its settings ('' if never declared), in one array; and the paused ones in another.
book.verb('queues', function()
    return {book.range('HGETALL', book.key('queue')), book.range('SMEMBERS', book.key('paused'))}
end, {reads = true})

-- ARGV: from which minute, before which minute. Answers for each of the first minutes of these an array: the minute,
-- and its statistics, as in `stat`.
book.verb('stats', function(args)
    local answer = {}
    local minutes = book.range('ZRANGEBYSCORE', book.key('minutes'), args[1], '(' .. args[2], 'LIMIT', 0, MINUTES)
    for index, minute in ipairs(minutes) do
        answer[index] = {tonumber(minute), book.range('HGETALL', book.full('stat:' .. minute))}
    end
    return answer
end, {reads = true})

-- ARGV: 'alive', or '' for all. Answers for each such worker on the register, in order of registration, an array: id,
-- info, status (both MessagePack), registered_at, seen_at, lease_until, gone.
book.verb('workers', function(args)
    local answer, ids = {}
    if args[1] == 'alive' then
        ids = call('ZINTER', 2, book.key('workers'), book.key('alive'), 'WEIGHTS', 1, 0)
    else
        ids = book.range('ZRANGE', book.key('workers'), 0, -1)
    end
    for index, id in ipairs(ids) do
        answer[index] = book.range('HMGET', book.full('worker:' .. id), 'info', 'status', 'registered_at', 'seen_at',
            'lease_until', 'gone')
        table.insert(answer[index], 1, id)
    end
    return answer
end, {reads = true})
