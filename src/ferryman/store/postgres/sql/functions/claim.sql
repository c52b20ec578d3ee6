-- Claim: promote what is due, expire what is late, lease what the plan asks for. And peek: is it worth it?

-- Answers three kinds of rows. A leased job has an id, and its columns say what they mean. A lane that still has ready
-- jobs: id NULL, queue, priority in `lease`, depth in `enqueued_at`, oldest in `ready_at`. Last: id and queue NULL, the
-- time in `enqueued_at` and the next due time in `ready_at`.
CREATE OR REPLACE FUNCTION claim(
    p_worker text, p_queues text[], p_priorities smallint[], p_counts integer[], p_limit integer, p_gate boolean,
    p_now bigint
) RETURNS TABLE (
    id text, task text, queue text, lease integer, attempt integer, max_attempts integer, deaths integer,
    enqueued_at bigint, ready_at bigint, args bytea, options bytea, key text
)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    now_ bigint := now_or(p_now);
    w record;
    t record;
    j record;
    room_ integer := p_limit;
    synced boolean := false;
    lanes_left integer;
    wanted integer;
    taken integer;
    start bigint;       -- seq
    first_seq bigint;
    last_tag double precision;
    last_seq bigint;
    until_started uuid[];
    taken_queues text[] := '{}';
    taken_priorities smallint[] := '{}';
    taken_tags double precision[] := '{}';
    taken_seqs bigint[] := '{}';
