-- Enqueue: a batch of jobs, all or none. Both functions answer with the duplicates alone: their places in the batch,
-- from 1, and the jobs that stand for them.
--
-- Plain jobs are inserted as they are. Others are inserted as staged, and then, in the same transaction, admitted
-- under the gate. In a user's own transaction (`p_defer`), which may last, they are left for the next claim to admit.

-- Jobs that differ in ids and arguments alone and have no key, parents or unique key.
CREATE OR REPLACE FUNCTION enqueue_run(
    p_ids uuid[], p_args bytea[], p_task text, p_queue text, p_priority smallint, p_max_attempts integer,
    p_delay bigint, p_at bigint, p_ttl bigint, p_deadline bigint, p_options bytea, p_tenant text, p_tags text[],
    p_defer boolean, p_gate boolean, p_now bigint
) RETURNS TABLE (place integer, holder text)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_ bigint := now_or(p_now);
    run_at_ bigint := CASE WHEN p_at IS NULL THEN now_ + p_delay ELSE greatest(p_at, now_) END;
    staged boolean;
    state_ smallint;
    before_ bigint;
    fresh integer;
BEGIN
    PERFORM durable();
    IF p_gate THEN
        PERFORM gate();
    END IF;
    SELECT
        coalesce((SELECT fair OR max_size IS NOT NULL FROM queue WHERE name = p_queue), false),
        last_value - (NOT is_called)::integer
    INTO staged, before_ FROM job_seq_seq;
    state_ := CASE WHEN staged THEN 0 WHEN run_at_ > now_ THEN 1 ELSE 2 END;
    INSERT INTO job (
        id, task, queue, priority, state, flags, max_attempts, enqueued_at, run_at, deadline, args, options, tenant, tags
    )
    SELECT
        x.id, p_task, p_queue, p_priority, state_, CASE WHEN staged THEN 512 ELSE 0 END, p_max_attempts, now_, run_at_,
        CASE WHEN p_ttl IS NULL THEN p_deadline ELSE now_ + p_ttl END, x.args, p_options, p_tenant, p_tags
    FROM unnest(p_ids, p_args) x(id, args)
    ON CONFLICT (id) DO NOTHING;
    GET DIAGNOSTICS fresh = ROW_COUNT;
    IF fresh > 0 THEN
        INSERT INTO lane_news (queue, priority, state, n) VALUES (p_queue, p_priority, state_, fresh);
        INSERT INTO stat_news (minute, queue, task, kind, bucket, n) VALUES (now_ - now_ % 60000, p_queue, p_task, 0, 0, fresh);
        IF staged THEN
            PERFORM admit_new(
                ARRAY(SELECT j.seq FROM unnest(p_ids) x(id) JOIN job j ON j.id = x.id WHERE j.seq + 0 > before_),
                ARRAY[p_queue], p_defer, now_
            );
        END IF;
        PERFORM ring();
        IF NOT p_defer AND random() < 0.002 THEN
            PERFORM fold();
        END IF;
    END IF;
    IF fresh < cardinality(p_ids) THEN
        IF NOT p_defer
            AND fresh < (SELECT count(*) FROM unnest(p_ids) x(id) JOIN job j ON j.id = x.id WHERE j.seq + 0 > before_)
        THEN
            -- Somebody else has stored one of them between our look at the numbers and our insert.
            PERFORM begin_again();
        END IF;
        RETURN QUERY
        SELECT x.place::integer, encode(uuid_send(x.id), 'hex')
        FROM unnest(p_ids) WITH ORDINALITY x(id, place) JOIN job j ON j.id = x.id
        WHERE j.seq + 0 <= before_;
    END IF;
END $$;

