-- Cards: reading jobs, and changing them.

-- RECORD: seq, size of the body, size of the names; then what jobs of one batch have in common: enqueued_at,
-- run_at, deadline, max_attempts, kind, priority, size of the key, and the names (MessagePack of task and
-- queue); then the body (MessagePack of arguments, options and key, as a `ferryman.job.Claim` ends), and the
-- rest (a MessagePack map of what is rare, or nothing).
local RECORD_HEAD, RECORD_FORM = '>I8I4I4', '>I8I8I8I4I2bI4'
local HEAD_SIZE = struct.size(RECORD_HEAD)
local NAMES_AT = HEAD_SIZE + struct.size(RECORD_FORM)
local MOST_ATTEMPTS = 2 ^ 32 - 1

-- LIFE: state, started_at, finished_at, size of the result; bits, lease, run_at, size of the worker's name;
-- size of the reason, attempt, deaths, tag, missing, warned, result_until, progress. Then worker, reason and
-- result. The sizes of reason and result are one more than they are (0: none). A job that succeeds changes only
-- the first group.
local LIFE = '>BI8I8I4I2I4I8I2I4I4BdI4I4I8d'
local LIFE_SIZE = struct.size(LIFE)
local LIFE_GROUP, LIFE_HEAD = '>BI8I8I4', '>BI8I8I4I2I4I8I2'
local LIFE_GROUP_END = struct.size(LIFE_GROUP) + 1
local HOLDS, CHILDREN, ATTEMPTS, NOTES = 1, 2, 4, 8

local WAITING, SCHEDULED, READY, PARKED, RUNNING, SUCCEEDED = 0, 1, 2, 3, 4, 5
local KIND = book.KIND
local sub, pack, unpack_struct = string.sub, struct.pack, struct.unpack

-- What a card has unless it says otherwise: most jobs are plain.
local PLAIN = {__index = {
    state = READY, attempt = 0, lease = 0, deaths = 0, tag = 0, started_at = 0, finished_at = 0, missing = 0,
    warned = 0, result_until = 0, progress = -1, holds = false, has_children = false, has_attempts = false,
    has_notes = false,
}}

-- The call under way.
local cards, touched, forms, glances

book.at_start(function()
    cards, touched, forms, glances = {}, {}, {}, {}
end)

-- -- reading -----------------------------------------------------------------------------------------

local function read_life(card, life)
    local state, started_at, finished_at, result_size, bits, lease, run_at, worker_size, reason_size, attempt, deaths,
        tag, missing, warned, result_until, progress = unpack_struct(LIFE, life)
    card.state, card.lease, card.attempt, card.tag, card.run_at = state, lease, attempt, tag, run_at
    card.started_at = started_at
    if bits ~= 0 then
        card.holds = bits % 2 >= 1
        card.has_children = bits % 4 >= CHILDREN
        card.has_attempts = bits % 8 >= ATTEMPTS
        card.has_notes = bits % 16 >= NOTES
    end
    if finished_at ~= 0 then card.finished_at = finished_at end
    if deaths ~= 0 then card.deaths = deaths end
    if missing ~= 0 then card.missing = missing end
    if warned ~= 0 then card.warned = warned end
    if result_until ~= 0 then card.result_until = result_until end
    if progress ~= -1 then card.progress = progress end
    local at = LIFE_SIZE
    if worker_size > 0 then
        card.worker = sub(life, at + 1, at + worker_size)
        at = at + worker_size
    end
    if reason_size > 0 then
        card.reason = sub(life, at + 1, at + reason_size - 1)
        at = at + reason_size - 1
    end
    if result_size > 0 then
        card.result = sub(life, at + 1)
    end
end

-- The fields of a life, for those who need no card.
function book.fields_of(life)
    local fields = setmetatable({}, PLAIN)
    read_life(fields, life)
    return fields
end

function book.pack_life(card)
    local worker, reason, result = card.worker or '', card.reason, card.result
    local bits = (card.holds and HOLDS or 0) + (card.has_children and CHILDREN or 0)
        + (card.has_attempts and ATTEMPTS or 0) + (card.has_notes and NOTES or 0)
    return pack(LIFE, card.state, card.started_at, card.finished_at, result and #result + 1 or 0, bits, card.lease,
        card.run_at, #worker, reason and #reason + 1 or 0, card.attempt, card.deaths, card.tag, card.missing,
        card.warned, card.result_until, card.progress) .. worker .. (reason or '') .. (result or '')
end