BEGIN
    IF p_gate THEN
        PERFORM gate();
    END IF;
    -- Held until the commit, so that whoever takes this worker for dead sees all that it has leased.
    PERFORM pg_advisory_xact_lock_shared(worker_lock(p_worker)), locking();
    -- As `find_worker` looks, and whether `move_on` is to be called, in one statement: a job waits for this, and each costs
    -- a server that has slept some hundredths of a ms.
    SELECT
        x.id, x.queues, x.listens,
        EXISTS (SELECT 1 FROM job WHERE state = 1 AND run_at <= now_)
        OR EXISTS (SELECT 1 FROM job WHERE state = 0 AND flags & 512 <> 0)
        OR EXISTS (SELECT 1 FROM job WHERE deadline IS NOT NULL AND deadline <= now_ AND state < 4) AS has_come
    INTO w FROM worker x WHERE x.name = p_worker AND x.gone IS NULL;
    IF NOT found THEN
        PERFORM find_worker(p_worker);
    ELSIF w.has_come THEN
        PERFORM move_on(now_);
    END IF;
    -- Of many lanes most are empty: to look at the counts of all costs as much as to ask some of them.
    IF cardinality(p_queues) > 20 THEN
        SELECT array_agg(x.queue ORDER BY x.place), array_agg(x.priority ORDER BY x.place), array_agg(x.count ORDER BY x.place)
        INTO p_queues, p_priorities, p_counts
        FROM unnest(p_queues, p_priorities, p_counts) WITH ORDINALITY x(queue, priority, count, place)
        JOIN ready_lanes(NULL) l ON l.queue = x.queue AND l.priority = x.priority;
    END IF;
    FOR t IN
        SELECT
            x.queue, x.priority, x.count,
            (SELECT h.seq FROM lane_head h WHERE h.queue = x.queue AND h.priority = x.priority AND h.until > now_) AS start
        FROM unnest(p_queues, p_priorities, p_counts) WITH ORDINALITY x(queue, priority, count, place)
        WHERE NOT EXISTS (SELECT 1 FROM queue q WHERE q.name = x.queue AND q.paused) ORDER BY x.place
    LOOP
        EXIT WHEN room_ <= 0;
        wanted := least(t.count, room_);
        taken := 0;
        start := coalesce(t.start, 0);
        first_seq := NULL;
        last_tag := 0;
        until_started := NULL;
        LOOP
            -- Those that others are leasing just now are skipped.
            FOR j IN
                WITH leased AS (
                    UPDATE job l SET
                        state = 4, lease = l.lease + 1, attempt = l.attempt + 1, worker = w.id, started_at = now_,
                        flags = l.flags & ~128, reason = NULL
                    WHERE l.ctid = ANY (ARRAY(
                        SELECT r.ctid FROM job r
                        WHERE r.state = 2 AND r.queue = t.queue AND r.priority = t.priority AND (r.tag, r.seq) >= (0, start)
                            AND (r.deadline IS NULL OR r.deadline > now_)
                        ORDER BY r.tag, r.seq LIMIT wanted - taken FOR UPDATE SKIP LOCKED
                    ))
                    RETURNING
                        l.id, l.task, l.lease, l.attempt, l.max_attempts, l.deaths, l.enqueued_at, l.run_at, l.args,
                        l.options, l.key, l.flags, l.tag, l.seq
                )
                SELECT * FROM leased l ORDER BY l.tag, l.seq
            LOOP
                taken := taken + 1;
                first_seq := coalesce(first_seq, j.seq);
                last_tag := greatest(last_tag, j.tag);
                last_seq := j.seq;
                IF j.attempt >= j.max_attempts OR j.key IS NOT NULL THEN
                    synced := true;
                END IF;
                IF j.flags & 64 <> 0 THEN
                    until_started := until_started || j.id;
                END IF;
                id := encode(uuid_send(j.id), 'hex');
                task := j.task;
                queue := t.queue;
                lease := j.lease;
                attempt := j.attempt;
                max_attempts := j.max_attempts;
                deaths := j.deaths;
                enqueued_at := j.enqueued_at;
                ready_at := j.run_at;
                args := j.args;
                options := j.options;
                key := j.key;
                RETURN NEXT;
            END LOOP;
            EXIT WHEN start = 0 OR taken = wanted;
            -- There may be some before it, that came late.
            start := 0;
            first_seq := NULL;
        END LOOP;
        CONTINUE WHEN taken = 0;
        IF start = 0 AND last_tag = 0 AND taken >= 100 AND first_seq IS NOT NULL THEN
            PERFORM remember_head(t.queue, t.priority, first_seq, now_);
        END IF;
        room_ := room_ - taken;
        taken_queues := taken_queues || t.queue;
        taken_priorities := taken_priorities || t.priority;
        taken_tags := taken_tags || last_tag;
        taken_seqs := taken_seqs || last_seq;
        INSERT INTO lane_news (queue, priority, state, n)
        VALUES (t.queue, t.priority, 2, -taken), (t.queue, t.priority, 4, taken);
        IF until_started IS NOT NULL THEN
            DELETE FROM unique_key u WHERE u.id = ANY (until_started) AND u.until IS NULL;
        END IF;
        IF last_tag > 0 THEN
            -- Skipped if somebody else is moving it on: it only ever grows, and they are as far as we are.
            UPDATE lane_clock c SET clock = last_tag WHERE c.ctid = ANY (ARRAY(
                SELECT l.ctid FROM lane_clock l WHERE l.queue = t.queue AND l.priority = t.priority AND l.clock < last_tag
                FOR UPDATE SKIP LOCKED
            ));
        END IF;
    END LOOP;
    IF synced THEN
        -- Not even a crash of the server shall let a last attempt be made once more, or a key have more jobs than room.
        PERFORM durable();
    ELSE
        PERFORM ease();
    END IF;
    RETURN QUERY
    SELECT
        NULL::text, NULL::text, l.queue, l.priority::integer, NULL::integer, NULL::integer, NULL::integer, l.depth,
        -- Begins behind those that were just taken.
        (SELECT j.run_at FROM job j WHERE j.state = 2 AND j.queue = l.queue AND j.priority = l.priority
                AND (j.tag, j.seq) >= (coalesce(k.tag, 0), coalesce(k.seq, 0))
            ORDER BY j.tag, j.seq LIMIT 1),
        NULL::bytea, NULL::bytea, NULL::text
    FROM ready_lanes(w.queues) l LEFT JOIN LATERAL (
        SELECT x.tag, x.seq
        FROM unnest(taken_queues, taken_priorities, taken_tags, taken_seqs) x(queue, priority, tag, seq)
        WHERE x.queue = l.queue AND x.priority = l.priority ORDER BY x.tag DESC, x.seq DESC LIMIT 1
    ) k ON true
    UNION ALL
    SELECT
        NULL, NULL, NULL, NULL, NULL, NULL, NULL, now_, (SELECT min(d.run_at) FROM job d WHERE d.state = 1),
        NULL, NULL, NULL;
    GET DIAGNOSTICS lanes_left = ROW_COUNT;
    lanes_left := lanes_left - 1;
    IF w.listens <> (lanes_left = 0) THEN
        -- A worker that has a backlog comes again by itself.
        UPDATE worker x SET listens = lanes_left = 0 WHERE x.id = w.id;
    END IF;
    -- Now and then, so that there is never much to add up.
    IF room_ < p_limit AND random() < 0.1 AND may_fold() THEN
        PERFORM fold_lanes();
    END IF;
