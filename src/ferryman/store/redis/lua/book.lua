-- The book: what the store knows, the cards that a call has in hand, and how to undo what the call has written.
--
-- Cards are read once a call, changed as tables, and written back together by `book.write()`: a few commands
-- for any number of cards. Every index (the line of its state, counts, deadlines, ...) is derived from the card
-- when it is written, so no verb keeps an index itself. Whatever is written notes how to undo it: a call that
-- fails undoes all.
--
-- LAYOUT. Keys are `<prefix>:<name>`; the prefix, such as {ferryman}, is a hash tag, so that all lie in one slot. A
-- *spot* is 11 hex digits of the job's number of arrival, ':' and its id: where scores are equal, arrival decides.
--
--   seq                    the last number given: arrivals, lock tokens, versions, registrations
--   job                    HASH id -> record: what never changes, but by edit and reprioritise (see cards.lua)
--   life                   HASH id -> life: what changes (see cards.lua). A ready job that never ran has none
--   all                    ZSET 0 spot: every job, in order of arrival (ZREVRANGEBYLEX)
--   waiting                ZSET 0 spot: jobs that wait for others
--   scheduled              ZSET run_at spot
--   ready:<queue>:<prio>   ZSET tag spot: a lane; the tag is 0 unless the queue is fair
--   parked:<key>           ZSET rank spot: jobs whose key is full; the rank is -priority, or 0 for ordered jobs
--   running:<worker>       ZSET started_at spot
--   succeeded, dead, cancelled, expired    ZSET finished_at spot
--   arrived:<state>        ZSET 0 spot: scheduled, parked, dead, cancelled and expired jobs by arrival, for searches
--   deadline               ZSET deadline spot: pending jobs that have one
--   result_until           ZSET result_until spot: jobs whose result is kept for a time of its own
--   tag:<tag>              ZSET 0 spot: jobs with this tag
--   parents:<id>           LIST of ids, as named at enqueue
--   children:<id>          ZSET of spots; score 1: still waits for it, 0: no more
--   attempts:<id>          LIST of MessagePack [number, kind, worker, started_at, finished_at, error, reason]
--   notes:<id>             LIST of MessagePack [at, attempt, text]
--   unique                 HASH unique key -> '<id> <until>'; until is 0 when it has no end of its own
--   key                    HASH key -> 'room used jobs': its places, those taken, its unfinished jobs
--   fading                 ZSET until '<hash> <field>': entries of `unique`, `lock` and `kv` that end with time
--   queue                  HASH queue -> its settings as MessagePack of QueueSettings, or '' if never declared
--   paused                 SET of queues
--   lanes                  HASH '<queue>:<priority>' -> the lane's clock: every lane that has or had jobs
--   tenants:<queue>:<prio> HASH tenant ('' for none) -> its last tag in a fair lane
--   count:<state>          HASH '<queue>:<priority>' -> how many jobs; no entry means 0
--   arranged               HASH queue -> up to which spot its pending jobs are all in arrivals:<queue>, for dropping
--                          the oldest; '' once they all are
--   arrivals:<queue>       ZSET 0 spot
--   passed                 HASH state -> '<finished_at> <spot>', where its line is to be pruned from; until -> the
--                          moment when it is to be pruned from its beginning again
--   minutes                ZSET minute '<minute>': minutes that have statistics
--   stat:<minute>          HASH '<kind> <bucket> <bytes of queue> <queue> <task>' -> count; kinds are enqueued,
--                          succeeded, failed, dead, waited, ran; the bucket is 0 but for the last two
--   workers                ZSET number id: the register, in order of registration
--   alive                  ZSET lease_until id: workers that are not gone
--   worker:<id>            HASH info, status (MessagePack), queues (MessagePack array; none: all), registered_at,
--                          seen_at, lease_until, heard (the last order), gone ('stopped' or 'dead')
--   orders:<worker>        LIST of MessagePack [kind, job, reason, lease, number]; lease 0 but for orders to cancel
--   dropped:<n>            what a call is about to delete, while it lasts
--   bell, bell:done        channels: there may be work, or an order; a job has finished
--   lock, kv               see coordinate.lua
--
-- CARDS (cards.lua, writing.lua; lanes.lua has queues and lanes), their fields. Of the record: id, seq, spot,
-- enqueued_at, first_at (its run_at at enqueue), deadline (0: none), max_attempts, kind (bits of KIND), priority,
-- names (MessagePack of task and queue), task, queue, key (nil: none), lane (see `book.lane`). Of the life: state (numbers as in
-- ferryman.job.State), attempt, lease, deaths, tag, run_at, started_at, finished_at (0: none), missing, warned
-- (last lease that was ordered to be cancelled), result_until (0: none), progress (-1: none), holds (a place of
-- its key), has_children, has_attempts, has_notes (booleans), worker, reason, result (nil: none). A card may be
-- written while a verb goes on, so touch it again before each group of assignments.
--
-- READING
--   book.now, book.prefix                          the time (ms), and what all keys begin with
--   book.key(name), book.full(name)                full names of keys: the first remembers them, so not for ids
--   book.card(id) -> card or nil                   one
--   book.cards(ids) -> list, false where there is none; the same table for the same id, all call long
--   book.rest(card) -> table                       what is rare: room, tenant, tags, unique, period (nil: none)
--   book.body(card)                                MessagePack of arguments, options and key, one after the other
--   book.id_of(spot), book.spot(seq, id)
--   book.lane(queue, priority) -> lane             fields: queue, priority, name, ready (the key of its line)
--   book.settings(queue) -> table                  fair, weights, max_size, overflow; defaults if never declared
--   book.head(line) -> spot, score                 the first of a line (full key), nil if empty; writes first
--   book.range(command, line, ...) -> list         any reading command on a line (full key); writes first
--   book.pending(queue) -> how many pending jobs it has
--   book.later(ms), book.moment(at) -> a moment, none too far away to be stored
--   book.number() -> the next number of `seq`; book.numbers(count) -> the last of so many
-- CHANGING A CARD
--   book.touch(card)                               first; then assign fields of the life. State, run_at, tag, worker
--                                                  and so on move it between lines, counts and indexes by themselves
--   book.rewrite(card, {args=, priority=, deadline=})    changes its record; a new priority is a new lane
--   book.erase(card)                               forgets a card that is not running, and what hangs on it
--   book.write()                                   writes all touched cards. Verbs need not call it at their end
-- CHANGING ALL ELSE (names without prefix; each notes its undo)
--   book.hget(name, field), book.hset(name, field, value), book.hdel(name, field)
--   book.zadd(name, score, member), book.zrem(name, member), book.sadd(name, member), book.srem(name, member)
--   book.push(name, value, most)                   to the end of a list, of which the newest `most` are kept
--   book.drop(name)                                a whole key
--   book.stat(names, kind, bucket, by)             counts in the statistics of this minute
--   book.woke = true                               ring the bell at the end (a job that gets ready does so by itself)
--   book.fail(class, message)                      raises an error of ferryman.errors; all is undone
-- VERBS
--   book.verb(name, handler, {reads = true})       becomes the function <library>_<name>; or {drains = true}: allowed
--                                                  on a full server. library.py finds them, so write them like this
--   handler(args) gets ARGV from the second on, and returns the answer.
-- Across files, as in store/memory: places.enter, places.schedule, places.free_place, ... (places.lua),
-- finish.finish, finish.forget_unique (finish.lua), settle.settle_leased (settle.lua), workers.leave_order
-- (workers.lua).

