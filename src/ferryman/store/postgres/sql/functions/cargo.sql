-- Cargo: jobs that another store has packed, and jobs that live elsewhere now.

-- Which jobs the next page has: of these states (NULL: of any), or these ids (NULL: of all), in order of arrival; no more
-- than are large enough together. Walks along job_seq: whatever the planner believes of how many there are, nothing
-- is sorted.
CREATE OR REPLACE FUNCTION cargo_page(p_states smallint[], p_ids uuid[], p_after bigint, p_limit bigint, p_most bigint)
RETURNS SETOF bigint
LANGUAGE plpgsql STABLE
SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off
AS $$
DECLARE
    -- A walk of its own for each, so that each has the one plan that is right.
    walk refcursor;
    seq_ bigint;
    bytes bigint;
    size_ bigint := 0;
BEGIN
    IF p_after = 0 AND p_ids IS NULL THEN
        PERFORM wait_for_claims();
    END IF;
    IF p_ids IS NOT NULL THEN
        OPEN walk FOR
            SELECT o.seq, octet_length(o.args) + coalesce(octet_length(o.result), 0) FROM job o
            WHERE o.id = ANY (p_ids) AND o.seq > p_after AND (p_states IS NULL OR o.state = ANY (p_states))
            ORDER BY o.seq + 0 LIMIT p_limit;
    ELSE
        OPEN walk FOR
            SELECT o.seq, octet_length(o.args) + coalesce(octet_length(o.result), 0) FROM job o
            WHERE o.seq > p_after AND (p_states IS NULL OR o.state = ANY (p_states))
            ORDER BY o.seq LIMIT p_limit;
    END IF;
    LOOP
        FETCH walk INTO seq_, bytes;
        EXIT WHEN NOT found;
        RETURN NEXT seq_;
        size_ := size_ + bytes + history_size(seq_);
        EXIT WHEN size_ >= p_most;
    END LOOP;
    CLOSE walk;
END $$;

