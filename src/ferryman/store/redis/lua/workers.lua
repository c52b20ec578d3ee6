-- The register of workers: leases, orders, and rescuing the jobs of those that died.
--
-- A lease belongs to the worker: renewing it is one number, however many jobs it holds.

local READY, RUNNING, DEAD = book.READY, book.RUNNING, book.DEAD
local CRASHED = 6  -- ferryman.job.OutcomeKind

-- -- orders -------------------------------------------------------------------------------------------

-- The number of a worker's next order. What the worker has heard may be more than this server knows, after a failover
-- that has lost the last moments; so it is the time, unless that was set back.
local function next_number(worker)
    local last, heard = call('LINDEX', book.full('orders:' .. worker), -1), book.hget('worker:' .. worker, 'heard')
    return math.max(book.now, (last and cmsgpack.unpack(last)[5] or 0) + 1, tonumber(heard or 0) + 1)
end

-- Leave an order for a worker to find with its next heartbeat. `lease` is that of the job to cancel, else 0.
function workers.leave_order(worker, kind, job, reason, lease)
    book.push('orders:' .. worker, '\149' .. cmsgpack.pack(kind, job, reason, lease, next_number(worker)))
    book.woke = true
end

-- Orders that were not heard yet, the oldest first, each as {packed, job, lease, number}.
local function orders_of(worker)
    local orders = {}
    for index, packed in ipairs(call('LRANGE', book.key('orders:' .. worker), 0, -1)) do
        local order = cmsgpack.unpack(packed)
        orders[index] = {packed = packed, job = order[2], lease = order[4], number = order[5]}
    end
    return orders
end