book.STATES = {
    [0] = 'waiting', 'scheduled', 'ready', 'parked', 'running', 'succeeded', 'dead', 'cancelled', 'expired',
}
book.WAITING, book.SCHEDULED, book.READY, book.PARKED, book.RUNNING = 0, 1, 2, 3, 4
book.SUCCEEDED, book.DEAD, book.CANCELLED, book.EXPIRED = 5, 6, 7, 8

-- Bits of a record's `kind`: what a job is, once and for all. They must be those of record.py.
book.KIND = {
    KEYED = 1, ORDERED = 2, CONTINUE = 4, HOLD = 8,
    UNIQUE = 16,         -- its unique key is given back when it finishes
    UNIQUE_START = 32,   -- its unique key is given back when it is claimed
    UNIQUE_PERIOD = 64,  -- its unique key is taken for a period
    AFTER = 128,         -- it has parents
    TAGGED = 256,
}

local floor = math.floor

-- Larger numbers are not told exactly any more, and some cannot be packed: what is later is as good as never.
local LAST_MOMENT = 2 ^ 53

-- Arguments of one command: Lua's stack holds some thousand.
local MOST_ARGUMENTS = 4000

-- The call under way: how to undo what it has written, a list of functions and their arguments.
local undo, dropped = {}, {}
local starters, writers = {}, {}
local names, names_count = {}, 0
local MOST_NAMES = 1000

-- -- names -----------------------------------------------------------------------------------------

local function full(name)
    return book.prefix .. ':' .. name
end

book.full = full

-- The same for names that come again: they are remembered, from call to call.
function book.key(name)
    local known = names[name]
    if not known then
        if names_count == MOST_NAMES then
            names, names_count = {}, 0
        end
        known = full(name)
        names[name], names_count = known, names_count + 1
    end
    return known
end

-- Those that are remembered, by their short names.
function book.names()
    return names
end

-- -- undoing ---------------------------------------------------------------------------------------

