-- Settle: what became of leased jobs. The fence is the worker and the number of the lease.

-- Arrays by place; those of which nothing is needed may be NULL. `p_errors` are encoded, `p_causes` what a job dies of.
-- No job is named twice with one lease. Answers the places (from 1) of those that were lost.
CREATE OR REPLACE FUNCTION settle(
    p_worker text, p_ids uuid[], p_leases integer[], p_kinds smallint[], p_ran_us bigint[], p_results bytea[],
    p_keeps bigint[], p_delays bigint[], p_errors bytea[], p_causes text[], p_reasons text[],
    p_gate boolean, p_now bigint
) RETURNS integer[]
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_ bigint := now_or(p_now);
    worker_ integer;
    accepted integer[] := '{}';
    has_gate boolean := p_gate;
    rest record;
    o record;
    reruns boolean := false;
BEGIN
    PERFORM durable();
    PERFORM hurry();
    IF p_gate THEN
        PERFORM gate();
    END IF;
    SELECT id INTO worker_ FROM worker WHERE name = p_worker;
    -- With other rows locked before, or others to come, these are not locked in the order of all: see `hold_leased`.
    IF NOT is_locking() AND 0 = ALL (p_kinds) THEN
        PERFORM locking();
        accepted := succeed(worker_, p_ids, p_leases, p_kinds, p_ran_us, p_results, p_keeps, false, now_);
        IF cardinality(accepted) = cardinality(p_ids) OR NOT has_leased(worker_, p_ids, p_leases) THEN
            RETURN places_but(accepted, cardinality(p_ids));
        END IF;
        -- What is left concerns others.
        PERFORM gate();
        has_gate := true;
    END IF;
    PERFORM locking();
    PERFORM hold_leased(worker_, p_ids, p_leases, has_gate);
    SELECT
        coalesce(bool_or(
            concerns_others(x.flags, x.key) OR (x.kind = 1 AND x.delay <= 0 AND is_fair(x.queue))
        ), false) AS needs_gate,
        array_agg(x.seq ORDER BY x.place) FILTER (WHERE x.kind = 0) AS succeeded
    INTO rest FROM (
        SELECT y.place, y.kind, y.delay, j.seq, j.flags, j.key, j.queue
        FROM unnest(p_ids, p_leases, p_kinds, p_delays) WITH ORDINALITY y(id, lease, kind, delay, place)
        JOIN job j ON j.id = y.id AND j.state + 0 = 4 AND j.worker = worker_ AND j.lease = y.lease
    ) x;
    IF rest.needs_gate AND NOT has_gate THEN
        PERFORM gate();
    END IF;
    IF rest.succeeded IS NOT NULL THEN
        accepted := accepted || succeed(worker_, p_ids, p_leases, p_kinds, p_ran_us, p_results, p_keeps, true, now_);
        PERFORM let_go(rest.succeeded, now_);
        reruns := true;
    END IF;
    FOR o IN
        SELECT j.seq, x.* FROM unnest(p_ids, p_leases, p_kinds, p_ran_us, p_delays, p_errors, p_causes, p_reasons)
            WITH ORDINALITY x(id, lease, kind, ran_us, delay, error, cause, reason, place)
        JOIN job j ON j.id = x.id AND j.state + 0 = 4 AND j.worker = worker_ AND j.lease = x.lease
        WHERE x.kind <> 0 ORDER BY x.place
    LOOP
        PERFORM settle_leased(
            o.seq, o.kind, o.ran_us, coalesce(o.delay, 0), o.error, o.cause, o.reason, 1::smallint, now_
        );
        accepted := accepted || o.place::integer;
        reruns := true;
    END LOOP;
    IF reruns THEN
        PERFORM ring();
    END IF;
    RETURN places_but(accepted, cardinality(p_ids));
END $$;

-- Locks those of these jobs that are still leased so, for a verb that locks more than these. Whoever has the gate waits for
-- rows, and for that nobody who holds some may wait for one of theirs, unless he loses patience: others (NOT `p_waits`) wait
-- for none, but let the transaction begin anew with the gate (FY001).
CREATE OR REPLACE FUNCTION hold_leased(p_worker integer, p_ids uuid[], p_leases integer[], p_waits boolean)
RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_waits THEN
        PERFORM 1 FROM unnest(p_ids, p_leases) x(id, lease)
        JOIN job j ON j.id = x.id AND j.state + 0 = 4 AND j.worker = p_worker AND j.lease = x.lease
        ORDER BY j.seq FOR UPDATE OF j;
    ELSIF (
        SELECT count(*) FROM unnest(p_ids, p_leases) x(id, lease)
        JOIN job j ON j.id = x.id AND j.state + 0 = 4 AND j.worker = p_worker AND j.lease = x.lease
    ) > (
        SELECT count(*) FROM (
            SELECT FROM unnest(p_ids, p_leases) x(id, lease)
            JOIN job j ON j.id = x.id AND j.state + 0 = 4 AND j.worker = p_worker AND j.lease = x.lease
            FOR UPDATE OF j SKIP LOCKED
        ) h
    ) THEN
        PERFORM begin_again();
    END IF;
