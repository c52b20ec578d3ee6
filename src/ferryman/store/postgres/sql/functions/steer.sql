-- What people do to jobs and queues. `p_seqs` are the jobs that a filter chose a moment ago, without any lock: each
-- function takes the gate, locks them, and looks at their state anew, since plain claims and settles go on beside it.
-- A job that one of these has in hand just now is left out. If all are left out, FY001 lets the runner choose again, and
-- `p_more` of them than `p_limit`; then those in hand are waited for, which whoever has the gate may do.
-- Callers go on until the answer is 0, which must not be said while jobs match that did so at first.

-- Jobs whose end concerns nobody else are changed all at once; the others one by one in order of arrival, since what
-- one lets go may reach the next.
CREATE OR REPLACE FUNCTION cancel(p_seqs bigint[], p_limit bigint, p_more bigint, p_reason text, p_now bigint)
RETURNS bigint
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
DECLARE
    now_ bigint;
    seqs_ bigint[];
    seq_ bigint;
    orders_ boolean;
    rings_ boolean := false;
BEGIN
    PERFORM durable();
    IF cardinality(p_seqs) = 0 THEN
        RETURN 0;
    END IF;
    PERFORM gate();
    PERFORM wait_for(p_seqs, p_more > 0);
    now_ := coalesce(p_now, ferryman_now());
    SELECT array_agg(seq) INTO seqs_ FROM (
        SELECT seq FROM job WHERE seq = ANY(p_seqs) AND (state < 4 OR state + 0 = 4 AND flags & 128 = 0)
        ORDER BY seq LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) j;
    IF seqs_ IS NULL THEN
        RETURN none_left(p_seqs, p_limit, p_more);
    END IF;

    WITH asked AS (
        UPDATE job SET flags = flags | 128 WHERE seq = ANY(seqs_) AND state + 0 = 4 RETURNING seq, worker, id, lease
    )
    INSERT INTO worker_order (worker, kind, job, lease, reason)
    SELECT worker, 'cancel', id, lease, p_reason FROM asked ORDER BY seq;
    orders_ := found;

    FOR seq_ IN
        SELECT seq FROM job WHERE seq = ANY(seqs_) AND state < 4 AND (concerns_others(flags, key) OR flags & 512 <> 0)
        ORDER BY seq
    LOOP
        -- Not if an earlier one was its parent, and has taken it along.
        IF cancel_pending(seq_, p_reason, now_) THEN
            PERFORM let_go(ARRAY[seq_], now_);
            rings_ := true;
        END IF;
    END LOOP;

    PERFORM end_plain(seqs_, 7::smallint, p_reason, now_);
    IF orders_ OR rings_ THEN
        PERFORM ring(orders_);
    END IF;
    RETURN cardinality(seqs_);
END $$;

CREATE OR REPLACE FUNCTION wait_for(p_seqs bigint[], p_wanted boolean) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_wanted THEN
        PERFORM lose_patience();
        PERFORM 1 FROM job WHERE seq = ANY(p_seqs) ORDER BY seq FOR UPDATE;
        PERFORM regain_patience();
    END IF;
END $$;

-- Ends a steering verb whose jobs have all been changed, or are being changed, by others: with 0 if these were all that
-- there were. Nothing is changed yet.
CREATE OR REPLACE FUNCTION none_left(p_seqs bigint[], p_limit bigint, p_more bigint) RETURNS bigint
LANGUAGE plpgsql AS $$
BEGIN
    IF p_more = 0 OR cardinality(p_seqs) >= p_limit + p_more THEN
        PERFORM begin_again();
    END IF;
    RETURN 0;
END $$;

