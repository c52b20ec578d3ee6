-- Admit: what a staged job finds when it arrives: its parents, its key, its place in a fair lane, a full queue.

-- What follows an insert of staged jobs. `p_queues`: all queues that the batch went to.
CREATE OR REPLACE FUNCTION admit_new(p_seqs bigint[], p_queues text[], p_defer boolean, p_now bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    is_behind boolean;
    has_waited boolean;
BEGIN
    IF p_defer THEN
        PERFORM keep_bounds(p_queues, p_seqs, false, p_now);
    ELSE
        -- What transactions of others have left comes first in its keys and lanes. Nobody need wait for this look: who
        -- commits after it comes after these.
        is_behind := EXISTS (
            SELECT 1 FROM job
            WHERE state = 0 AND flags & 512 <> 0 AND seq < (SELECT min(x.seq) FROM unnest(p_seqs) x(seq))
        );
        has_waited := NOT try_gate();
        IF has_waited THEN
            PERFORM gate();
        END IF;
        -- Claims do not wait for the gate, and find it taken while producers hand it on to each other. So these do some of
        -- the work of claims; of a large pile each works off a part, and leaves its own to the next.
        IF is_behind THEN
            PERFORM admit_left(cardinality(p_seqs) + 100, p_queues, p_now);
        ELSE
            PERFORM admit(p_seqs, p_now);
        END IF;
        IF has_waited THEN
            PERFORM move_others_on(100, p_now);
        END IF;
        PERFORM keep_bounds(p_queues, p_seqs, true, p_now);
    END IF;
END $$;

-- Staged jobs that were left, the oldest first. The gate is held. Whoever calls it keeps the bounds of the queues `p_but`.
CREATE OR REPLACE FUNCTION admit_left(p_limit integer, p_but text[], p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    seqs bigint[];
    queues text[];
BEGIN
    SELECT array_agg(seq), array_agg(DISTINCT queue) FILTER (WHERE queue <> ALL (p_but)) INTO seqs, queues FROM (
        SELECT seq, queue FROM job WHERE state = 0 AND flags & 512 <> 0 ORDER BY seq LIMIT p_limit
    ) x;
    IF seqs IS NOT NULL THEN
        PERFORM admit(seqs, p_now);
        PERFORM keep_bounds(queues, '{}', true, p_now);
    END IF;
END $$;

-- The gate is held. Batches can be large, so what most jobs of a batch have in common is done for all of them at once; what
-- is left goes one after the other. Of a large batch, only as far as a job that is in the way of those behind it.
CREATE OR REPLACE FUNCTION admit(p_seqs bigint[], p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    many constant integer := 100;   -- fewer are not worth another look
    turns constant integer := 20;
    turn integer := 0;
    rest bigint[] := p_seqs;
    left_ integer := cardinality(p_seqs);
    part record;
BEGIN
    IF EXISTS (SELECT 1 FROM parent p WHERE p.child = ANY (p_seqs)) THEN
        left_ := left_ - admit_waiting(p_seqs);
    END IF;
    WHILE left_ > 0 LOOP
        turn := turn + 1;
        SELECT * INTO part FROM simple(rest, p_now);
        IF part.seqs IS NOT NULL THEN
            left_ := left_ - admit_simple(part.seqs, p_now);
        END IF;
        EXIT WHEN left_ = 0;
        IF part.odd IS NULL OR left_ < many OR turn = turns THEN
            PERFORM admit_others(rest, p_now);
            EXIT;
        END IF;
        left_ := left_ - admit_others(ARRAY(SELECT seq FROM unnest(rest) x(seq) WHERE seq <= part.odd), p_now);
        rest := ARRAY(SELECT seq FROM unnest(rest) x(seq) WHERE seq > part.odd);
    END LOOP;
END $$;

-- Those that are to wait for parents, and have no key. Answers how many.
CREATE OR REPLACE FUNCTION admit_waiting(p_seqs bigint[]) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    count_ integer;
BEGIN
    -- A parent that is about to be settled without the gate is waited for; once it is marked, its end needs the gate. One
    -- that runs is marked anew: a user's transaction that sees no later moment than its beginning cannot end it then.
    -- `seq + 0`, lest the planner go through all jobs in this order, if it made its plan when there were few.
    UPDATE job SET flags = flags | 1 WHERE (flags & 1 = 0 OR state + 0 = 4) AND seq = ANY (ARRAY(
        SELECT f.seq FROM job f
        WHERE (f.flags & 1 = 0 OR f.state + 0 = 4)
            AND f.id = ANY (ARRAY(SELECT DISTINCT p.parent FROM parent p WHERE p.child = ANY (p_seqs)))
        ORDER BY f.seq + 0 FOR UPDATE
    ));
    UPDATE parent p SET done = true
    FROM unnest(p_seqs) x(seq), job s, job f
    WHERE p.child = x.seq AND NOT p.done AND s.seq = x.seq AND s.state + 0 = 0 AND s.flags & 512 <> 0
        AND f.id = p.parent AND (f.state + 0 = 5 OR (f.state + 0 > 5 AND s.flags & 2 <> 0));
    UPDATE job s SET flags = s.flags & ~512, missing = w.missing
    FROM (
        SELECT c.seq, count(*) AS missing
        FROM unnest(p_seqs) x(seq) JOIN job c ON c.seq = x.seq
        JOIN parent p ON p.child = c.seq AND NOT p.done LEFT JOIN job f ON f.id = p.parent
        -- `state + 0` keeps the planner from going through all that are staged, for each of them.
        WHERE c.state + 0 = 0 AND c.flags & 512 <> 0 AND c.key IS NULL
        -- Each of them will finish, or a replay may yet bring it to success. But one that goes on when a parent of its own
        -- batch turns out to have failed does so in its turn.
        GROUP BY c.seq HAVING bool_and(coalesce(f.state < 5 OR (f.state > 5 AND c.flags & 4 <> 0), false))
            AND NOT bool_or(c.flags & 2 <> 0 AND coalesce(f.flags & 512 <> 0, false))
    ) w WHERE s.seq = w.seq;
    GET DIAGNOSTICS count_ = ROW_COUNT;
    RETURN count_;
END $$;

-- Those that `simple` has chosen, which find nothing but their moment, room in their key, and their place in a lane. Answers
-- how many. Row by row, a key or a tenant that thousands have in common would be written anew for each of them, over ever
-- more versions of its row.
CREATE OR REPLACE FUNCTION admit_simple(p_seqs bigint[], p_now bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    count_ integer;
BEGIN
    INSERT INTO room AS r (key, room, used, jobs)
    SELECT j.key, min(room_of(j.flags, j.room)), 0, count(*)
    FROM unnest(p_seqs) x(seq) JOIN job j ON j.seq = x.seq WHERE j.key IS NOT NULL GROUP BY j.key ORDER BY j.key
    ON CONFLICT (key) DO UPDATE SET room = excluded.room, jobs = r.jobs + excluded.jobs;
    WITH arrived AS (
        SELECT j.seq, j.queue, j.priority, coalesce(j.tenant, '') AS tenant, j.key, q.fair, q.weights,
            CASE WHEN j.run_at > p_now THEN 1
                WHEN row_number() OVER (PARTITION BY j.key, j.run_at > p_now ORDER BY j.seq) > r.room - r.used THEN 3
                ELSE 2 END AS state
        FROM unnest(p_seqs) x(seq) JOIN job j ON j.seq = x.seq
        LEFT JOIN room r ON r.key = j.key LEFT JOIN queue q ON q.name = j.queue
    ), numbered AS (
        SELECT *, row_number() OVER (PARTITION BY queue, priority, tenant, state ORDER BY seq) AS number FROM arrived
    ), costed AS (
        SELECT a.seq, a.queue, a.priority, a.tenant, a.key, a.state, coalesce(a.fair, false) AND a.state = 2 AS is_tagged,
            1.0 / coalesce((a.weights ->> a.tenant)::double precision, 1.0) AS cost,
            CASE WHEN a.number = 1 THEN greatest(coalesce(c.clock, 0), coalesce(t.tag, 0)) ELSE 0 END AS base
        FROM numbered a
        LEFT JOIN lane_clock c ON c.queue = a.queue AND c.priority = a.priority
        LEFT JOIN tenant t ON t.queue = a.queue AND t.priority = a.priority AND t.tenant = a.tenant
    ), tagged AS MATERIALIZED (
        -- Summed up one after the other, as `next_tag` would, to the last bit.
        SELECT seq, queue, priority, tenant, key, state, is_tagged, CASE WHEN is_tagged THEN sum(base + cost) OVER (
            PARTITION BY queue, priority, tenant, state ORDER BY seq ROWS UNBOUNDED PRECEDING
        ) ELSE 0 END AS tag FROM costed
    ), moved AS (
        UPDATE job j SET
            state = g.state, tag = g.tag, missing = NULL,
            flags = CASE WHEN g.state = 2 AND g.key IS NOT NULL THEN j.flags | 16 ELSE j.flags END & ~512
        FROM tagged g WHERE j.seq = g.seq RETURNING j.queue, j.priority, j.state
    ), clocks AS (
        INSERT INTO lane_clock (queue, priority, clock)
        SELECT DISTINCT queue, priority, 0 FROM tagged WHERE is_tagged ON CONFLICT DO NOTHING
    ), tenants AS (
        INSERT INTO tenant (queue, priority, tenant, tag)
        SELECT queue, priority, tenant, max(tag) FROM tagged WHERE is_tagged GROUP BY queue, priority, tenant
        ON CONFLICT (queue, priority, tenant) DO UPDATE SET tag = excluded.tag
    ), taken AS (
        UPDATE room r SET used = r.used + e.n
        FROM (SELECT key, count(*) AS n FROM tagged WHERE state = 2 AND key IS NOT NULL GROUP BY key) e WHERE r.key = e.key
    ), moves AS (
        INSERT INTO lane_news (queue, priority, state, n)
        SELECT m.queue, m.priority, s.state, s.sign * m.n
        FROM (SELECT queue, priority, state, count(*) AS n FROM moved GROUP BY queue, priority, state) m
        CROSS JOIN LATERAL (VALUES (0::smallint, -1), (m.state, 1)) s(state, sign)
    )
    SELECT count(*) INTO count_ FROM moved;
    PERFORM forget_heads();
    RETURN count_;
END $$;

-- Which of them can be admitted together, NULL if there are none; and the first one that is in the way of those behind it, if
-- any, since it takes or gives away tags of fair lanes in its turn, and each tag follows from the one before.
--
-- Those that have to wait for parents cannot, nor those that may not succeed any more: but they take nothing, unless they go
-- on all the same. Those of a key can as long as they speak of one room; but one that gives it more than it had lets parked
-- jobs go ahead of all behind it. Behind one that is in the way, others can if their queue or key has nothing to do with
-- tags.
CREATE OR REPLACE FUNCTION simple(p_seqs bigint[], p_now bigint, OUT seqs bigint[], OUT odd bigint) LANGUAGE plpgsql AS $$
BEGIN
    WITH staged AS (
        SELECT j.seq, j.queue, j.key, room_of(j.flags, j.room) AS room, j.run_at > p_now AS is_early,
            coalesce(q.fair, false) AS fair, j.flags & 2 <> 0 AS goes_on,
            NOT EXISTS (SELECT 1 FROM parent p WHERE p.child = j.seq AND NOT p.done) AS is_free,
            EXISTS (
                SELECT 1 FROM room r WHERE r.key = j.key AND r.used < room_of(j.flags, j.room)
                    AND EXISTS (SELECT 1 FROM job k WHERE k.state = 3 AND k.key = r.key)
            ) AS is_widening
        FROM unnest(p_seqs) x(seq) JOIN job j ON j.seq = x.seq LEFT JOIN queue q ON q.name = j.queue
        WHERE j.state + 0 = 0 AND j.flags & 512 <> 0
    ), known AS (
        SELECT *, key IS NOT NULL AND room <> first_value(room) OVER (PARTITION BY key ORDER BY seq) AS is_other_room,
            bool_or(fair) OVER (PARTITION BY key) AS is_key_fair
        FROM staged
    ), seen AS (
        SELECT *, is_free AND (key IS NULL OR bool_and(
            NOT is_other_room AND (is_free OR is_early OR NOT goes_on)
        ) OVER (PARTITION BY key ORDER BY seq ROWS UNBOUNDED PRECEDING)) AS is_simple
        FROM known
    ), judged AS (
        SELECT *, bool_and(is_simple) OVER (PARTITION BY queue) AS are_simple,
            bool_or(key IS NOT NULL) OVER (PARTITION BY queue) AS has_keys,
            bool_or(is_widening) OVER () AS is_one_widening,
            min(seq) FILTER (
                WHERE is_widening OR (is_key_fair AND is_other_room)
                    OR (fair AND NOT is_simple AND NOT is_early AND (is_free OR goes_on))
            ) OVER () AS first_odd
        FROM seen
    )
    SELECT array_agg(seq) FILTER (WHERE is_simple AND (first_odd IS NULL OR seq < first_odd OR (
        NOT is_one_widening AND CASE
            WHEN key IS NOT NULL THEN NOT is_key_fair
            ELSE NOT fair OR is_early OR (are_simple AND NOT has_keys)
        END
    ))), min(first_odd) INTO seqs, odd FROM judged;
END $$;

CREATE OR REPLACE FUNCTION room_of(p_flags integer, p_room integer) RETURNS integer LANGUAGE sql IMMUTABLE AS
$$ SELECT CASE WHEN p_flags & 8 <> 0 THEN 1 ELSE p_room END $$;

-- Those that are left, one after the other. Answers how many.
CREATE OR REPLACE FUNCTION admit_others(p_seqs bigint[], p_now bigint) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    j record;
    missing_ integer;
    failed uuid;
    count_ integer := 0;
BEGIN
    PERFORM count_for_keys(p_seqs);
    FOR j IN
        SELECT s.seq, s.queue, s.priority, s.flags, s.key, room_of(s.flags, s.room) AS room, s.run_at
        FROM unnest(p_seqs) x(seq) JOIN job s ON s.seq = x.seq
        WHERE s.state + 0 = 0 AND s.flags & 512 <> 0 ORDER BY s.seq
    LOOP
        count_ := count_ + 1;
        -- A parent that is there no more has been deleted, and did not succeed as far as anybody knows.
        UPDATE parent p SET done = true WHERE p.child = j.seq AND (
            EXISTS (SELECT 1 FROM job f WHERE f.id = p.parent AND (f.state + 0 = 5 OR (f.state + 0 > 5 AND j.flags & 2 <> 0)))
            OR (j.flags & 2 <> 0 AND NOT EXISTS (SELECT 1 FROM job f WHERE f.id = p.parent))
        );
        SELECT
            count(*) FILTER (WHERE f.state < 5 OR j.flags & 4 <> 0),
            (array_agg(p.parent ORDER BY p.place) FILTER (WHERE (f.state IS NULL OR f.state > 5) AND j.flags & 4 = 0))[1]
        INTO missing_, failed
        FROM parent p LEFT JOIN job f ON f.id = p.parent WHERE p.child = j.seq AND NOT p.done;
        IF j.key IS NOT NULL THEN
            UPDATE room SET room = j.room WHERE key = j.key AND room <> j.room;
            PERFORM admit_parked(j.key, p_now);
        END IF;
        IF failed IS NOT NULL THEN
            UPDATE job SET flags = flags & ~512, missing = missing_ WHERE seq = j.seq;
            PERFORM cancel_pending(
                j.seq, 'parent ' || encode(uuid_send(failed), 'hex') || ' did not succeed', p_now
            );
            PERFORM let_go(ARRAY[j.seq], p_now);
        ELSIF missing_ > 0 THEN
            UPDATE job SET flags = flags & ~512, missing = missing_ WHERE seq = j.seq;
        ELSIF j.run_at > p_now THEN
            UPDATE job SET state = 1, flags = flags & ~512 WHERE seq = j.seq;
            PERFORM count_move(j.queue, j.priority, 0::smallint, 1::smallint);
        ELSE
            PERFORM enter(j.seq, j.run_at, p_now);
        END IF;
    END LOOP;
    RETURN count_;
END $$;

-- All at once, before the first of them is admitted; how much room a key has, each says when its turn comes.
CREATE OR REPLACE FUNCTION count_for_keys(p_seqs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO room AS r (key, room, used, jobs)
    SELECT j.key, (array_agg(room_of(j.flags, j.room) ORDER BY j.seq))[1], 0, count(*)
    FROM unnest(p_seqs) x(seq) JOIN job j ON j.seq = x.seq
    WHERE j.state + 0 = 0 AND j.flags & 512 <> 0 AND j.key IS NOT NULL GROUP BY j.key ORDER BY j.key
    ON CONFLICT (key) DO UPDATE SET jobs = r.jobs + excluded.jobs;
END $$;

-- Now that a batch is in, refuse it if a queue is too full, or drop older jobs (`p_may_drop`), as the queue's rule
-- says. Looking afterwards counts exactly those that take a place: no duplicates, none that were born cancelled.
-- `p_seqs`: the jobs of the batch; none if it was committed long ago, and cannot be refused.
CREATE OR REPLACE FUNCTION keep_bounds(p_queues text[], p_seqs bigint[], p_may_drop boolean, p_now bigint) RETURNS void
LANGUAGE plpgsql AS $$
DECLARE
    q record;
    excess bigint;
    old bigint[];
    one bigint;
BEGIN
    FOR q IN
        SELECT name, max_size, overflow = 'drop_oldest' AS drops FROM queue
        WHERE name = ANY (p_queues) AND max_size IS NOT NULL ORDER BY name
    LOOP
        excess := count_pending(q.name) - q.max_size;
        CONTINUE WHEN excess <= 0;
        old := '{}';
        IF q.drops AND p_may_drop THEN
            old := oldest_pending(q.name, p_seqs, excess);
        END IF;
        CONTINUE WHEN p_seqs = '{}' AND old = '{}';
        IF cardinality(old) < excess AND p_seqs <> '{}' AND (p_may_drop OR NOT q.drops) THEN
            RAISE EXCEPTION 'queue % is full', q.name USING
                ERRCODE = 'FY011', DETAIL = json_build_array(q.name, q.max_size)::text;
        END IF;
        IF NOT EXISTS (
            SELECT 1 FROM job WHERE seq = ANY (old) AND (concerns_others(flags, key) OR flags & 512 <> 0)
        ) THEN
            PERFORM end_plain(old, 7::smallint, 'dropped: queue ' || q.name || ' was full', p_now);
            CONTINUE;
        END IF;
        FOREACH one IN ARRAY old LOOP
            -- One that was dropped may have taken its children along.
            IF cancel_pending(one, 'dropped: queue ' || q.name || ' was full', p_now) THEN
                PERFORM let_go(ARRAY[one], p_now);
                EXIT WHEN count_pending(q.name) <= q.max_size;
            END IF;
        END LOOP;
    END LOOP;
END $$;

CREATE OR REPLACE FUNCTION count_pending(p_queue text) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
    RETURN
        coalesce((SELECT sum(counts[1] + counts[2] + counts[3] + counts[4]) FROM lane_base WHERE queue = p_queue), 0)
        + coalesce((SELECT sum(n) FROM lane_news WHERE queue = p_queue AND state < 4), 0);
END $$;

-- The oldest pending jobs of a queue but those given, in their order. Ready ones by their lanes, which are in the order of
-- arrival unless they are fair. The indexes of other states hold the jobs of all queues: those of which this one has none
-- are not looked at. `seq + 0`: else the planner would go through all that there is in the order of arrival, history
-- included.
CREATE OR REPLACE FUNCTION oldest_pending(p_queue text, p_but bigint[], p_count bigint) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    has_ bigint[];      -- by state, from 1
    of_each bigint := CASE WHEN is_fair(p_queue) THEN NULL ELSE p_count END;
BEGIN
    SELECT ARRAY[sum(counts[1]), sum(counts[2]), sum(counts[4])] INTO has_ FROM lane WHERE queue = p_queue;
    RETURN ARRAY(
        SELECT seq FROM (
            SELECT h.seq FROM lane l CROSS JOIN LATERAL (
                SELECT j.seq FROM job j
                WHERE j.state = 2 AND j.queue = l.queue AND j.priority = l.priority AND j.seq <> ALL (p_but)
                ORDER BY j.tag, j.seq LIMIT of_each
            ) h WHERE l.queue = p_queue
            UNION ALL
            SELECT seq FROM job WHERE state = 0 AND queue = p_queue AND seq <> ALL (p_but) AND has_[1] > 0
            UNION ALL
            SELECT seq FROM job WHERE state = 1 AND queue = p_queue AND seq <> ALL (p_but) AND has_[2] > 0
            UNION ALL
            SELECT seq FROM job WHERE state = 3 AND queue = p_queue AND seq <> ALL (p_but) AND has_[3] > 0
        ) x ORDER BY seq + 0 LIMIT p_count
    );
END $$;
