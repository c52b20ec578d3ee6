-- Lanes: names, queues and lanes, and what is counted of them.

local NO_SETTINGS = {fair = false, weights = {}, overflow = 'reject'}

-- The call under way.
local trades, lanes, settings, numerals

book.at_start(function()
    trades, lanes, settings, numerals = {}, {}, {}, {[0] = '0'}
    book.lanes, book.trades, book.has_counted = lanes, trades, false
end)

-- -- names -----------------------------------------------------------------------------------------

local LOW = {}
for n = 0, 255 do
    LOW[n] = string.format('%02x:', n)
end
local high, high_of = '', -1

function book.spot(seq, id)
    local low = seq % 256
    local above = (seq - low) / 256
    if above ~= high_of then
        high, high_of = string.format('%09x', above), above
    end
    return high .. LOW[low] .. id
end

function book.id_of(spot)
    return string.sub(spot, 13)
end

-- Numbers as text: what Redis makes of a number by itself takes long.
local function text(number)
    local known = numerals[number]
    if not known then
        known = string.format('%.17g', number)
        numerals[number] = known
    end
    return known
end

book.text = text

-- -- queues and lanes --------------------------------------------------------------------------------

function book.settings(queue)
    local known = settings[queue]
    if not known then
        local stored = call('HGET', book.key('queue'), queue)
        known = stored and stored ~= '' and cmsgpack.unpack(stored) or NO_SETTINGS
        settings[queue] = known
    end
    return known
end

-- They may have been changed.
function book.forget_settings()
    settings = {}
end

function book.lane(queue, priority)
    local name = queue .. ':' .. priority
    local lane = lanes[name]
    if not lane then
        lane = {
            queue = queue, priority = priority, name = name, ready = book.key('ready:' .. name),
            changes = {}, arrivals = book.key('arrivals:' .. queue),
        }
        lanes[name] = lane
    end
    return lane
end

-- A task and a queue, of which a batch has few.
function book.trade_of(task_and_queue)
    local trade = trades[task_and_queue]
    if not trade then
        local task, queue = cmsgpack.unpack(task_and_queue)
        trade = {
            task = task, queue = queue, counts = {},
            suffix = ' ' .. #queue .. ' ' .. queue .. ' ' .. task,
        }
        trades[task_and_queue] = trade
    end
    return trade
end

function book.pending(queue)
    book.write()
    local total, head = 0, queue .. ':'
    for state = book.WAITING, book.PARKED do
        local counts = call('HGETALL', book.key('count:' .. book.STATES[state]))
        for index = 1, #counts, 2 do
            local name = counts[index]
            if string.sub(name, 1, #head) == head and string.match(name, '^(.*):') == queue then
                total = total + counts[index + 1]
            end
        end
    end
    return total
end

-- -- counting ----------------------------------------------------------------------------------------

-- So many jobs more (or fewer) of a lane are in a state.
function book.count_jobs(lane, state, by)
    lane.changes[state] = (lane.changes[state] or 0) + by
    book.has_counted = true
end

-- The counts of a kind of statistics of a trade, by bucket, to be added to.
function book.counts_of(trade, kind)
    local counts = trade.counts[kind]
    if not counts then
        counts = {}
        trade.counts[kind] = counts
    end
    book.has_counted = true
    return counts
end

-- Count something in the statistics of this minute.
function book.stat(names, kind, bucket, by)
    local counts = book.counts_of(book.trade_of(names), kind)
    counts[bucket] = (counts[bucket] or 0) + by
end