-- Without reading what lies in other pages of the table because it is large.
CREATE OR REPLACE FUNCTION history_size(p_seq bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN (
        SELECT coalesce(sum(coalesce(octet_length(a.error), 0) + coalesce(octet_length(a.reason), 0)), 0)
        FROM attempt a WHERE a.seq = p_seq
    ) + (SELECT coalesce(sum(octet_length(n.text)), 0) FROM note n WHERE n.seq = p_seq);
END $$;

-- Until the claims have ended that are under way now, and may not have seen a pause. They are known by the locks of their
-- workers (see claim.sql), which are not taken here: that would make those workers wait for one another.
CREATE OR REPLACE FUNCTION wait_for_claims() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    patience constant interval := coalesce(nullif(current_setting('lock_timeout'), '0'), '10s');
    give_up constant timestamptz := clock_timestamp() + patience;
    claims text[] := ARRAY(
        SELECT l.virtualtransaction FROM pg_locks l JOIN worker w
            ON worker_lock(w.name) = (l.classid::bigint << 32 | l.objid::bigint) AND w.gone IS NULL
        WHERE l.locktype = 'advisory' AND l.objsubid = 1 AND l.granted
            AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    );
BEGIN
    WHILE EXISTS (
        SELECT 1 FROM pg_locks l WHERE l.locktype = 'advisory' AND l.virtualtransaction = ANY (claims)
    ) LOOP
        IF clock_timestamp() > give_up THEN
            RAISE EXCEPTION 'a claim of a worker does not end' USING ERRCODE = '55P03';
        END IF;
        PERFORM pg_sleep(0.01);
    END LOOP;
END $$;

-- Jobs that have to ask others (keys, parents, fair lanes) are inserted as staged and admitted in their order, as those of
-- an enqueue are; all others are inserted as they are. Nobody is asked for room in a bounded queue. `p_specs`,
-- `p_attempts` and `p_notes` are arrays with an object for each; attempts, notes and parents have the place of their job.
-- `p_holds`: for each job, whether it has a place of its key although it is scheduled. Answers the places of new jobs.
CREATE OR REPLACE FUNCTION unpack(
    p_ids uuid[], p_args bytea[], p_options bytea[], p_results bytea[], p_specs jsonb, p_holds boolean[],
    p_attempts jsonb, p_errors bytea[], p_notes jsonb, p_workers text[],
    p_child_places integer[], p_parents uuid[], p_done boolean[], p_now bigint
) RETURNS TABLE (place integer)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
#variable_conflict use_column
DECLARE
    now_ bigint := now_or(p_now);
    before_ bigint;
    fresh bigint[];     -- by place: seq of the job, NULL if it was known
    staged bigint[];
    one record;
BEGIN
    PERFORM durable();
    PERFORM take_unique_of_cargo(p_ids, p_specs, now_);
    PERFORM gate();
    -- Names that histories tell, of workers that were never here.
    INSERT INTO worker (name, info, status, listens, registered_at, seen_at, lease_until, gone)
    SELECT w.name, '', '', false, 0, 0, 0, 3 FROM unnest(p_workers) w(name)
    WHERE NOT EXISTS (SELECT 1 FROM worker x WHERE x.name = w.name COLLATE "C") ORDER BY w.name COLLATE "C"
    ON CONFLICT (name) DO NOTHING;
    SELECT last_value - (NOT is_called)::integer INTO before_ FROM job_seq_seq;
    WITH spec AS MATERIALIZED (
        SELECT
            x.*, x.state < 4 AND (x.key IS NOT NULL OR x.waits OR coalesce(q.fair, false)) AS is_staged
        FROM ROWS FROM (
            unnest(p_ids), unnest(p_args), unnest(p_options), unnest(p_results),
            jsonb_to_recordset(p_specs) AS (
                task text, queue text, priority smallint, max_attempts integer, state smallint, attempt integer,
                deaths smallint, enqueued_at bigint, run_at bigint, started_at bigint, finished_at bigint,
                deadline bigint, result_until bigint, worker text, reason text, progress double precision, key text,
                room integer, flags integer, tenant text, tags text[], waits boolean, "unique" text
            )
        ) WITH ORDINALITY x(
            id, args, options, result, task, queue, priority, max_attempts, state, attempt, deaths, enqueued_at, run_at,
            started_at, finished_at, deadline, result_until, worker, reason, progress, key, room, flags, tenant, tags,
            waits, unique_key, place
        ) LEFT JOIN queue q ON q.name = x.queue
    ), stored AS (
        INSERT INTO job (
            id, task, queue, priority, state, flags, attempt, max_attempts, deaths, enqueued_at, run_at, started_at,
            finished_at, deadline, result_until, worker, reason, progress, args, options, result, tenant, tags, key,
            room, rank, unique_key
        )
        SELECT
            id, task, queue, priority,
            CASE WHEN is_staged THEN 0 WHEN state >= 4 THEN state WHEN run_at > now_ THEN 1 ELSE 2 END,
            flags | CASE WHEN is_staged THEN 512 ELSE 0 END, attempt, max_attempts, deaths, enqueued_at, run_at, started_at,
            finished_at, deadline, result_until, (SELECT w.id FROM worker w WHERE w.name = spec.worker COLLATE "C"), reason,
            progress, args, options, result, tenant, tags, key, CASE WHEN key IS NOT NULL THEN room END,
            CASE WHEN key IS NOT NULL THEN CASE WHEN flags & 8 <> 0 THEN 0 ELSE -priority END END, unique_key
        FROM spec ORDER BY place
        ON CONFLICT (id) DO NOTHING
        RETURNING seq, queue, priority, state, flags
    ), moves AS (
        INSERT INTO lane_news (queue, priority, state, n)
        SELECT queue, priority, state, count(*) FROM stored GROUP BY queue, priority, state
    )
    SELECT array_agg(seq ORDER BY seq) FILTER (WHERE flags & 512 <> 0) INTO staged FROM stored;
    fresh := ARRAY(
        SELECT j.seq FROM unnest(p_ids) WITH ORDINALITY x(id, place) LEFT JOIN job j ON j.id = x.id AND j.seq + 0 > before_
        ORDER BY x.place
    );
    PERFORM unpack_histories(fresh, p_attempts, p_errors, p_notes);
    INSERT INTO parent (child, place, parent, done)
    SELECT fresh[c.child], min(c.number), c.parent, bool_and(c.done)
    FROM unnest(p_child_places, p_parents, p_done) WITH ORDINALITY c(child, parent, done, number)
    WHERE fresh[c.child] IS NOT NULL GROUP BY c.child, c.parent;
    -- Children may have been here before their parents.
    UPDATE job SET flags = flags | 1
    WHERE seq = ANY (fresh) AND flags & 1 = 0 AND EXISTS (SELECT 1 FROM parent p WHERE p.parent = job.id);
    IF true = ANY (p_holds) THEN
        FOR one IN
            SELECT x.seq, x.holds FROM unnest(fresh, p_holds) x(seq, holds) WHERE x.seq = ANY (staged) ORDER BY x.seq
        LOOP
            PERFORM admit(ARRAY[one.seq], now_);
            IF one.holds THEN
                PERFORM hold_place(one.seq);
            END IF;
        END LOOP;
    ELSIF staged IS NOT NULL THEN
        PERFORM admit(staged, now_);
    END IF;
    PERFORM ring();
    RETURN QUERY SELECT x.place::integer FROM unnest(fresh) WITH ORDINALITY x(seq, place) WHERE x.seq IS NOT NULL;
END $$;

-- Before the gate, in order of the keys. One that another job has here stays with it.
CREATE OR REPLACE FUNCTION take_unique_of_cargo(p_ids uuid[], p_specs jsonb, p_now bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM unique_key WHERE ctid = ANY (ARRAY(
        SELECT u.ctid FROM jsonb_to_recordset(p_specs) AS s(held boolean, "unique" text)
        JOIN unique_key u ON u.key = s."unique" WHERE s.held AND u.until <= p_now ORDER BY u.key FOR UPDATE OF u
    ));
    INSERT INTO unique_key (key, id, until)
    SELECT DISTINCT ON (x.key COLLATE "C") x.key, x.id, x.until
    FROM ROWS FROM (
        unnest(p_ids), jsonb_to_recordset(p_specs) AS (held boolean, "unique" text, unique_until bigint)
    ) WITH ORDINALITY x(id, held, key, until, place)
    WHERE x.held AND NOT EXISTS (SELECT 1 FROM job j WHERE j.id = x.id)
    ORDER BY x.key COLLATE "C", x.place
    ON CONFLICT (key) DO NOTHING;
END $$;

CREATE OR REPLACE FUNCTION unpack_histories(p_seqs bigint[], p_attempts jsonb, p_errors bytea[], p_notes jsonb) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO attempt (seq, number, kind, worker, started_at, finished_at, error, reason)
    SELECT
        p_seqs[a.place], a.number, a.kind, (SELECT w.id FROM worker w WHERE w.name = a.worker COLLATE "C"), a.started_at,
        a.finished_at, a.error, a.reason
    FROM ROWS FROM (
        unnest(p_errors),
        jsonb_to_recordset(p_attempts) AS (
            place integer, number integer, kind smallint, worker text, started_at bigint, finished_at bigint, reason text
        )
    ) WITH ORDINALITY a(error, place, number, kind, worker, started_at, finished_at, reason, spot)
    WHERE p_seqs[a.place] IS NOT NULL ORDER BY a.spot;
    INSERT INTO note (seq, at, attempt, text)
    SELECT p_seqs[n.place], n.at, n.attempt, n.text
    FROM ROWS FROM (
        jsonb_to_recordset(p_notes) AS (place integer, at bigint, attempt integer, text text)
    ) WITH ORDINALITY n(place, at, attempt, text, spot)
    WHERE p_seqs[n.place] IS NOT NULL ORDER BY n.spot;
END $$;

-- An ordered job that is to be tried again later keeps its key's place, if that is free here. The gate is held.
CREATE OR REPLACE FUNCTION hold_place(p_seq bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE room SET used = used + 1
    WHERE key = (SELECT j.key FROM job j WHERE j.seq = p_seq AND j.state + 0 = 1 AND j.flags & 24 = 8) AND used < room;
    IF found THEN
        UPDATE job SET flags = flags | 16 WHERE seq = p_seq;
    END IF;
END $$;

-- As delete_jobs, but nobody is told. `p_states`: of these alone, if there are any.
CREATE OR REPLACE FUNCTION forget(p_ids uuid[], p_states integer[], p_now bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
DECLARE
    now_ bigint := now_or(p_now);
    seqs_ bigint[];
    seq_ bigint;
BEGIN
    PERFORM durable();
    PERFORM gate();
    SELECT coalesce(array_agg(seq), '{}') INTO seqs_ FROM (
        SELECT seq FROM job
        WHERE id = ANY (p_ids) AND state <> 4 AND (p_states = '{}' OR state + 0 = ANY (p_states)) ORDER BY seq FOR UPDATE
    ) j;
    UPDATE job SET flags = flags & ~1 WHERE seq = ANY (seqs_) AND state < 4 AND flags & 1 <> 0;
    FOR seq_ IN
        SELECT seq FROM job WHERE seq = ANY (seqs_) AND state < 4 AND concerns_others(flags, key) ORDER BY seq
    LOOP
        IF cancel_pending(seq_, NULL, now_) THEN
            PERFORM let_go(ARRAY[seq_], now_);
        END IF;
    END LOOP;
    DELETE FROM unique_key WHERE key IN (
        SELECT u.key FROM job j JOIN unique_key u ON u.id = j.id WHERE j.seq = ANY (seqs_) AND j.unique_key IS NOT NULL
        FOR UPDATE OF u SKIP LOCKED);
    PERFORM erase(seqs_);
    RETURN cardinality(seqs_);
END $$;