-- Call this, with up to four arguments, should the call fail.
function book.note(inverse, ...)
    undo[#undo + 1] = {inverse, ...}
end

-- A command on one key with any number of arguments, some thousand at a time. Answers the sum of its answers.
function book.many(command, key, list)
    local count, sum = #list, 0
    if count <= MOST_ARGUMENTS then
        return call(command, key, unpack(list))
    end
    for first = 1, count, MOST_ARGUMENTS do
        sum = sum + call(command, key, unpack(list, first, math.min(first + MOST_ARGUMENTS - 1, count)))
    end
    return sum
end

-- Fields of a hash, some thousand at a time; false where there is none.
function book.fields(name, list)
    local key, count = book.key(name), #list
    if count == 0 then
        return {}
    end
    if count <= MOST_ARGUMENTS then
        return call('HMGET', key, unpack(list))
    end
    local values = {}
    for first = 1, count, MOST_ARGUMENTS do
        local part = call('HMGET', key, unpack(list, first, math.min(first + MOST_ARGUMENTS - 1, count)))
        for index = 1, #part do
            values[first + index - 1] = part[index]
        end
    end
    return values
end

-- What cannot be undone has not been done: somebody else has put a key of another type there. So it stops nothing.
function book.roll_back()
    call = redis.pcall
    for index = #undo, 1, -1 do
        pcall(unpack(undo[index]))
    end
    call = redis.call
end

local function add(key, field, by)
    if call('HINCRBY', key, field, by) == 0 then
        call('HDEL', key, field)
    end
end

-- Add to a number of a hash (full key), which has no numbers that are 0. Answers the sum.
function book.count(key, field, by)
    local sum = call('HINCRBY', key, field, by)
    book.note(add, key, field, -by)
    if sum == 0 then
        call('HDEL', key, field)
    end
    return sum
end

-- -- changing what is no card ------------------------------------------------------------------------

function book.hget(name, field)
    return call('HGET', full(name), field) or nil
end

function book.hset(name, field, value)
    local key = full(name)
    local before = call('HGET', key, field)
    call('HSET', key, field, value)
    if before then
        book.note(call, 'HSET', key, field, before)
    else
        book.note(call, 'HDEL', key, field)
    end
end

function book.hdel(name, field)
    local key = full(name)
    local before = call('HGET', key, field)
    if before then
        call('HDEL', key, field)
        book.note(call, 'HSET', key, field, before)
    end
    return before ~= false
end

function book.zadd(name, score, member)
    local key = full(name)
    local before = call('ZSCORE', key, member)
    call('ZADD', key, score, member)
    if before then
        book.note(call, 'ZADD', key, before, member)
    else
        book.note(call, 'ZREM', key, member)
    end
end

function book.zrem(name, member)
    local key = full(name)
    local before = call('ZSCORE', key, member)
    if before then
        call('ZREM', key, member)
        book.note(call, 'ZADD', key, before, member)
    end
    return before ~= false
end

function book.sadd(name, member)
    local key = full(name)
    if call('SADD', key, member) == 1 then
        book.note(call, 'SREM', key, member)
    end
end

function book.srem(name, member)
    local key = full(name)
    if call('SREM', key, member) == 1 then
        book.note(call, 'SADD', key, member)
    end
end

function book.push(name, value, most)
    local key = full(name)
    local length = call('RPUSH', key, value)
    book.note(call, 'RPOP', key)
    while most and length > most do
        book.note(call, 'LPUSH', key, call('LPOP', key))
        length = length - 1
    end
end

-- Take away the first entries of a list.
function book.shift(name, count)
    if count > 0 then
        local key = full(name)
        local first = call('LRANGE', key, 0, count - 1)
        call('LTRIM', key, count, -1)
        for index = 1, #first do
            book.note(call, 'LPUSH', key, first[index])
        end
    end
end

-- A key that is dropped is put aside, so that it can come back, until the call has gone well.
function book.drop(name)
    local key = full(name)
    if call('EXISTS', key) == 1 then
        local aside = full('dropped:' .. #dropped + 1)
        call('RENAME', key, aside)
        book.note(call, 'RENAME', aside, key)
        dropped[#dropped + 1] = aside
    end
end

-- The call has gone well: what was dropped need not come back.
function book.bury()
    for first = 1, #dropped, MOST_ARGUMENTS do
        call('UNLINK', unpack(dropped, first, math.min(first + MOST_ARGUMENTS - 1, #dropped)))
    end
end

function book.moment(at)
    return math.min(at, LAST_MOMENT)
end

-- So many ms from now.
function book.later(ms)
    return book.moment(book.now + ms)
end

-- So many numbers in a row: the last of them.
function book.numbers(count)
    local key = book.key('seq')
    local last = call('INCRBY', key, count)
    book.note(call, 'DECRBY', key, count)
    return last
end

function book.number()
    return book.numbers(1)
end

-- -- a call's life -----------------------------------------------------------------------------------

-- Have this called when a call begins, to forget the last one.
function book.at_start(starter)
    starters[#starters + 1] = starter
end

-- Have this called when the book is written.
function book.at_write(writer)
    writers[#writers + 1] = writer
end

function book.write()
    for index = 1, #writers do
        writers[index]()
    end
end

function book.fail(class, message)
    error({err = 'FERRYMAN ' .. class .. ' ' .. string.gsub(message, '[\r\n]+', ' ')}, 0)
end

-- A call begins.
function book.begin(prefix, now)
    if book.prefix ~= prefix then
        book.prefix, names, names_count = prefix, {}, 0
    end
    if now == '' then
        local time = call('TIME')
        book.now = time[1] * 1000 + floor(time[2] / 1000)
    else
        book.now = tonumber(now)
    end
    book.woke, book.done, undo, dropped = false, false, {}, {}
    for index = 1, #starters do
        starters[index]()
    end
end
