-- What becomes of others when a job finishes: its key's next job, its unique key, its children. The gate is held.
--
-- What other files call:
--
--   cancel_pending(p_seq bigint, p_reason text, p_now bigint) -> boolean
--                          Locks the job and writes down that it is CANCELLED, if it still is pending (else: false),
--                          and counts that. The caller passes its seq to let_go.
--   end_pending(p_seq bigint, p_state smallint, p_reason text, p_now bigint) -> boolean
--                          The same for another finished state.
--   end_plain(p_seqs bigint[], p_state smallint, p_reason text, p_now bigint)
--                          The same for many whose end concerns nobody else.
--   let_go(p_seqs bigint[], p_now bigint)
--                          Gives back what jobs held that have just reached a finished state (written and counted
--                          already, flags untouched), and tells their children, and theirs, in this order.
--                          Cheap for jobs that concern nobody else; does not ring.
--   concerns_others(p_flags integer, p_key text) -> boolean
--                          Whether the end of such a job needs let_go, and so the gate. Inlined.

CREATE OR REPLACE FUNCTION concerns_others(p_flags integer, p_key text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$ SELECT p_key IS NOT NULL OR p_flags & 97 <> 0 $$;

CREATE OR REPLACE FUNCTION cancel_pending(p_seq bigint, p_reason text, p_now bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
BEGIN
    RETURN end_pending(p_seq, 7::smallint, p_reason, p_now);
END $$;

CREATE OR REPLACE FUNCTION end_pending(p_seq bigint, p_state smallint, p_reason text, p_now bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    j record;
BEGIN
    SELECT queue, priority, state INTO j FROM job WHERE seq = p_seq FOR UPDATE;
    IF NOT found OR j.state >= 4 THEN
        RETURN false;
    END IF;
    UPDATE job SET state = p_state, finished_at = p_now, reason = coalesce(p_reason, reason) WHERE seq = p_seq;
    PERFORM count_move(j.queue, j.priority, j.state, p_state);
    RETURN true;
END $$;

-- Those of these jobs that still are pending, all at once. Rows that somebody is leasing just now are waited for.
CREATE OR REPLACE FUNCTION end_plain(p_seqs bigint[], p_state smallint, p_reason text, p_now bigint) RETURNS void
LANGUAGE plpgsql AS $$
BEGIN
    WITH before AS MATERIALIZED (
        SELECT seq, state FROM job WHERE seq = ANY (p_seqs) AND state + 0 < 4 ORDER BY seq FOR UPDATE
    ), ended AS (
        UPDATE job j SET state = p_state, finished_at = p_now, reason = coalesce(p_reason, j.reason)
        FROM before b WHERE j.seq = b.seq RETURNING j.queue, j.priority, b.state
    )
    INSERT INTO lane_news (queue, priority, state, n)
    SELECT e.queue, e.priority, s.state, sum(s.sign) FROM ended e
    CROSS JOIN LATERAL (VALUES (e.state, -1), (p_state, 1)) s(state, sign) GROUP BY e.queue, e.priority, s.state;
END $$;

CREATE OR REPLACE FUNCTION let_go(p_seqs bigint[], p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    todo bigint[];
    next_ integer := 1;
    j record;
BEGIN
    todo := ARRAY(
        SELECT f.seq FROM unnest(p_seqs) WITH ORDINALITY x(seq, place) JOIN job f ON f.seq = x.seq
        WHERE concerns_others(f.flags, f.key) ORDER BY x.place
    );
    WHILE next_ <= cardinality(todo) LOOP
        SELECT seq, id, flags, key, state INTO j FROM job WHERE seq = todo[next_];
        next_ := next_ + 1;
        -- One that was never admitted does not belong to its key yet.
        IF j.key IS NOT NULL AND j.flags & 512 = 0 THEN
            IF j.flags & 16 <> 0 THEN
                UPDATE job SET flags = flags & ~16 WHERE seq = j.seq;
                PERFORM free_place(j.key, p_now);
            END IF;
            PERFORM leave_key(j.key);
        END IF;
        IF j.flags & 96 <> 0 THEN
            DELETE FROM unique_key WHERE id = j.id AND until IS NULL;
        END IF;
        IF j.flags & 1 <> 0 THEN
            todo := todo || tell_children(j.id, j.state = 5, p_now);
        END IF;
    END LOOP;
END $$;

-- All at once, however many there are, but for those that have to ask for a place of their key or in a fair lane. Those that
-- are staged will look for themselves. Answers the children that were cancelled and whose end, in turn, concerns others.
CREATE OR REPLACE FUNCTION tell_children(p_parent uuid, p_succeeded boolean, p_now bigint) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    plain bigint[];
    asking bigint[];
    doomed bigint[];
    one bigint;
BEGIN
    SELECT
        array_agg(c.seq) FILTER (WHERE c.goes_on AND NOT c.asks),
        array_agg(c.seq ORDER BY c.seq) FILTER (WHERE c.goes_on AND c.asks),
        array_agg(c.seq) FILTER (WHERE NOT c.goes_on AND c.flags & 4 = 0)
    INTO plain, asking, doomed FROM (
        SELECT
            j.seq, j.flags, p_succeeded OR j.flags & 2 <> 0 AS goes_on,
            j.missing = 1 AND j.run_at <= p_now
                AND (j.key IS NOT NULL OR j.queue IN (SELECT q.name FROM queue q WHERE q.fair)) AS asks
        FROM parent p JOIN job j ON j.seq = p.child
        WHERE p.parent = p_parent AND NOT p.done AND j.state + 0 = 0 AND j.flags & 512 = 0 ORDER BY j.seq FOR UPDATE OF j
    ) c;
    UPDATE parent SET done = true WHERE parent = p_parent AND child = ANY (plain || asking);
    IF plain IS NOT NULL THEN
        PERFORM go_on(plain, p_now);
    END IF;
    FOREACH one IN ARRAY coalesce(asking, '{}') LOOP
        PERFORM enter(one, NULL, p_now);
    END LOOP;
    IF doomed IS NULL THEN
        RETURN '{}';
    END IF;
    WITH ended AS (
        UPDATE job SET
            state = 7, finished_at = p_now, reason = 'parent ' || encode(uuid_send(p_parent), 'hex') || ' did not succeed'
        WHERE seq = ANY (doomed) RETURNING queue, priority
    )
    INSERT INTO lane_news (queue, priority, state, n)
    SELECT e.queue, e.priority, s.state, s.sign * count(*) FROM ended e
    CROSS JOIN (VALUES (0::smallint, -1), (7::smallint, 1)) s(state, sign) GROUP BY e.queue, e.priority, s.state, s.sign;
    RETURN ARRAY(SELECT seq FROM job WHERE seq = ANY (doomed) AND concerns_others(flags, key) ORDER BY seq + 0);
END $$;

-- Waiting jobs have one parent less to wait for: after the last one only their moment is left, if that is still to come. They
-- ask for nothing.
CREATE OR REPLACE FUNCTION go_on(p_seqs bigint[], p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH gone_on AS (
        UPDATE job SET
            state = CASE WHEN missing > 1 THEN 0 WHEN run_at > p_now THEN 1 ELSE 2 END,
            missing = nullif(missing - 1, 0), tag = 0,
            run_at = CASE WHEN missing > 1 THEN run_at ELSE greatest(run_at, p_now) END
        WHERE seq = ANY (p_seqs) RETURNING queue, priority, state
    )
    INSERT INTO lane_news (queue, priority, state, n)
    SELECT g.queue, g.priority, s.state, s.sign * count(*) FROM gone_on g
    CROSS JOIN LATERAL (VALUES (0::smallint, -1), (g.state, 1)) s(state, sign)
    WHERE g.state > 0 GROUP BY g.queue, g.priority, s.state, s.sign;
    PERFORM forget_heads();
END $$;
