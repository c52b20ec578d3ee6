-- Claim: promote what is due, expire what is late, lease what the plan asks for. And peek: is it worth it?

local KIND = book.KIND
local READY, RUNNING, EXPIRED = book.READY, book.RUNNING, book.EXPIRED
local pack, sub = struct.pack, string.sub

-- Jobs promoted, and jobs expired, in one claim at most, so that no call takes long.
local AT_ONCE = 1000

-- -- workers and lanes --------------------------------------------------------------------------------

-- Raises WorkerGone unless the worker is on the register.
function claim.find_worker(worker)
    if not call('ZSCORE', book.key('alive'), worker) then
        book.fail('WorkerGone', 'worker ' .. worker .. ' is not on the register: it never registered, has left, '
            .. 'or was taken for dead after its lease had ended; its jobs are run by others')
    end
end

local function paused_queues()
    local paused = {}
    for _, queue in ipairs(call('SMEMBERS', book.key('paused'))) do
        paused[queue] = true
    end
    return paused
end

-- The lanes of a worker's queues that have something to claim: their names and depths.
local function lanes_of(worker, paused)
    local served = call('HGET', book.key('worker:' .. worker), 'queues')
    local serves
    if served then
        serves = {}
        for _, queue in ipairs(cmsgpack.unpack(served)) do
            serves[queue] = true
        end
    end
    local found, counts = {}, book.range('HGETALL', book.key('count:ready'))
    for index = 1, #counts, 2 do
        local queue, priority = string.match(counts[index], '^(.*):(%-?%d+)$')
        if not paused[queue] and (not serves or serves[queue]) then
            found[#found + 1] = {queue = queue, priority = tonumber(priority), depth = tonumber(counts[index + 1])}
        end
    end
    return found
end

-- -- what time brings ---------------------------------------------------------------------------------

-- Jobs of a line whose moment has come.
local function due(line)
    local _, first = book.head(book.key(line))
    if not first or first > book.now then
        return {}
    end
    local ids = {}
    local spots = call('ZRANGEBYSCORE', book.key(line), '-inf', book.text(book.now), 'LIMIT', 0, AT_ONCE)
    for index = 1, #spots do
        ids[index] = book.id_of(spots[index])
    end
    return book.cards(ids)
end

local function promote()
    for _, card in ipairs(due('scheduled')) do
        places.enter(card, card.run_at)
    end
end

local function expire()
    for _, card in ipairs(due('deadline')) do
        -- An earlier one may have been its parent, and have taken it along.
        if card.state < RUNNING then
            finish.finish(card, EXPIRED, nil)
        end
    end
end

-- -- leasing ------------------------------------------------------------------------------------------

local function lease(card, worker)
    book.touch(card)
    card.state, card.worker, card.started_at, card.reason = RUNNING, worker, book.now, nil
    card.attempt, card.lease = card.attempt + 1, card.lease + 1
    if card.tag > 0 then
        places.pass(card.lane, card.tag)
    end
    if card.kind % (2 * KIND.UNIQUE_START) >= KIND.UNIQUE_START then
        finish.forget_unique(card, false)
    end
end

-- The numbers in the middle of a ferryman.job.Claim, as MessagePack.
local function numbers_of(lease_number, attempt, max_attempts, deaths, enqueued_at, run_at)
    return pack('>BI4BI4BI4BBBI8BI8', 206, lease_number, 206, attempt, 206, max_attempts, 204, deaths,
        207, enqueued_at, 207, run_at)
end

local HEAD = '\156\217\32'  -- an array of 12, the first of which is a text of 32 characters

-- MessagePack of ferryman.job.Claim, put together from what is stored.
local function claim_of(card)
    return HEAD .. card.id .. card.names
        .. numbers_of(card.lease, card.attempt, card.max_attempts, card.deaths, card.enqueued_at, card.run_at)
        .. book.body(card)
end

-- Most jobs are claimed for the first time and concern nobody else. They differ from others of their batch in
-- id and body alone, so what becomes of them is put together once for all of these.
local function prepare(form, worker)
    form.life, form.life_for = book.first_life(worker, form.first_at), worker
    form.claim = form.names .. numbers_of(1, 1, form.max_attempts, 0, form.enqueued_at, form.first_at)
    form.is_easy = form.is_simple and form.deadline == 0
end

local function put_back(lane, running, spots, arrivals)
    local line, ids = {}, {}
    for index, spot in ipairs(spots) do
        line[2 * index - 1], line[2 * index] = '0', spot
        ids[index] = book.id_of(spot)
    end
    book.many('ZADD', lane.ready, line)
    if arrivals then
        book.many('ZADD', arrivals, line)
    end
    book.many('ZREM', running, spots)
    book.many('HDEL', book.key('life'), ids)
end

local function move_easy(worker, lane, spots, lives, leased)
    local running, count = book.key('running:' .. worker), #spots
    local arrivals = book.is_arranged(lane.queue) and lane.arrivals
    book.note(put_back, lane, running, spots, arrivals)
    book.many('ZREM', lane.ready, spots)
    if arrivals then
        book.many('ZREM', arrivals, spots)
    end
    book.many('ZADD', running, leased)
    book.many('HSET', book.key('life'), lives)
    book.count_jobs(lane, READY, -count)
    book.count_jobs(lane, RUNNING, count)
end

-- Lease jobs from the head of a lane, adding to `claims`.
local function lease_all(worker, lane, spots, claims)
    local ids = {}
    for index = 1, #spots do
        ids[index] = book.id_of(spots[index])
    end
    local records, lives = book.fields('job', ids), book.fields('life', ids)
    local easy, new_lives, leased, now, count = {}, {}, {}, book.text(book.now), 0
    for index = 1, #ids do
        local id, record = ids[index], records[index]
        local form, _, body_size = book.read_record(record)
        if form.life_for ~= worker then
            prepare(form, worker)
        end
        if form.is_easy and not lives[index] and not book.has_in_hand(id) then
            count = count + 1
            easy[count] = spots[index]
            new_lives[2 * count - 1], new_lives[2 * count] = id, form.life
            leased[2 * count - 1], leased[2 * count] = now, spots[index]
            local body_at = form.body_at
            claims[#claims + 1] = HEAD .. id .. form.claim .. sub(record, body_at, body_at + body_size - 1)
        else
            local card = book.adopt(id, record, lives[index])
            if card.deadline > 0 and card.deadline <= book.now then
                finish.finish(card, EXPIRED, nil)
            else
                lease(card, worker)
                claims[#claims + 1] = claim_of(card)
            end
        end
    end
    if count > 0 then
        move_easy(worker, lane, easy, new_lives, leased)
    end
end

local looks  -- spots that the call under way may still look at beyond a first try in each lane

book.at_start(function()
    looks = AT_ONCE
end)

-- Where many jobs are too late, the rest of them is left to the next claim.
local function take(worker, lane, count, claims)
    local most = #claims + count
    repeat
        local asked = most - #claims
        local spots = book.range('ZRANGE', lane.ready, 0, asked - 1)
        lease_all(worker, lane, spots, claims)
        if #spots < asked then
            return
        end
        looks = looks - asked
    until #claims == most or looks <= 0
end

-- How many jobs are ready in each lane of a plan. This names all lanes that the worker has ever seen, most of them twice.
local function depths_of(plan)
    local depths, names = {}, {}
    for _, line in ipairs(plan) do
        local name = line[1] .. ':' .. line[2]
        if not depths[name] then
            depths[name], names[#names + 1] = 0, name
        end
    end
    book.write()
    for index, depth in ipairs(book.fields('count:ready', names)) do
        depths[names[index]] = tonumber(depth or 0)
    end
    return depths
end

-- -- verbs --------------------------------------------------------------------------------------------

local function next_due()
    local _, moment = book.head(book.key('scheduled'))
    return moment
end

-- The lanes as [queue, priority, depth, since when the first job is ready].
local function states_of(lanes)
    local states, heads, ids = {}, {}, {}
    for _, lane in ipairs(lanes) do
        local spot = book.head(book.key('ready:' .. lane.queue .. ':' .. lane.priority))
        if spot then
            heads[#heads + 1], ids[#ids + 1] = lane, book.id_of(spot)
        end
    end
    for index, card in ipairs(book.cards(ids)) do
        local lane = heads[index]
        states[index] = {lane.queue, lane.priority, lane.depth, card.run_at}
    end
    return states
end

-- ARGV: the worker, how many jobs at most; MessagePack of the plan, as arrays [queue, priority, count].
-- Answers MessagePack of [jobs, lanes, when the next scheduled job is due or nil, now], where jobs are as
-- ferryman.job.Claim and lanes are [queue, priority, depth, oldest].
book.verb('claim', function(args)
    local worker, limit, plan = args[1], tonumber(args[2]), cmsgpack.unpack(args[3])
    claim.find_worker(worker)
    promote()
    expire()
    local paused, depths, claims = paused_queues(), depths_of(plan), {}
    for _, line in ipairs(plan) do
        local name, before = line[1] .. ':' .. line[2], #claims
        local count = math.min(line[3], limit - before, depths[name])
        if count > 0 and not paused[line[1]] then
            take(worker, book.lane(line[1], line[2]), count, claims)
            depths[name] = depths[name] - (#claims - before)
        end
    end
    local states = states_of(lanes_of(worker, paused))
    return '\148' .. pack('>BI4', 221, #claims) .. table.concat(claims) .. cmsgpack.pack(states, next_due(), book.now)
end, {drains = true})

-- ARGV: the worker. Answers MessagePack of [whether there is work, when the next is due or nil, whether there
-- are orders, now].
book.verb('peek', function(args)
    local worker = args[1]
    claim.find_worker(worker)
    local moment = next_due()
    local _, late = book.head(book.key('deadline'))
    local is_due = moment and moment <= book.now or late and late <= book.now or false
    local work = is_due or #lanes_of(worker, paused_queues()) > 0
    return '\148' .. cmsgpack.pack(work, moment, workers.has_orders(worker), book.now)
end, {reads = true})