END $$;

CREATE OR REPLACE FUNCTION has_leased(p_worker integer, p_ids uuid[], p_leases integer[]) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (
        SELECT 1 FROM unnest(p_ids, p_leases) x(id, lease)
        JOIN job j ON j.id = x.id AND j.state + 0 = 4 AND j.worker = p_worker AND j.lease = x.lease
    );
END $$;

CREATE OR REPLACE FUNCTION places_but(p_places integer[], p_count integer) RETURNS integer[] LANGUAGE plpgsql AS $$
BEGIN
    IF cardinality(p_places) = p_count THEN
        RETURN '{}';
    END IF;
    RETURN ARRAY(SELECT x.place FROM generate_series(1, p_count) x(place) WHERE x.place <> ALL (p_places));
END $$;

-- Whoever settles inside a transaction of his own holds his jobs, and perhaps the gate, until he commits; and whoever
-- settles or rescues these jobs waits. So one who forgets his transaction, or is cut off from the server, loses it.
CREATE OR REPLACE FUNCTION hurry() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    patience text := current_setting('idle_in_transaction_session_timeout');
BEGIN
    IF patience = '0' OR patience::interval > '10 s' THEN
        PERFORM set_config('idle_in_transaction_session_timeout', '10s', true);
    END IF;
END $$;

-- The common case, for all at once: those that concern no others, or (`p_special`) the rest. Answers their places.
CREATE OR REPLACE FUNCTION succeed(
    p_worker integer, p_ids uuid[], p_leases integer[], p_kinds smallint[], p_ran_us bigint[], p_results bytea[],
    p_keeps bigint[], p_special boolean, p_now bigint
) RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    places integer[];
BEGIN
    WITH done AS (
        UPDATE job j SET
            state = 5, started_at = p_now - x.ran_us / 1000, finished_at = p_now, result = x.result,
            result_until = p_now + x.keep
        FROM (
            -- In the order in which whoever has the gate locks them. By the ids: `state + 0` keeps the planner from going
            -- through all that the worker runs, for each of them.
            SELECT l.ctid AS spot, y.* FROM unnest(p_ids, p_leases, p_kinds, p_ran_us, p_results, p_keeps) WITH ORDINALITY
                y(id, lease, kind, ran_us, result, keep, place)
            JOIN job l ON l.id = y.id AND l.state + 0 = 4 AND l.worker = p_worker AND l.lease = y.lease
            WHERE y.kind = 0 ORDER BY l.seq
        ) x
        -- All of it once more, for one that was locked and has changed.
        WHERE j.ctid = x.spot AND j.state + 0 = 4 AND j.worker = p_worker AND j.lease = x.lease
            AND (p_special OR NOT concerns_others(j.flags, j.key))
        RETURNING
            x.place::integer, j.queue, j.priority, j.task, x.ran_us,
            (p_now - x.ran_us / 1000 - j.run_at) * 1000 AS waited_us
    ), moves AS (
        INSERT INTO lane_news (queue, priority, state, n)
        SELECT d.queue, d.priority, s.state, s.sign * d.n
        FROM (SELECT queue, priority, count(*) AS n FROM done GROUP BY queue, priority) d
        CROSS JOIN (VALUES (4::smallint, -1), (5::smallint, 1)) s(state, sign)
    ), stats AS (
        INSERT INTO stat_news (minute, queue, task, kind, bucket, n)
        SELECT p_now - p_now % 60000, queue, task, 1, 0, count(*) FROM done GROUP BY queue, task
        UNION ALL
        SELECT p_now - p_now % 60000, queue, task, 4, bucket_of(waited_us), count(*) FROM done
        GROUP BY queue, task, bucket_of(waited_us)
        UNION ALL
        SELECT p_now - p_now % 60000, queue, task, 5, bucket_of(ran_us), count(*) FROM done
        GROUP BY queue, task, bucket_of(ran_us)
    )
    SELECT array_agg(place) INTO places FROM done;
    RETURN coalesce(places, '{}');
END $$;