-- Any jobs. `p_specs` is an array with an object for each; unique keys and parents come apart, each with the place of
-- its job. No id is in the batch twice.
CREATE OR REPLACE FUNCTION enqueue_any(
    p_ids uuid[], p_args bytea[], p_options bytea[], p_specs jsonb,
    p_unique_places integer[], p_unique_keys text[], p_periods bigint[],
    p_child_places integer[], p_parents uuid[], p_parent_spots integer[],
    p_defer boolean, p_gate boolean, p_now bigint
) RETURNS TABLE (place integer, holder text)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    now_ bigint := now_or(p_now);
    before_ bigint;
    holders uuid[] := array_fill(NULL::uuid, ARRAY[cardinality(p_ids)]);
    mine bigint[];      -- seq
    fresh bigint[];     -- the same by place, NULL for a duplicate
    staged bigint[];
    queues text[];
BEGIN
    PERFORM durable();
    -- Before the gate, so that nobody who has it waits for one who waits for it.
    IF cardinality(p_unique_keys) > 0 THEN
        IF NOT p_defer THEN
            PERFORM lose_patience();
        END IF;
        holders := take_unique(
            p_ids, p_unique_places, p_unique_keys, p_periods,
            CASE WHEN NOT p_defer AND cardinality(p_child_places) > 0 AND cardinality(p_unique_keys) > 1
                THEN born_cancelled(p_specs, p_child_places, p_parents, p_parent_spots) ELSE '{}' END,
            now_
        );
        PERFORM regain_patience();
    END IF;
    IF p_gate THEN
        PERFORM gate();
    END IF;
    SELECT last_value - (NOT is_called)::integer INTO before_ FROM job_seq_seq;
    WITH spec AS MATERIALIZED (
        SELECT
            x.*, x.key IS NOT NULL OR x.parents OR coalesce(q.fair OR q.max_size IS NOT NULL, false) AS is_staged,
            CASE WHEN x.at IS NULL THEN now_ + x.delay ELSE greatest(x.at, now_) END AS run_at
        FROM ROWS FROM (
            unnest(p_ids), unnest(p_args), unnest(p_options), unnest(holders),
            jsonb_to_recordset(p_specs) AS (
                task text, queue text, priority smallint, max_attempts integer, delay bigint, at bigint, ttl bigint,
                deadline bigint, key text, room integer, flags integer, tenant text, tags text[], parents boolean,
                "unique" text
            )
        ) WITH ORDINALITY x(
            id, args, options, holder, task, queue, priority, max_attempts, delay, at, ttl, deadline, key, room, flags,
            tenant, tags, parents, unique_key, place
        ) LEFT JOIN queue q ON q.name = x.queue
        WHERE x.holder IS NULL
    ), stored AS (
        INSERT INTO job (
            id, task, queue, priority, state, flags, max_attempts, enqueued_at, run_at, deadline, args, options, tenant,
            tags, key, room, rank, unique_key
        )
        SELECT
            id, task, queue, priority, CASE WHEN is_staged THEN 0 WHEN run_at > now_ THEN 1 ELSE 2 END,
            flags | CASE WHEN is_staged THEN 512 ELSE 0 END, max_attempts, now_, run_at,
            CASE WHEN ttl IS NULL THEN deadline ELSE now_ + ttl END, args, options, tenant, tags, key,
            CASE WHEN key IS NOT NULL THEN room END,
            CASE WHEN key IS NOT NULL THEN CASE WHEN flags & 8 <> 0 THEN 0 ELSE -priority END END, unique_key
        FROM spec ORDER BY place
        ON CONFLICT (id) DO NOTHING
        RETURNING seq, queue, priority, task, state, flags
    ), moves AS (
        INSERT INTO lane_news (queue, priority, state, n)
        SELECT queue, priority, state, count(*) FROM stored GROUP BY queue, priority, state
    ), stats AS (
        INSERT INTO stat_news (minute, queue, task, kind, bucket, n)
        SELECT now_ - now_ % 60000, queue, task, 0, 0, count(*) FROM stored GROUP BY queue, task
    )
    SELECT
        array_agg(seq), array_agg(seq) FILTER (WHERE flags & 512 <> 0), array_agg(DISTINCT queue)
    INTO mine, staged, queues FROM stored;
    fresh := ARRAY(
        SELECT j.seq FROM unnest(p_ids, holders) WITH ORDINALITY x(id, holder, place)
        LEFT JOIN job j ON j.id = x.id AND j.seq + 0 > before_ AND x.holder IS NULL ORDER BY x.place
    );
    IF num_nonnulls(VARIADIC fresh) > coalesce(cardinality(mine), 0) THEN
        -- Some of them have been stored by somebody else just now.
        fresh := ARRAY(
            SELECT CASE WHEN f.seq = ANY (mine) THEN f.seq END FROM unnest(fresh) WITH ORDINALITY f(seq, place)
            ORDER BY f.place
        );
    END IF;
    IF cardinality(p_child_places) > 0 THEN
        PERFORM tie_to_parents(p_ids, holders, fresh, p_child_places, p_parents, p_parent_spots);
    END IF;
    IF staged IS NOT NULL THEN
        PERFORM admit_new(staged, queues, p_defer, now_);
    END IF;
    PERFORM ring();
    IF NOT p_defer AND random() < 0.002 THEN
        PERFORM fold();
    END IF;
    RETURN QUERY
    SELECT x.place::integer, encode(uuid_send(coalesce(x.holder, x.id)), 'hex')
    FROM unnest(p_ids, holders, fresh) WITH ORDINALITY x(id, holder, seq, place) WHERE x.seq IS NULL;
