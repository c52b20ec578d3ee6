-- What becomes of others when a job finishes: its key's next job, its unique key, its children. The gate is held.
--
-- What other files call:
--
--   cancel_pending(p_seq bigint, p_reason text, p_now bigint) -> boolean
--                          Locks the job and writes down that it is CANCELLED, if it still is pending (else: false),
--                          and counts that. The caller passes its seq to let_go.
--   end_pending(p_seq bigint, p_state smallint, p_reason text, p_now bigint) -> boolean
--                          The same for another finished state.
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

-- Answers the children that were cancelled, whose own children are to be told. Those that are staged will look for
-- themselves.
CREATE OR REPLACE FUNCTION tell_children(p_parent uuid, p_succeeded boolean, p_now bigint) RETURNS bigint[]
LANGUAGE plpgsql AS $$
DECLARE
    cancelled bigint[] := '{}';
    c record;
BEGIN
    FOR c IN
        SELECT j.seq, p.place, j.flags, j.missing, j.run_at, j.queue, j.priority
        FROM parent p JOIN job j ON j.seq = p.child
        WHERE p.parent = p_parent AND NOT p.done AND j.state = 0 AND j.flags & 512 = 0 ORDER BY j.seq
    LOOP
        IF p_succeeded OR c.flags & 2 <> 0 THEN
            UPDATE parent SET done = true WHERE child = c.seq AND place = c.place;
            IF c.missing > 1 THEN
                UPDATE job SET missing = missing - 1 WHERE seq = c.seq;
            ELSIF c.run_at > p_now THEN
                -- It waits for no other any more, but still for its moment.
                UPDATE job SET state = 1, missing = NULL WHERE seq = c.seq;
                PERFORM count_move(c.queue, c.priority, 0::smallint, 1::smallint);
            ELSE
                PERFORM enter(c.seq, NULL, p_now);
            END IF;
        ELSIF c.flags & 4 = 0 THEN
            PERFORM cancel_pending(
                c.seq, 'parent ' || encode(uuid_send(p_parent), 'hex') || ' did not succeed', p_now
            );
            cancelled := cancelled || c.seq;
        END IF;
    END LOOP;
    RETURN cancelled;
END $$;
