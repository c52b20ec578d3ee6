-- Verbs: what the server can call, and what becomes of a call that fails.

local function conclude(handler, args)
    local answer = handler(args)
    book.write()
    if book.woke and call('ZCARD', book.key('alive')) > 0 then
        call('PUBLISH', book.key('bell'), '')
    end
    if book.done then
        call('PUBLISH', book.key('bell:done'), '')
    end
    book.bury()
    if answer == nil then
        return false
    end
    return answer
end

local verbs = {}

function book.verb(name, handler, options)
    verbs[name] = {handler = handler, drains = options and (options.drains or options.reads)}
end

-- Of what type a key is, by the first word of its name.
local TYPES = {
    seq = 'string', job = 'hash', life = 'hash', unique = 'hash', key = 'hash', queue = 'hash', lanes = 'hash',
    tenants = 'hash', count = 'hash', stat = 'hash', worker = 'hash', lock = 'hash', kv = 'hash', arranged = 'hash',
    passed = 'hash', paused = 'set', parents = 'list', attempts = 'list', notes = 'list', orders = 'list',
}

-- Which of the keys that this process has used lately is of another type than it should be, as a message; else nil.
local function find_foreign()
    for name, key in pairs(book.names()) do
        local found, meant = call('TYPE', key).ok, TYPES[string.match(name, '^[^:]+')] or 'zset'
        if found ~= 'none' and found ~= meant then
            return key .. ' is a ' .. found .. ' and not a ' .. meant
        end
    end
end

-- An error's text, which begins with a code. Redis' pcall makes text of our errors and of the server's, which have one;
-- Lua's own have none: they come of data that no verb can have written.
local function told(problem)
    problem = tostring(problem)
    local code = string.match(problem, '^(%u+) ')
    local is_of_data = code == 'WRONGTYPE' or (code == 'ERR' and string.find(problem, 'not an integer', 1, true))
    if code and not is_of_data then
        return problem
    end
    return 'FERRYMAN StoreCorrupt the data below ' .. book.prefix .. ' cannot be used ('
        .. (find_foreign() or problem) .. '); something else writes there: give Ferryman a prefix or a database of its own'
end

-- What the server calls: all of a verb, or nothing of it.
function book.perform(name, keys, args)
    book.begin(keys[1], table.remove(args, 1))
    local fine, answer = pcall(conclude, verbs[name].handler, args)
    if not fine then
        book.roll_back()
        return {err = told(answer)}
    end
    return answer
end

local function refuse_when_full()
    local memory = call('INFO', 'memory')
    local limit = tonumber(string.match(memory, 'maxmemory:(%d+)'))
    if limit > 0 and tonumber(string.match(memory, 'used_memory:(%d+)')) > limit then
        error({err = "OOM command not allowed when used memory > 'maxmemory'."}, 0)
    end
end

-- ARGV: for each of several verbs its name, how many arguments it has, and these. They are one transaction. Answers a
-- list of their answers. It may run on a full server, so that settling can go on there; so it has to look itself if a
-- verb of it would fill the server.
book.verb('all', function(args)
    local answers, at = {}, 1
    while args[at] do
        local verb, count = verbs[args[at]], tonumber(args[at + 1])
        if not verb.drains then
            refuse_when_full()
        end
        local own = {}
        for index = 1, count do
            own[index] = args[at + 1 + index]
        end
        local answer = verb.handler(own)
        answers[#answers + 1] = answer ~= nil and answer
        book.write()
        at = at + 2 + count
    end
    return answers
end, {drains = true})