CREATE OR REPLACE FUNCTION replay(p_seqs bigint[], p_limit bigint, p_more bigint, p_now bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
DECLARE
    now_ bigint;
    taken_ uuid[];
    seqs_ bigint[];
    job_ record;
BEGIN
    PERFORM durable();
    IF cardinality(p_seqs) = 0 THEN
        RETURN 0;
    END IF;
    now_ := coalesce(p_now, ferryman_now());
    taken_ := take_unique_anew(p_seqs, now_);
    PERFORM gate();
    PERFORM wait_for(p_seqs, p_more > 0);
    SELECT array_agg(seq) INTO seqs_ FROM (
        SELECT seq FROM job WHERE seq = ANY(p_seqs) AND state + 0 >= 5 AND (flags & 96 = 0 OR id = ANY(taken_))
        ORDER BY seq LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) j;
    IF cardinality(taken_) > 0 THEN
        -- Keys of jobs that somebody else has deleted since they were chosen, perhaps of all.
        DELETE FROM unique_key u WHERE u.id = ANY(taken_) AND u.until IS NULL
            AND NOT EXISTS (SELECT 1 FROM job j WHERE j.id = u.id AND j.seq = ANY(seqs_));
    END IF;
    IF seqs_ IS NULL THEN
        RETURN none_left(p_seqs, p_limit, p_more);
    END IF;

    -- They wait for nobody any more; parents that they never heard of again are done with.
    UPDATE parent SET done = true WHERE child = ANY(seqs_) AND NOT done;
    FOR job_ IN
        WITH before AS (
            SELECT seq, state FROM job WHERE seq = ANY(seqs_) AND key IS NULL
                AND queue NOT IN (SELECT name FROM queue WHERE fair)
        ), after AS (
            UPDATE job j SET state = 2, tag = 0, run_at = now_, attempt = 0, deaths = 0, started_at = NULL,
                finished_at = NULL, worker = NULL, deadline = NULL, missing = NULL, result_until = NULL, result = NULL,
                reason = NULL, progress = NULL, flags = flags & ~784
            FROM before WHERE j.seq = before.seq RETURNING j.queue, j.priority, before.state AS before
        )
        SELECT queue, priority, before, count(*)::integer AS n FROM after GROUP BY 1, 2, 3
    LOOP
        PERFORM count_move(job_.queue, job_.priority, job_.before, 2::smallint, job_.n);
    END LOOP;
    FOR job_ IN
        SELECT seq, key, room, flags FROM job WHERE seq = ANY(seqs_) AND state + 0 >= 5 ORDER BY seq
    LOOP
        UPDATE job SET attempt = 0, deaths = 0, started_at = NULL, worker = NULL, deadline = NULL, missing = NULL,
            result_until = NULL, result = NULL, reason = NULL, progress = NULL, flags = flags & ~784
        WHERE seq = job_.seq;
        IF job_.key IS NOT NULL THEN
            PERFORM rejoin_key(job_.key, CASE WHEN job_.flags & 8 <> 0 THEN 1 ELSE job_.room END);
        END IF;
        PERFORM enter(job_.seq, NULL, now_);
        UPDATE job SET finished_at = NULL WHERE seq = job_.seq;
    END LOOP;
    PERFORM forget_heads();
    PERFORM ring();
    RETURN cardinality(seqs_);
END $$;

-- Before the gate, in order of the keys: an enqueue in a user's transaction may hold one for long, and whoever waits
-- for it must not have the gate. Answers the jobs that have their keys now; of several of one key, the oldest.
CREATE OR REPLACE FUNCTION take_unique_anew(p_seqs bigint[], p_now bigint) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    keys_ text[];
    ids_ uuid[];
    taken_ uuid[];
BEGIN
    SELECT array_agg(unique_key), array_agg(id) INTO keys_, ids_ FROM (
        SELECT DISTINCT ON (unique_key) unique_key, id FROM job
        WHERE seq = ANY(p_seqs) AND state + 0 >= 5 AND flags & 96 <> 0 ORDER BY unique_key, seq
    ) j;
    IF keys_ IS NULL THEN
        RETURN '{}';
    END IF;
    DELETE FROM unique_key WHERE key IN (
        SELECT key FROM unique_key WHERE key = ANY(keys_) AND until <= p_now FOR UPDATE SKIP LOCKED);
    PERFORM lose_patience();
    WITH taken AS (
        INSERT INTO unique_key (key, id, until) SELECT key, id, NULL FROM unnest(keys_, ids_) k(key, id) ORDER BY key
        ON CONFLICT DO NOTHING RETURNING id
    )
    SELECT coalesce(array_agg(id), '{}') INTO taken_ FROM taken;
    PERFORM regain_patience();
    RETURN taken_;
END $$;

CREATE OR REPLACE FUNCTION edit(p_id uuid, p_args bytea) RETURNS boolean
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
BEGIN
    PERFORM durable();
    PERFORM locking();
    UPDATE job SET args = p_args WHERE id = p_id AND state <> 4;
    RETURN found;
END $$;

CREATE OR REPLACE FUNCTION reprioritise(p_seqs bigint[], p_limit bigint, p_more bigint, p_priority smallint)
RETURNS bigint
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
DECLARE
    seqs_ bigint[];
    job_ record;
BEGIN
    PERFORM durable();
    IF cardinality(p_seqs) = 0 THEN
        RETURN 0;
    END IF;
    PERFORM gate();
    PERFORM wait_for(p_seqs, p_more > 0);
    SELECT array_agg(seq) INTO seqs_ FROM (
        SELECT seq FROM job WHERE seq = ANY(p_seqs) AND state < 4 AND priority <> p_priority
        ORDER BY seq LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) j;
    IF seqs_ IS NULL THEN
        RETURN none_left(p_seqs, p_limit, p_more);
    END IF;

    FOR job_ IN
        WITH before AS (
            SELECT seq, priority FROM job WHERE seq = ANY(seqs_)
        ), after AS (
            UPDATE job j SET priority = p_priority, tag = 0,
                rank = CASE WHEN key IS NOT NULL THEN CASE WHEN flags & 8 <> 0 THEN 0 ELSE -p_priority END END
            FROM before WHERE j.seq = before.seq RETURNING j.queue, j.state, before.priority
        )
        SELECT queue, state, priority, count(*)::integer AS n FROM after GROUP BY 1, 2, 3
    LOOP
        PERFORM count_move(job_.queue, job_.priority, job_.state, NULL, job_.n);
        PERFORM count_move(job_.queue, p_priority, NULL, job_.state, job_.n);
    END LOOP;
    -- In a fair lane each needs a new place, at the end of its tenant's.
    FOR job_ IN
        SELECT seq, queue, tenant FROM job WHERE seq = ANY(seqs_) AND state + 0 = 2
            AND queue IN (SELECT name FROM queue WHERE fair) ORDER BY seq
    LOOP
        UPDATE job SET tag = next_tag(job_.queue, p_priority, job_.tenant) WHERE seq = job_.seq;
    END LOOP;
    PERFORM forget_heads();
    PERFORM ring();
    RETURN cardinality(seqs_);
END $$;

-- (`delete` is a word of SQL's own.)
CREATE OR REPLACE FUNCTION delete_jobs(p_seqs bigint[], p_limit bigint, p_more bigint, p_now bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
DECLARE
    now_ bigint;
    seqs_ bigint[];
    ids_ uuid[];
    seq_ bigint;
    rings_ boolean := false;
BEGIN
    PERFORM durable();
    IF cardinality(p_seqs) = 0 THEN
        RETURN 0;
    END IF;
    PERFORM gate();
    PERFORM wait_for(p_seqs, p_more > 0);
    now_ := coalesce(p_now, ferryman_now());
    SELECT array_agg(seq), array_agg(id) FILTER (WHERE unique_key IS NOT NULL) INTO seqs_, ids_ FROM (
        SELECT seq, id, unique_key FROM job WHERE seq = ANY(p_seqs) AND state <> 4
        ORDER BY seq LIMIT p_limit FOR UPDATE SKIP LOCKED
    ) j;
    IF seqs_ IS NULL THEN
        RETURN none_left(p_seqs, p_limit, p_more);
    END IF;

    FOR seq_ IN
        SELECT seq FROM job WHERE seq = ANY(seqs_) AND state < 4 AND (concerns_others(flags, key) OR flags & 512 <> 0)
        ORDER BY seq
    LOOP
        IF cancel_pending(seq_, NULL, now_) THEN
            PERFORM let_go(ARRAY[seq_], now_);
            rings_ := true;
        END IF;
    END LOOP;
    IF ids_ IS NOT NULL THEN
        -- One that is locked has expired, and an enqueue that waits for the gate has deleted it.
        DELETE FROM unique_key WHERE key IN (
            SELECT key FROM unique_key WHERE id = ANY(ids_) FOR UPDATE SKIP LOCKED);
    END IF;
    PERFORM erase(seqs_);
    IF rings_ THEN
        PERFORM ring();
    END IF;
    RETURN cardinality(seqs_);
END $$;

-- Deletes jobs that hold nothing, with all that other tables know of them, save a unique key that is taken for a
-- period: it outlives its job. The gate is held.
CREATE OR REPLACE FUNCTION erase(p_seqs bigint[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    gone_ record;
BEGIN
    DELETE FROM attempt WHERE seq = ANY(p_seqs);
    DELETE FROM note WHERE seq = ANY(p_seqs);
    DELETE FROM parent WHERE child = ANY(p_seqs);
    FOR gone_ IN
        WITH gone AS (DELETE FROM job WHERE seq = ANY(p_seqs) RETURNING queue, priority, state)
        SELECT queue, priority, state, count(*)::integer AS n FROM gone GROUP BY 1, 2, 3
    LOOP
        PERFORM count_move(gone_.queue, gone_.priority, gone_.state, NULL, gone_.n);
    END LOOP;
END $$;

-- The gate only if something changes: programs declare their queues at each start.
CREATE OR REPLACE FUNCTION declare_queues(
    p_names text[], p_fair boolean[], p_weights text[], p_max_sizes bigint[], p_overflows text[]
) RETURNS void LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
BEGIN
    PERFORM durable();
    IF NOT EXISTS (
        SELECT 1 FROM unnest(p_names, p_fair, p_weights, p_max_sizes, p_overflows)
            d(name, fair, weights, max_size, overflow)
        LEFT JOIN queue q ON q.name = d.name COLLATE "C"
        WHERE q.name IS NULL OR (q.fair, q.weights, q.max_size, q.overflow)
            IS DISTINCT FROM (d.fair, d.weights::jsonb, d.max_size, d.overflow)
    ) THEN
        RETURN;
    END IF;
    PERFORM gate();
    -- In a queue that is fair no more, those with tags shall not wait behind all that come without, nor those that run, and
    -- may be given back.
    UPDATE job SET tag = 0 WHERE seq = ANY(ARRAY(
        SELECT seq FROM job WHERE (state = 2 OR state = 4) AND tag <> 0 AND queue = ANY(ARRAY(
            SELECT q.name FROM queue q JOIN unnest(p_names, p_fair) d(name, fair) ON q.name = d.name COLLATE "C"
            WHERE q.fair AND NOT d.fair))
        ORDER BY seq + 0 FOR UPDATE));
    IF found THEN
        PERFORM forget_heads();
    END IF;
    INSERT INTO queue AS q (name, fair, weights, max_size, overflow)
    SELECT name, fair, weights::jsonb, max_size, overflow
    FROM unnest(p_names, p_fair, p_weights, p_max_sizes, p_overflows) d(name, fair, weights, max_size, overflow)
    ORDER BY name COLLATE "C"
    ON CONFLICT (name) DO UPDATE SET fair = excluded.fair, weights = excluded.weights, max_size = excluded.max_size,
        overflow = excluded.overflow;
END $$;

CREATE OR REPLACE FUNCTION pause_queues(p_names text[], p_paused boolean) RETURNS void
LANGUAGE plpgsql SET search_path = @schema@, pg_temp AS $$
BEGIN
    PERFORM durable();
    INSERT INTO queue (name, paused) SELECT name, p_paused FROM unnest(p_names) n(name) ORDER BY name COLLATE "C"
    ON CONFLICT (name) DO UPDATE SET paused = excluded.paused;
    IF NOT p_paused THEN
        PERFORM ring();
    END IF;
END $$;