-- As MessagePack, all but those to cancel a lease that is over: the job may run under another.
local function standing(worker, orders)
    local ids, stand = {}, {}
    for _, order in ipairs(orders) do
        if order.lease > 0 then
            ids[#ids + 1] = order.job
        end
    end
    book.cards(ids)
    for _, order in ipairs(orders) do
        local card = order.lease > 0 and book.card(order.job)
        if order.lease == 0 or settle.is_leased(card, worker, order.lease) then
            stand[#stand + 1] = order.packed
        end
    end
    return stand
end

function workers.has_orders(worker)
    return #standing(worker, orders_of(worker)) > 0
end

-- -- coming and going -----------------------------------------------------------------------------------

local function write_fields(worker, fields)
    for field, value in pairs(fields) do
        book.hset('worker:' .. worker, field, value)
    end
end

-- ARGV: the worker, its lease in ms; MessagePack of its WorkerInfo and WorkerStatus; MessagePack of its queues,
-- or ''. Answers nothing.
book.verb('register', function(args)
    local worker, lease_until, now = args[1], book.later(tonumber(args[2])), book.text(book.now)
    local is_new = not call('ZSCORE', book.key('workers'), worker)
    write_fields(worker, {info = args[3], seen_at = now, lease_until = book.text(lease_until)})
    if args[5] == '' then
        book.hdel('worker:' .. worker, 'queues')
    else
        book.hset('worker:' .. worker, 'queues', args[5])
    end
    if is_new then
        write_fields(worker, {status = args[4], registered_at = now})
        book.zadd('workers', book.number(), worker)
    end
    -- Else it is the second try of a worker that got no answer to the first.
    if not book.hget('worker:' .. worker, 'gone') then
        book.zadd('alive', book.text(lease_until), worker)
    end
end, {drains = true})

-- ARGV: the worker, its lease in ms, MessagePack of its WorkerStatus, the number of the last order that it has heard.
-- Answers the number of the last order, and the orders, each as MessagePack of [kind, job, reason, lease, number].
book.verb('heartbeat', function(args)
    local worker, lease_until, heard = args[1], book.text(book.later(tonumber(args[2]))), tonumber(args[4])
    claim.find_worker(worker)
    write_fields(worker, {
        status = args[3], seen_at = book.text(book.now), lease_until = lease_until, heard = args[4],
    })
    book.zadd('alive', lease_until, worker)
    local orders, unheard, last = orders_of(worker), {}, heard
    for _, order in ipairs(orders) do
        if order.number > heard then
            unheard[#unheard + 1], last = order, order.number
        end
    end
    book.shift('orders:' .. worker, #orders - #unheard)
    local answer = standing(worker, unheard)
    table.insert(answer, 1, book.text(last))
    return answer
end, {drains = true})

-- ARGV: the worker. Answers MessagePack of [[id, lease], ...], the jobs that it runs.
book.verb('holding', function(args)
    local ids, held = {}, {}
    for _, spot in ipairs(call('ZRANGE', book.key('running:' .. args[1]), 0, -1)) do
        ids[#ids + 1] = book.id_of(spot)
    end
    for index, card in ipairs(book.cards(ids)) do
        held[index] = {card.id, card.lease}
    end
    return cmsgpack.pack(held)
end, {reads = true})

-- Settle all that a worker runs as crashed. Answers how many jobs will run again, and how many died.
local function take_back(worker, problem, deaths)
    local spots, ids = book.range('ZRANGE', book.key('running:' .. worker), 0, -1), {}
    table.sort(spots)
    for index, spot in ipairs(spots) do
        ids[index] = book.id_of(spot)
    end
    local again, dead = 0, 0
    for _, card in ipairs(book.cards(ids)) do
        local ran_us = math.max(0, book.now - card.started_at) * 1000
        local outcome = {kind = CRASHED, ran_us = ran_us, delay = 0, problem = problem}
        local state = settle.settle_leased(card, outcome, deaths)
        again = again + (state == READY and 1 or 0)
        dead = dead + (state == DEAD and 1 or 0)
    end
    return again, dead
end

local function strike_off(worker, gone)
    book.hset('worker:' .. worker, 'gone', gone)
    book.zrem('alive', worker)
    book.drop('orders:' .. worker)
end

local function is_alive(worker)
    return call('ZSCORE', book.key('alive'), worker) ~= false
end

-- ARGV: the worker. Answers nothing.
book.verb('leave', function(args)
    local worker = args[1]
    if is_alive(worker) then
        take_back(worker, {'WorkerLeft', 'worker ' .. worker .. ' left before the job was done', ''}, 0)
        strike_off(worker, 'stopped')
    end
end, {drains = true})

-- Workers whose lease has ended (if `late`), and those named that are alive, in the order of their registration.
local function find_lost(named, late)
    local lost, seen = {}, {}
    local function add(worker)
        if not seen[worker] and is_alive(worker) then
            seen[worker] = tonumber(call('ZSCORE', book.key('workers'), worker))
            lost[#lost + 1] = worker
        end
    end
    for _, worker in ipairs(late and call('ZRANGEBYSCORE', book.key('alive'), '-inf', book.text(book.now)) or {}) do
        add(worker)
    end
    for _, worker in ipairs(named) do
        add(worker)
    end
    table.sort(lost, function(one, other) return seen[one] < seen[other] end)
    return lost
end

-- ARGV: MessagePack of workers that are known to be dead; 1 if those whose lease has ended are meant, too. Answers MessagePack of [[worker, again, dead], ...].
book.verb('rescue', function(args)
    local rescued = {}
    for _, worker in ipairs(find_lost(cmsgpack.unpack(args[1]), args[2] == '1')) do
        local again, dead = take_back(worker, {'WorkerLost', 'worker ' .. worker .. ' died', ''}, 1)
        strike_off(worker, 'dead')
        rescued[#rescued + 1] = {worker, again, dead}
    end
    return cmsgpack.pack(rescued)
end, {drains = true})

-- ARGV: MessagePack of workers, and of the order as [kind, job, reason]. Answers for how many of them it was left.
book.verb('order', function(args)
    local named, order, count, seen = cmsgpack.unpack(args[1]), cmsgpack.unpack(args[2]), 0, {}
    local card = order[2] and book.card(order[2])
    for _, worker in ipairs(named) do
        if not seen[worker] and is_alive(worker) then
            seen[worker] = true
            workers.leave_order(worker, order[1], order[2], order[3], card and card.lease or 0)
            count = count + 1
        end
    end
    return count
end, {drains = true})