END $$;

-- For half a second, in which what comes in ahead of it without `forget_head`, such as an enqueue that takes its time to
-- commit, may have to wait.
CREATE OR REPLACE FUNCTION remember_head(p_queue text, p_priority smallint, p_seq bigint, p_now bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    UPDATE lane_head SET seq = p_seq, until = p_now + 500 WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM lane_head WHERE queue = p_queue AND priority = p_priority FOR UPDATE SKIP LOCKED
    ));
    -- By one at a time: of two, each might wait for a lane that the other has just put in.
    IF NOT found AND pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.head', 0)) THEN
        INSERT INTO lane_head (queue, priority, seq, until) VALUES (p_queue, p_priority, p_seq, p_now + 500)
        ON CONFLICT DO NOTHING;
    END IF;
END $$;

CREATE OR REPLACE FUNCTION peek(p_worker text, p_now bigint)
RETURNS TABLE (work boolean, next_due bigint, orders boolean, moment bigint)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_ bigint := now_or(p_now);
    w record;
    due bigint;
BEGIN
    SELECT * INTO w FROM find_worker(p_worker);
    SELECT min(run_at) INTO due FROM job WHERE state = 1;
    RETURN QUERY SELECT
        coalesce(due <= now_, false)
        OR EXISTS (SELECT 1 FROM job WHERE state = 0 AND flags & 512 <> 0)
        OR EXISTS (SELECT 1 FROM job WHERE deadline IS NOT NULL AND deadline <= now_ AND state < 4)
        OR EXISTS (SELECT 1 FROM ready_lanes(w.queues)),
        due, EXISTS (SELECT 1 FROM worker_order WHERE worker = w.id), now_;
END $$;

-- Lanes of these queues (NULL: of all) that have ready jobs, paused ones left out.
CREATE OR REPLACE FUNCTION ready_lanes(p_queues text[]) RETURNS TABLE (queue text, priority smallint, depth bigint)
LANGUAGE sql STABLE AS $$
    SELECT l.queue, l.priority, l.depth FROM (
        SELECT x.queue, x.priority, sum(x.n)::bigint AS depth FROM (
            SELECT b.queue, b.priority, b.counts[3] AS n FROM lane_base b
            UNION ALL
            SELECT f.queue, f.priority, sum(f.n) FROM lane_news f WHERE f.state = 2 GROUP BY f.queue, f.priority
        ) x
        WHERE p_queues IS NULL OR x.queue = ANY (p_queues)
        GROUP BY x.queue, x.priority HAVING sum(x.n) > 0
        OFFSET 0    -- Paused ones are looked for among lanes, not among news, which are more.
    ) l WHERE NOT EXISTS (SELECT 1 FROM queue q WHERE q.name = l.queue AND q.paused)
$$;

