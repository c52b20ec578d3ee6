-- Settle: what became of leased jobs. The fence is the worker and the number of the lease.

local READY, RUNNING, SUCCEEDED, DEAD, CANCELLED = book.READY, book.RUNNING, book.SUCCEEDED, book.DEAD, book.CANCELLED
local KIND = book.KIND
local floor = math.floor

-- ferryman.job.OutcomeKind
local DONE, RETRY, DIED, SNOOZED, STOPPED, RELEASED, CRASHED = 0, 1, 2, 3, 4, 5, 6
local RERUNS = {[RETRY] = true, [SNOOZED] = true, [RELEASED] = true, [CRASHED] = true}

local MAX_DEATHS = 3
local MOST_NOTES = 1000     -- notes of a job that are kept, and recorded attempts: the newest
local LONGEST_CAUSE = 200   -- characters

-- The bucket of a duration in µs: ferryman.policy.latency.bucket_of.
local function bucket_of(us)
    if us < 8 then
        return us < 0 and 0 or us
    end
    local _, length = math.frexp(us)
    local shift = length - 4
    return shift * 8 + floor(us / 2 ^ shift)
end

local function started(outcome)
    return math.max(1, book.now - floor(outcome.ran_us / 1000))
end

-- Count an attempt that ended into the histograms of this minute.
local function measure(card, outcome)
    book.stat(card.names, 'waited', bucket_of((started(outcome) - card.run_at) * 1000), 1)
    book.stat(card.names, 'ran', bucket_of(outcome.ran_us), 1)
end

-- The first characters of a text in UTF-8.
local function shorten(text, most)
    local count, at = 0, 1
    while at <= #text and count < most do
        local byte = string.byte(text, at)
        at = at + (byte < 128 and 1 or byte < 224 and 2 or byte < 240 and 3 or 4)
        count = count + 1
    end
    return string.sub(text, 1, at - 1)
end

-- As ferryman.job.ErrorInfo.cause.
local function cause_of(problem)
    local kind, message = problem[1], problem[2]
    local first_line = shorten(string.match(message, '^[^\n]*'), LONGEST_CAUSE)
    return first_line == '' and kind or kind .. ': ' .. first_line
end

-- -- outcomes ---------------------------------------------------------------------------------------

local function succeed(card, outcome)
    measure(card, outcome)
    book.stat(card.names, 'succeeded', 0, 1)
    book.touch(card)
    card.started_at = started(outcome)
    card.result = outcome.result
    if outcome.keep_result and outcome.result then
        card.result_until = book.later(outcome.keep_result)
    end
    finish.finish(card, SUCCEEDED, nil)
end

-- As if it had not been claimed: same tag, same moment, and it still has the place of its key. In a queue that is fair
-- no more, it shall not wait behind all that come without a tag.
local function back_to_its_place(card)
    card.state = READY
    if not book.settings(card.lane.queue).fair then
        card.tag = 0
    end
    return READY
end

-- While it waits, only an ordered job keeps its key's place.
local function put_off(card, delay)
    places.schedule(card, book.later(delay))
    if card.kind % (2 * KIND.ORDERED) < KIND.ORDERED then
        places.free_place(card)
    end
    return card.state
end

local function record_attempt(card, outcome, problem)
    local record = cmsgpack.pack(card.attempt, outcome.kind, card.worker, started(outcome), book.now, problem,
        outcome.reason)
    book.push('attempts:' .. card.id, '\151' .. record, MOST_NOTES)
    card.has_attempts = true
end

local function may_run_again(card, kind)
    return kind ~= DIED and card.attempt < card.max_attempts and card.deaths < MAX_DEATHS
end

local function fail(card, outcome, problem)
    measure(card, outcome)
    book.stat(card.names, 'failed', 0, 1)
    if may_run_again(card, outcome.kind) then
        if outcome.kind == CRASHED then
            return back_to_its_place(card)
        elseif outcome.delay > 0 then
            return put_off(card, outcome.delay)
        end
        places.enter(card, book.now)
        return card.state
    end
    book.stat(card.names, 'dead', 0, 1)
    finish.finish(card, DEAD, problem and cause_of(problem) or outcome.reason)
    return DEAD
end

-- Carry out an outcome other than success. Answers where the job went. `deaths` is what a crash counts for.
function settle.settle_leased(card, outcome, deaths)
    book.touch(card)
    if card.warned == card.lease and RERUNS[outcome.kind] then
        outcome.kind, outcome.reason = STOPPED, 'cancelled while it ran'
    end
    local kind = outcome.kind
    if kind == RELEASED then
        card.attempt, card.worker, card.started_at = card.attempt - 1, nil, 0
        finish.take_back_unique(card)
        return back_to_its_place(card)
    end
    local problem = outcome.problem
    if not problem and kind == CRASHED then
        problem = {'Crashed', 'its executor died', ''}
    end
    record_attempt(card, outcome, problem)
    if kind == SNOOZED then
        card.attempt, card.reason = card.attempt - 1, outcome.reason
        return put_off(card, outcome.delay)
    end
    card.started_at = started(outcome)
    if kind == STOPPED then
        finish.finish(card, CANCELLED, outcome.reason)
        return CANCELLED
    end
    if kind == CRASHED then
        card.deaths = card.deaths + deaths
    end
    return fail(card, outcome, problem)
end