END $$;

-- Takes the unique keys that are free, for the jobs that are new. Answers, by place, the jobs that hold the others.
-- `p_passing`: places of jobs that will give theirs back at once; a later job of the batch may have it.
CREATE OR REPLACE FUNCTION take_unique(
    p_ids uuid[], p_places integer[], p_keys text[], p_periods bigint[], p_passing integer[], p_now bigint
) RETURNS uuid[] LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM unique_key WHERE ctid = ANY (
        ARRAY(SELECT ctid FROM unique_key WHERE key = ANY (p_keys) AND until <= p_now ORDER BY key FOR UPDATE)
    );
    LOOP
        BEGIN
            RETURN take_unique_in_order(p_ids, p_places, p_keys, p_periods, p_passing, p_now);
        EXCEPTION WHEN SQLSTATE 'FY002' THEN
            -- All that were taken are given back: whoever waits for a key must not hold a later one.
            CONTINUE;
        END;
    END LOOP;
END $$;

-- Raises FY002 if a key was given back that had been found taken.
CREATE OR REPLACE FUNCTION take_unique_in_order(
    p_ids uuid[], p_places integer[], p_keys text[], p_periods bigint[], p_passing integer[], p_now bigint
) RETURNS uuid[] LANGUAGE plpgsql AS $$
DECLARE
    holders uuid[] := array_fill(NULL::uuid, ARRAY[cardinality(p_ids)]);
    holder_place integer;
    w record;
BEGIN
    -- One that passes it on takes it only if nobody else of the batch wants it.
    INSERT INTO unique_key (key, id, until)
    SELECT DISTINCT ON (x.key COLLATE "C") x.key, p_ids[x.place], p_now + x.period
    FROM unnest(p_places, p_keys, p_periods) x(place, key, period)
    WHERE NOT EXISTS (SELECT 1 FROM job j WHERE j.id = p_ids[x.place])
    ORDER BY x.key COLLATE "C", x.period IS NULL AND x.place = ANY (p_passing), x.place
    ON CONFLICT (key) DO NOTHING;
    FOR w IN
        SELECT x.place, u.id, x.period IS NULL AND x.place = ANY (p_passing) AS passes
        FROM unnest(p_places, p_keys, p_periods) x(place, key, period)
        LEFT JOIN unique_key u ON u.key = x.key COLLATE "C"
        WHERE NOT EXISTS (SELECT 1 FROM job j WHERE j.id = p_ids[x.place])
    LOOP
        IF w.id IS NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'FY002', MESSAGE = 'a unique key has been given back';
        END IF;
        holder_place := CASE WHEN w.passes THEN array_position(p_ids, w.id) END;
        -- Not if the holder comes after it, or passes the key on, too.
        IF holder_place IS NULL OR NOT (holder_place > w.place OR holder_place = ANY (p_passing)) THEN
            holders[w.place] := nullif(w.id, p_ids[w.place]);
        END IF;
    END LOOP;
    RETURN holders;
