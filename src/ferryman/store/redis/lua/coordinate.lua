-- Named locks with fencing tokens, and a small key-value table with compare-and-set.
--
--   lock   HASH name -> '<token> <until> <owner>'
--   kv     HASH key -> '<version> <until> <value>'; until is 0 when it has no end
-- Those that end with time are in `fading` too, for prune. Tokens and versions are numbers of `seq`, so they only grow.

-- The number and the content of an entry whose time is not over, else nil.
function coordinate.lasting(hash, name)
    local entry = book.hget(hash, name)
    if not entry then return nil end
    local number, ends, content = string.match(entry, '^(%d+) (%d+) (.*)$')
    ends = tonumber(ends)
    if ends ~= 0 and ends <= book.now then return nil end
    return tonumber(number), content
end

-- `ttl` is nil for an entry without an end.
function coordinate._put(hash, name, number, content, ttl)
    local ends = ttl and book.later(ttl) or 0
    book.hset(hash, name, string.format('%d %d ', number, ends) .. content)
    local member = hash .. ' ' .. name
    if ttl then
        book.zadd('fading', ends, member)
    else
        book.zrem('fading', member)
    end
end

function coordinate._forget(hash, name)
    book.hdel(hash, name)
    book.zrem('fading', hash .. ' ' .. name)
end

-- KEYS prefix. ARGV now, name, owner, ttl (ms). The lock's token, or nil if another owner holds it.
book.verb('lock', function(args)
    local name, owner, ttl = args[1], args[2], tonumber(args[3])
    local token, holder = coordinate.lasting('lock', name)
    if token and holder ~= owner then return false end
    token = token or book.number()
    coordinate._put('lock', name, token, owner, ttl)
    return token
end, {drains = true})

-- KEYS prefix. ARGV now, name, owner. 1 if it was the owner's, else 0.
book.verb('unlock', function(args)
    local name, owner = args[1], args[2]
    local token, holder = coordinate.lasting('lock', name)
    if not token or holder ~= owner then return 0 end
    coordinate._forget('lock', name)
    return 1
end, {drains = true})

-- KEYS prefix. ARGV now, key. The version and the value, or nil.
book.verb('kv_get', function(args)
    local version, value = coordinate.lasting('kv', args[1])
    return version and {version, value} or false
end, {reads = true})

-- KEYS prefix. ARGV now, key, value, the version expected ('' for none), ttl (ms; '' for none).
-- The new version, or nil if the comparison failed.
book.verb('kv_put', function(args)
    local key, value, expected, ttl = args[1], args[2], tonumber(args[3]), tonumber(args[4])
    if coordinate.lasting('kv', key) ~= expected then return false end
    local version = book.number()
    coordinate._put('kv', key, version, value, ttl)
    return version
end)

-- KEYS prefix. ARGV now, key. 1 if there was such a key, else 0.
book.verb('kv_delete', function(args)
    local version = coordinate.lasting('kv', args[1])
    if not version then return 0 end
    coordinate._forget('kv', args[1])
    return 1
end, {drains = true})