CREATE OR REPLACE FUNCTION find_worker(p_worker text, OUT id integer, OUT queues text[], OUT listens boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    SELECT x.id, x.queues, x.listens INTO id, queues, listens FROM worker x WHERE x.name = p_worker AND x.gone IS NULL;
    IF NOT found THEN
        RAISE EXCEPTION USING ERRCODE = 'FY012', MESSAGE = 'worker ' || p_worker
            || ' is not on the register: it never registered, has left, or was taken for dead after its lease had ended;'
            || ' its jobs are run by others';
    END IF;
END $$;

-- Claims share it; who takes a worker off the register has it alone.
CREATE OR REPLACE FUNCTION worker_lock(p_worker text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN hashtextextended(current_schema() || '.worker.' || p_worker, 0);
END $$;

-- -- what time brings ----------------------------------------------------------------------------

-- Due plain jobs are promoted by whoever comes. The rest needs the gate: if somebody else has it, they are at it, or will be
-- (`admit_new`). A thousand of each at most, so that no transaction takes long. Called when there is something to do.
CREATE OR REPLACE FUNCTION move_on(p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    at_once constant integer := 1000;
    last_moment bigint;
    last_seq bigint;
BEGIN
    IF EXISTS (SELECT 1 FROM job WHERE state = 1 AND run_at <= p_now) THEN
        SELECT * INTO last_moment, last_seq FROM in_sight(5 * at_once, p_now);
        WITH due AS (
            UPDATE job SET state = 2, tag = 0 WHERE ctid = ANY (ARRAY(
                SELECT d.ctid FROM job d
                WHERE d.state = 1 AND (d.run_at, d.seq) <= (last_moment, last_seq) AND d.key IS NULL
                    AND NOT EXISTS (SELECT 1 FROM queue q WHERE q.name = d.queue AND q.fair)
                ORDER BY d.run_at, d.seq LIMIT at_once FOR UPDATE OF d SKIP LOCKED
            )) RETURNING queue, priority
        )
        INSERT INTO lane_news (queue, priority, state, n)
        SELECT d.queue, d.priority, s.state, s.sign * count(*) FROM due d
        CROSS JOIN (VALUES (1::smallint, -1), (2::smallint, 1)) s(state, sign)
        GROUP BY d.queue, d.priority, s.state, s.sign;
        PERFORM forget_heads();
    END IF;
    IF NOT try_gate() THEN
        RETURN;
    END IF;
    PERFORM admit_left(at_once, '{}', p_now);
    PERFORM move_others_on(at_once, p_now);
END $$;

-- Up to where whoever moves some of the due jobs on looks for them: who looks for the plain ones passes the others, and the
-- other way round, so not at all of a million.
CREATE OR REPLACE FUNCTION in_sight(p_count integer, p_now bigint, OUT last_moment bigint, OUT last_seq bigint)
LANGUAGE plpgsql AS $$
BEGIN
    SELECT d.run_at, d.seq INTO last_moment, last_seq FROM job d WHERE d.state = 1 AND d.run_at <= p_now
    ORDER BY d.run_at, d.seq OFFSET p_count LIMIT 1;
    IF NOT found THEN
        last_moment := p_now;
        last_seq := 9223372036854775807;
    END IF;
END $$;

-- Due jobs that are not plain, and those that are late. The gate is held.
CREATE OR REPLACE FUNCTION move_others_on(p_limit integer, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    sight record;
    j record;
    late bigint[];
BEGIN
    SELECT * INTO sight FROM in_sight(5 * p_limit, p_now);
    FOR j IN
        SELECT d.seq, d.run_at FROM job d
        WHERE d.state = 1 AND (d.run_at, d.seq) <= (sight.last_moment, sight.last_seq)
            AND (d.key IS NOT NULL OR EXISTS (SELECT 1 FROM queue q WHERE q.name = d.queue AND q.fair))
        ORDER BY d.run_at, d.seq LIMIT p_limit FOR UPDATE OF d SKIP LOCKED
    LOOP
        PERFORM enter(j.seq, j.run_at, p_now);
    END LOOP;
    late := ARRAY(
        SELECT d.seq FROM job d WHERE d.deadline IS NOT NULL AND d.deadline <= p_now AND d.state < 4
        ORDER BY d.deadline LIMIT p_limit FOR UPDATE SKIP LOCKED
    );
    -- One after the other, where the end of one may reach the next: its child, or one that is parked behind it.
    FOR j IN
        SELECT d.seq FROM unnest(late) x(seq) JOIN job d ON d.seq = x.seq
        WHERE d.state + 0 = 0 OR concerns_others(d.flags, d.key) ORDER BY d.deadline, d.seq
    LOOP
        IF end_pending(j.seq, 8::smallint, NULL, p_now) THEN
            PERFORM let_go(ARRAY[j.seq], p_now);
        END IF;
    END LOOP;
    IF late <> '{}' THEN
        PERFORM end_plain(late, 8::smallint, NULL, p_now);
    END IF;
END $$;