END $$;

-- Places of jobs of a batch whose parents have failed already, or are of this batch and such jobs themselves.
CREATE OR REPLACE FUNCTION born_cancelled(p_specs jsonb, p_places integer[], p_parents uuid[], p_spots integer[])
RETURNS integer[] LANGUAGE plpgsql AS $$
DECLARE
    found_ integer[] := '{}';
    c record;
BEGIN
    FOR c IN
        SELECT x.child, x.parent, x.spot FROM unnest(p_places, p_parents, p_spots) x(child, parent, spot)
        WHERE (p_specs -> (x.child - 1) ->> 'flags')::integer & 6 = 0 ORDER BY x.child
    LOOP
        IF (c.spot < c.child AND c.spot = ANY (found_))
            OR EXISTS (SELECT 1 FROM job f WHERE f.id = c.parent AND f.state + 0 > 5)
        THEN
            found_ := found_ || c.child;
        END IF;
    END LOOP;
    RETURN found_;
END $$;

-- Stores who waits for whom. `p_spots`: the places in the batch of parents that are of this batch. Such a parent has to
-- come before its child, or have been known before; if it is a duplicate, the child waits for the job that stands for it.
CREATE OR REPLACE FUNCTION tie_to_parents(
    p_ids uuid[], p_holders uuid[], p_seqs bigint[], p_places integer[], p_parents uuid[], p_spots integer[]
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    children bigint[];
    parents uuid[];
    lost integer;
BEGIN
    SELECT
        array_agg(p_seqs[c.child] ORDER BY c.number),
        array_agg(
            CASE WHEN c.spot < c.child THEN coalesce(p_holders[c.spot], c.parent) ELSE c.parent END ORDER BY c.number
        ),
        min(c.number) FILTER (
            WHERE p_seqs[c.child] IS NOT NULL AND (
                (c.spot >= c.child AND p_seqs[c.spot] IS NOT NULL) OR NOT EXISTS (
                    SELECT 1 FROM job j WHERE j.id =
                        CASE WHEN c.spot < c.child THEN coalesce(p_holders[c.spot], c.parent) ELSE c.parent END
                )
            )
        )
    INTO children, parents, lost
    FROM unnest(p_places, p_parents, p_spots) WITH ORDINALITY c(child, parent, spot, number);
    IF lost IS NOT NULL THEN
        RAISE EXCEPTION USING ERRCODE = 'FY010', MESSAGE =
            'job ' || encode(uuid_send(p_ids[p_places[lost]]), 'hex')
            || ' (' || (SELECT task FROM job WHERE seq = children[lost]) || ') is to wait for job '
            || encode(uuid_send(parents[lost]), 'hex') || ', which the store does not have;'
            || ' it was never enqueued, or its retention has passed';
    END IF;
    -- A parent that has succeeded by now may be pruned before its child is admitted, and is done with at once.
    INSERT INTO parent (child, place, parent, done)
    SELECT c.child, min(c.number), c.parent, EXISTS (SELECT 1 FROM job f WHERE f.id = c.parent AND f.state + 0 = 5)
    FROM unnest(children, parents) WITH ORDINALITY c(child, parent, number)
    WHERE c.child IS NOT NULL GROUP BY c.child, c.parent;
END $$;