-- What a record has in common with others of its batch, read once for all of them.
local function read_form(common)
    local enqueued_at, first_at, deadline, max_attempts, kind, priority, key_size = unpack_struct(RECORD_FORM, common)
    local names = sub(common, NAMES_AT - HEAD_SIZE + 1)
    local trade = book.trade_of(names)
    local form = {
        enqueued_at = enqueued_at, first_at = first_at, deadline = deadline, max_attempts = max_attempts, kind = kind,
        priority = priority, key_size = key_size, names = names, trade = trade,
        lane = book.lane(trade.queue, priority),
        -- Where the body begins.
        body_at = HEAD_SIZE + #common + 1,
        -- Nothing but its lane and the statistics will hear of its end.
        is_simple = kind % 2 < KIND.KEYED and kind % KIND.AFTER < KIND.UNIQUE,
    }
    forms[common] = form
    return form
end

-- The form of a record, its seq, and the size of its body.
local function read_record(record)
    local seq, body_size, names_size = unpack_struct(RECORD_HEAD, record)
    local common = sub(record, HEAD_SIZE + 1, NAMES_AT + names_size)
    return forms[common] or read_form(common), seq, body_size
end

book.read_record = read_record

-- The life of a job that is being claimed for the first time.
function book.first_life(worker, run_at)
    return pack(LIFE, RUNNING, book.now, 0, 0, 0, 1, run_at, #worker, 0, 1, 0, 0, 0, 0, 0, -1) .. worker
end

-- What settling has to know of a life: state, lease, run_at, started_at, worker, and whether nobody waits for
-- its end. Of jobs that were claimed together, all have the same.
function book.glance(life)
    local seen = glances[life]
    if not seen then
        local state, started_at, _, _, bits, lease, run_at, worker_size = unpack_struct(LIFE_HEAD, life)
        seen = {
            state = state, lease = lease, run_at = run_at, started_at = started_at, is_alone = bits % ATTEMPTS == 0,
            worker = sub(life, LIFE_SIZE + 1, LIFE_SIZE + worker_size),
        }
        glances[life] = seen
    end
    return seen
end

-- The life of a running job, after it has succeeded.
function book.last_life(life, started_at, result)
    return pack(LIFE_GROUP, SUCCEEDED, started_at, book.now, result and #result + 1 or 0)
        .. sub(life, LIFE_GROUP_END) .. (result or '')
end

local function read_card(id, record, life)
    local form, seq, body_size = read_record(record)
    local trade = form.trade
    local card = setmetatable({
        id = id, seq = seq, spot = book.spot(seq, id), record = record, life = life, enqueued_at = form.enqueued_at,
        first_at = form.first_at, deadline = form.deadline, max_attempts = form.max_attempts, kind = form.kind,
        priority = form.priority, names = form.names, trade = trade, task = trade.task, queue = trade.queue,
        lane = form.lane, run_at = form.first_at,
        -- Room for what is set later.
        state = nil, attempt = nil, lease = nil, tag = nil, worker = nil, started_at = nil, finished_at = nil,
        touched = nil, was_state = nil, was_line = nil, was_rank = nil, was_lane = nil, result = nil,
    }, PLAIN)
    if form.kind % 2 == KIND.KEYED then
        local body_end = form.body_at + body_size - 1
        card.key = sub(record, body_end - form.key_size + 1, body_end)
    end
    if life then
        read_life(card, life)
    end
    cards[id] = card
    return card
end

function book.cards(ids)
    local found, unread = {}, {}
    for index = 1, #ids do
        if cards[ids[index]] == nil then
            unread[#unread + 1] = ids[index]
        end
    end
    if #unread > 0 then
        local records, lives = book.fields('job', unread), book.fields('life', unread)
        for index = 1, #unread do
            if records[index] then
                read_card(unread[index], records[index], lives[index])
            else
                cards[unread[index]] = false
            end
        end
    end
    for index = 1, #ids do
        found[index] = cards[ids[index]] or false
    end
    return found
end

function book.card(id)
    local known = cards[id]
    if known == nil then
        known = book.cards({id})[1]
    end
    return known or nil
end

-- Whether a card of this id has been read: then what the server has may be out of date.
function book.has_in_hand(id)
    return cards[id] ~= nil
end

-- These ids are there now, though they may have been looked for in vain.
function book.forget_missing(ids)
    for index = 1, #ids do
        cards[ids[index]] = cards[ids[index]] or nil
    end
end

-- A card of what has just been read.
function book.adopt(id, record, life)
    return cards[id] or read_card(id, record, life)
end

-- Where the body of a record begins and ends.
local function body_of(record)
    local form, _, body_size = read_record(record)
    return form.body_at, form.body_at + body_size - 1
end

function book.body(card)
    local first, last = body_of(card.record)
    return sub(card.record, first, last)
end

function book.rest(card)
    if not card.rare then
        local _, last = body_of(card.record)
        local rest = sub(card.record, last + 1)
        card.rare = rest == '' and {} or cmsgpack.unpack(rest)
    end
    return card.rare
end

function book.range(command, line, ...)
    book.write()
    return call(command, line, ...)
end

function book.head(line)
    book.write()
    local first = call('ZRANGE', line, 0, 0, 'WITHSCORES')
    return first[1], tonumber(first[2])
end

-- -- changing ----------------------------------------------------------------------------------------

-- The line in which a card stands, and its rank there.
function book.place(card)
    local state = card.state
    if state == READY then
        return card.lane.ready, card.tag
    elseif state == RUNNING then
        return book.key('running:' .. card.worker), card.started_at
    elseif state > RUNNING then
        return book.key(book.STATES[state]), card.finished_at
    elseif state == SCHEDULED then
        return book.key('scheduled'), card.run_at
    elseif state == PARKED then
        local ordered = card.kind % (2 * KIND.ORDERED) >= KIND.ORDERED
        return book.full('parked:' .. card.key), ordered and 0 or -card.priority
    end
    return book.key('waiting'), 0
end

-- When its result ends, if it has one that does.
function book.result_end(card)
    return card.result and card.result_until > 0 and card.result_until or nil
end

function book.touch(card)
    if card.touched then
        return
    end
    card.touched = true
    touched[#touched + 1] = card
    if not card.born then
        card.was_line, card.was_rank = book.place(card)
        card.was_state, card.was_lane = card.state, card.lane
        card.was_deadline = card.deadline > 0 and card.state < RUNNING and card.deadline or nil
        card.was_result_end = card.result_until > 0 and book.result_end(card) or nil
    end
end

-- Make a card of a record that is not stored yet.
function book.bear(id, record)
    local card = read_card(id, record, false)
    card.born = true
    card.state = WAITING
    book.touch(card)
    return card
end

-- Bytes as MessagePack's bin.
function book.bin(bytes)
    local size = #bytes
    if size < 256 then
        return '\196' .. string.char(size) .. bytes
    elseif size < 65536 then
        return pack('>BI2', 197, size) .. bytes
    end
    return pack('>BI4', 198, size) .. bytes
end

-- How long MessagePack of bytes at the start of `body` is.
local function bin_size(body)
    local mark = string.byte(body)
    if mark == 196 then
        return 2 + string.byte(body, 2)
    elseif mark == 197 then
        return 3 + unpack_struct('>I2', body, 2)
    end
    return 5 + unpack_struct('>I4', body, 2)
end

-- A record but for its rest. `form` has the fields of a form.
function book.record_of(seq, form, body)
    return pack(RECORD_HEAD, seq, #body, #form.names) .. book.common_of(form) .. body
end

function book.common_of(form)
    return pack(RECORD_FORM, form.enqueued_at, book.moment(form.first_at), book.moment(form.deadline),
        math.min(form.max_attempts, MOST_ATTEMPTS), form.kind, form.priority, form.key_size) .. form.names
end

function book.rewrite(card, changes)
    book.touch(card)
    local record = card.record
    local first, last = body_of(record)
    local body = sub(record, first, last)
    if changes.args then
        body = book.bin(changes.args) .. sub(body, bin_size(body) + 1)
    end
    if changes.deadline then
        card.deadline = changes.deadline
    end
    if changes.priority then
        card.priority = changes.priority
        card.lane = book.lane(card.queue, card.priority)
    end
    card.record = book.record_of(card.seq, {
        enqueued_at = card.enqueued_at, first_at = card.first_at, deadline = card.deadline,
        max_attempts = card.max_attempts, kind = card.kind, priority = card.priority,
        key_size = card.key and #card.key or 0, names = card.names,
    }, body) .. sub(record, last + 1)
    card.old_record = card.old_record or record
end

function book.erase(card)
    book.touch(card)
    card.erased = true
    cards[card.id] = false
end

-- The job of this card has been deleted by other means than `erase`.
function book.strike_out(card)
    cards[card.id] = false
end

-- The cards that were touched since this was last asked, nil if there are none.
function book.take_touched()
    if not touched[1] then
        return nil
    end
    local taken = touched
    touched = {}
    return taken
end