-- Carries out an outcome other than success, of a job that is locked; with the gate, if it concerns others. Answers the
-- state that the job went to. `p_deaths` is what a crash counts for.
CREATE OR REPLACE FUNCTION settle_leased(
    p_seq bigint, p_kind smallint, p_ran_us bigint, p_delay bigint, p_error bytea, p_cause text, p_reason text,
    p_deaths smallint, p_now bigint
) RETURNS smallint LANGUAGE plpgsql AS $$
DECLARE
    j record;
    kind_ smallint := p_kind;
    error_ bytea := p_error;
    cause_ text := p_cause;
    reason_ text := p_reason;
    started bigint := p_now - p_ran_us / 1000;
    deaths_ smallint;
BEGIN
    SELECT queue, priority, task, flags, lease, attempt, max_attempts, deaths, run_at, key, worker INTO j
    FROM job WHERE seq = p_seq;
    IF j.flags & 128 <> 0 AND kind_ IN (1, 3, 5, 6) THEN
        kind_ := 4;
        reason_ := 'cancelled while it ran';
    END IF;
    IF kind_ = 5 THEN
        -- Back to the place it had: same tag, same moment.
        UPDATE job SET state = 2, attempt = attempt - 1, worker = NULL, started_at = NULL WHERE seq = p_seq;
        PERFORM count_move(j.queue, j.priority, 4::smallint, 2::smallint);
        PERFORM forget_head(j.queue, j.priority);
        IF j.flags & 64 <> 0 AND j.attempt = 1 THEN
            PERFORM take_back_unique(p_seq, p_now);
        END IF;
        RETURN 2;
    END IF;
    IF kind_ = 6 AND error_ IS NULL THEN
        -- MessagePack of ErrorInfo("Crashed", "its executor died")
        error_ := decode('93a743726173686564b1697473206578656375746f722064696564a0', 'hex');
        cause_ := 'Crashed: its executor died';
    END IF;
    PERFORM record_attempt(p_seq, j.attempt, j.lease, kind_, j.worker, started, error_, reason_, p_now);
    IF kind_ IN (1, 2, 6) THEN
        INSERT INTO stat_news (minute, queue, task, kind, bucket, n) VALUES
            (p_now - p_now % 60000, j.queue, j.task, 4, bucket_of((started - j.run_at) * 1000), 1),
            (p_now - p_now % 60000, j.queue, j.task, 5, bucket_of(p_ran_us), 1),
            (p_now - p_now % 60000, j.queue, j.task, 2, 0, 1);
    END IF;
    deaths_ := j.deaths + CASE WHEN kind_ = 6 THEN p_deaths ELSE 0 END;
    IF kind_ = 3 THEN
        UPDATE job SET reason = reason_ WHERE seq = p_seq;
        RETURN put_off(p_seq, j.attempt - 1, p_delay, true, p_now);
    ELSIF kind_ = 4 THEN
        PERFORM finish_leased(p_seq, 7::smallint, reason_, started, deaths_, p_now);
        RETURN 7;
    ELSIF kind_ = 1 AND j.attempt < j.max_attempts THEN
        UPDATE job SET started_at = started WHERE seq = p_seq;
        RETURN put_off(p_seq, j.attempt, p_delay, false, p_now);
    ELSIF kind_ = 6 AND j.attempt < j.max_attempts AND deaths_ < 3 THEN
        UPDATE job SET state = 2, deaths = deaths_, started_at = started WHERE seq = p_seq;
        PERFORM count_move(j.queue, j.priority, 4::smallint, 2::smallint);
        PERFORM forget_head(j.queue, j.priority);
        RETURN 2;
    END IF;
    PERFORM finish_leased(
        p_seq, 6::smallint, CASE WHEN error_ IS NULL THEN reason_ ELSE cause_ END, started, deaths_, p_now
    );
    PERFORM count_stat(j.queue, j.task, 3::smallint, 0::smallint, 1, p_now);
    RETURN 6;
END $$;