-- -- jobs that have succeeded and concern nobody else -------------------------------------------------

local buckets  -- of durations met in this call

book.at_start(function()
    buckets = {}
end)

local function tally(counts, us)
    local bucket = buckets[us]
    if not bucket then
        bucket = bucket_of(us)
        buckets[us] = bucket
    end
    counts[bucket] = (counts[bucket] or 0) + 1
end

-- Settles one without a card, if it is such a job and may be settled, by adding to the lists of `easy`.
local function succeed_easily(easy, worker, fields, record, life)
    local form, seq = book.read_record(record)
    local seen = book.glance(life)
    if not (form.is_simple and seen.is_alone and seen.state == RUNNING and seen.lease == fields[2]
            and seen.worker == worker) then
        return false
    end
    local id, ran_us, count = fields[1], fields[4], easy.count + 1
    local spot = book.spot(seq, id)
    local began = math.max(1, book.now - floor(ran_us / 1000))
    easy.count, easy.known[id] = count, true
    easy.ids[count], easy.before[count], easy.spots[count] = id, life, spot
    easy.lives[2 * count - 1], easy.lives[2 * count] = id, book.last_life(life, began, fields[5])
    easy.ended[2 * count - 1], easy.ended[2 * count] = easy.now, spot
    tally(book.counts_of(form.trade, 'waited'), (began - seen.run_at) * 1000)
    tally(book.counts_of(form.trade, 'ran'), ran_us)
    form.succeeded = (form.succeeded or 0) + 1
    easy.forms[form] = true
    return true
end

local function undo_easy(running, easy)
    local started, before = {}, {}
    for index, life in ipairs(easy.before) do
        started[2 * index - 1], started[2 * index] = book.text(book.glance(life).started_at), easy.spots[index]
        before[2 * index - 1], before[2 * index] = easy.ids[index], life
    end
    book.many('ZREM', book.key('succeeded'), easy.spots)
    book.many('ZADD', running, started)
    book.many('HSET', book.key('life'), before)
end

local function take_away(worker, easy)
    local running = book.key('running:' .. worker)
    book.note(undo_easy, running, easy)
    book.many('ZREM', running, easy.spots)
    book.many('ZADD', book.key('succeeded'), easy.ended)
    book.many('HSET', book.key('life'), easy.lives)
    for form in pairs(easy.forms) do
        book.count_jobs(form.lane, RUNNING, -form.succeeded)
        book.count_jobs(form.lane, SUCCEEDED, form.succeeded)
        book.stat(form.names, 'succeeded', 0, form.succeeded)
        form.succeeded = 0
    end
    book.done = true
end

-- -- verbs ------------------------------------------------------------------------------------------

function settle.is_leased(card, worker, lease)
    return card and card.state == RUNNING and card.lease == lease and card.worker == worker
end

local function settle_one(worker, fields, record, life)
    local card = book.adopt(fields[1], record, life)
    if not settle.is_leased(card, worker, fields[2]) then
        return false
    end
    local outcome = {
        kind = fields[3], ran_us = fields[4], result = fields[5], delay = fields[6], problem = fields[7],
        reason = fields[8], keep_result = fields[9],
    }
    if outcome.kind == DONE then
        succeed(card, outcome)
    else
        settle.settle_leased(card, outcome, 1)
    end
    return true
end

-- ARGV: the worker; MessagePack of the outcomes, as arrays [id, lease, kind, ran_us, result, delay, error, reason,
-- keep_result]. Answers a string with '1' for each that was accepted and '0' for each that was lost.
book.verb('settle', function(args)
    local worker, outcomes = args[1], cmsgpack.unpack(args[2])
    local ids, verdict = {}, {}
    for index = 1, #outcomes do
        ids[index] = outcomes[index][1]
    end
    book.write()
    local records, lives = book.fields('job', ids), book.fields('life', ids)
    local easy = {
        known = {}, forms = {}, ids = {}, spots = {}, before = {}, lives = {}, ended = {}, count = 0,
        now = book.text(book.now),
    }
    for index = 1, #outcomes do
        local fields, record, life = outcomes[index], records[index], lives[index]
        local id, accepted = fields[1], false
        -- Without a life, it has never run; twice in one batch, the first outcome has it.
        if life and not easy.known[id] then
            accepted = fields[3] == DONE and not fields[9] and not book.has_in_hand(id)
                    and succeed_easily(easy, worker, fields, record, life)
                or settle_one(worker, fields, record, life)
        end
        verdict[index] = accepted and '1' or '0'
    end
    if easy.count > 0 then
        take_away(worker, easy)
    end
    return table.concat(verdict)
end, {drains = true})

-- ARGV: the worker; MessagePack of the notes, as arrays [id, lease, progress, text], their texts cut to size
-- already. Answers nothing.
book.verb('annotate', function(args)
    local worker, notes = args[1], cmsgpack.unpack(args[2])
    for _, note in ipairs(notes) do
        local id, lease, progress, text = note[1], note[2], note[3], note[4]
        local card = book.card(id)
        if settle.is_leased(card, worker, lease) then
            book.touch(card)
            if progress then
                card.progress = progress
            end
            if text then
                book.push('notes:' .. id, cmsgpack.pack({book.now, card.attempt, text}), MOST_NOTES)
                card.has_notes = true
            end
        end
    end
end, {drains = true})