-- A job that was claimed but never started has again the unique key that it gave back at the claim, if that is free. One that a
-- transaction under way is about to take is not waited for, since the gate is held: it is as good as taken.
CREATE OR REPLACE FUNCTION take_back_unique(p_seq bigint, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    key_ text := (SELECT unique_key FROM job WHERE seq = p_seq);
    patience text := current_setting('lock_timeout');
BEGIN
    DELETE FROM unique_key WHERE key IN (
        SELECT key FROM unique_key WHERE key = key_ AND until <= p_now FOR UPDATE SKIP LOCKED);
    PERFORM set_config('lock_timeout', '1ms', true);
    INSERT INTO unique_key (key, id, until) SELECT key_, id, NULL FROM job WHERE seq = p_seq ON CONFLICT DO NOTHING;
    PERFORM set_config('lock_timeout', patience, true);
EXCEPTION WHEN lock_not_available THEN
    NULL;
END $$;

-- Runs again after a delay, or at once. While it waits, only an ordered job keeps its key's place.
CREATE OR REPLACE FUNCTION put_off(p_seq bigint, p_attempt integer, p_delay bigint, p_always boolean, p_now bigint)
RETURNS smallint LANGUAGE plpgsql AS $$
DECLARE
    j record;
BEGIN
    IF p_delay <= 0 AND NOT p_always THEN
        UPDATE job SET attempt = p_attempt WHERE seq = p_seq;
        RETURN enter(p_seq, NULL, p_now);
    END IF;
    SELECT queue, priority, flags, key INTO j FROM job WHERE seq = p_seq;
    IF j.key IS NOT NULL AND j.flags & 24 = 16 THEN
        UPDATE job SET state = 1, attempt = p_attempt, run_at = p_now + p_delay, flags = flags & ~16 WHERE seq = p_seq;
        PERFORM free_place(j.key, p_now);
    ELSE
        UPDATE job SET state = 1, attempt = p_attempt, run_at = p_now + p_delay WHERE seq = p_seq;
    END IF;
    PERFORM count_move(j.queue, j.priority, 4::smallint, 1::smallint);
    RETURN 1;
END $$;

CREATE OR REPLACE FUNCTION finish_leased(
    p_seq bigint, p_state smallint, p_reason text, p_started bigint, p_deaths smallint, p_now bigint
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    j record;
BEGIN
    UPDATE job SET state = p_state, reason = p_reason, started_at = p_started, finished_at = p_now, deaths = p_deaths
    WHERE seq = p_seq RETURNING queue, priority, flags, key INTO j;
    PERFORM count_move(j.queue, j.priority, 4::smallint, p_state);
    IF concerns_others(j.flags, j.key) THEN
        PERFORM let_go(ARRAY[p_seq], p_now);
    END IF;
END $$;

-- Of each job the last thousand are kept.
CREATE OR REPLACE FUNCTION record_attempt(
    p_seq bigint, p_number integer, p_lease integer, p_kind smallint, p_worker integer, p_started bigint, p_error bytea,
    p_reason text, p_now bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO attempt (seq, number, kind, worker, started_at, finished_at, error, reason)
    VALUES (p_seq, p_number, p_kind, p_worker, p_started, p_now, p_error, p_reason);
    IF p_lease > 1000 THEN
        DELETE FROM attempt WHERE seq = p_seq
            AND id <= (SELECT id FROM attempt WHERE seq = p_seq ORDER BY id DESC LIMIT 1 OFFSET 1000);
    END IF;
END $$;

-- Progress and notes of running jobs, by place; those of lost leases are dropped.
CREATE OR REPLACE FUNCTION annotate(
    p_worker text, p_ids uuid[], p_leases integer[], p_progress double precision[], p_texts text[],
    p_gate boolean, p_now bigint
) RETURNS void
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_ bigint := now_or(p_now);
    worker_ integer;
    noted bigint[];
BEGIN
    PERFORM durable();
    IF p_gate THEN
        PERFORM gate();
    END IF;
    PERFORM locking();
    SELECT id INTO worker_ FROM worker WHERE name = p_worker;
    -- One of them may have completed in a transaction of its own that goes on, and that may have the gate. So a note does not
    -- ask for the gate, but takes it first if what comes after it in its own transaction does.
    PERFORM lose_patience();
    PERFORM hold_leased(worker_, p_ids, p_leases, true);
    PERFORM regain_patience();
    UPDATE job j SET progress = x.progress FROM (
        SELECT DISTINCT ON (id, lease) id, lease, progress FROM unnest(p_ids, p_leases, p_progress) WITH ORDINALITY
            x(id, lease, progress, place)
        WHERE progress IS NOT NULL ORDER BY id, lease, place DESC
    ) x WHERE j.id = x.id AND j.state + 0 = 4 AND j.worker = worker_ AND j.lease = x.lease;
    WITH fresh AS (
        INSERT INTO note (seq, at, attempt, text)
        SELECT j.seq, now_, j.attempt, left(x.text, 4000)
        FROM unnest(p_ids, p_leases, p_texts) WITH ORDINALITY x(id, lease, text, place)
        JOIN job j ON j.id = x.id AND j.state + 0 = 4 AND j.worker = worker_ AND j.lease = x.lease
        WHERE x.text IS NOT NULL ORDER BY x.place RETURNING seq
    ) SELECT array_agg(DISTINCT seq) INTO noted FROM fresh;
    -- Of each job the last thousand are kept.
    DELETE FROM note n USING unnest(noted) x(seq) WHERE n.seq = x.seq
        AND n.id <= (SELECT o.id FROM note o WHERE o.seq = x.seq ORDER BY o.id DESC LIMIT 1 OFFSET 1000);
END $$;
