-- Prune: finished jobs whose time is over or that are too many, and the small things that age.

-- `p_ages` (ms) and `p_most` are for succeeded, dead, and other jobs. Answers as ferryman.store.records.Pruned.
CREATE OR REPLACE FUNCTION prune(
    p_ages bigint[], p_most bigint[], p_stats bigint, p_workers bigint, p_limit bigint, p_now bigint,
    OUT jobs bigint, OUT more boolean
)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    now_ bigint := coalesce(p_now, ferryman_now());
    excess_ bigint[];
    part record;
    seqs_ bigint[] := '{}';
    overs_ bigint[] := '{}';
BEGIN
    PERFORM durable();
    jobs := 0;
    more := false;
    -- One at a time: to others it would be a wait at the gate for what is gone by then.
    IF NOT pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.prune', 0)) THEN
        RETURN;
    END IF;
    PERFORM fold();
    -- ferryman.store.records.ARRIVING.
    IF NOT EXISTS (SELECT 1 FROM kv WHERE key = 'ferryman.arriving' AND (until IS NULL OR until > now_)) THEN
        SELECT ARRAY[sum(counts[6]) - p_most[1], sum(counts[7]) - p_most[2], sum(counts[8] + counts[9]) - p_most[3]]
        INTO excess_ FROM lane;
        FOR place IN 1..3 LOOP
            part := oldest_finished(
                4 + place, CASE WHEN place = 3 THEN 8 END, now_ - p_ages[place], coalesce(excess_[place], 0),
                p_limit - cardinality(seqs_), now_
            );
            seqs_ := seqs_ || part.seqs;
            overs_ := overs_ || part.overs;
            more := more OR part.more;
        END LOOP;
    END IF;
    -- Finished jobs come to life again, and get children, under the gate alone: so it is enough to look once more.
    PERFORM gate();
    more := prune_small(now_ - p_stats, now_ - p_workers, p_limit, now_) OR more;
    seqs_ := ARRAY(
        SELECT j.seq FROM unnest(seqs_, overs_) x(seq, over) JOIN job j ON j.seq = x.seq
        WHERE j.state >= 5 AND greatest(j.finished_at, coalesce(j.result_until, 0)) = x.over AND NOT is_wanted(j.id)
    );
    IF cardinality(seqs_) > 0 THEN
        PERFORM erase(seqs_);
    END IF;
    jobs := cardinality(seqs_);
END $$;

-- Whether an unfinished child, be it staged still, wants the result of this job. Of many, the youngest will be the last to
-- finish. Where the planner expects many children of each, a join would go through all jobs; and were the parent said to be
-- equal, the children of all in the order of their numbers.
CREATE OR REPLACE FUNCTION is_wanted(p_id uuid) RETURNS boolean LANGUAGE plpgsql STABLE AS $$
BEGIN
    RETURN EXISTS (
        SELECT 1 FROM (
            SELECT (SELECT c.state FROM job c WHERE c.seq = p.child) AS state
            FROM parent p
            WHERE (p.parent, p.child) >= (p_id, 0) AND (p.parent, p.child) <= (p_id, 9223372036854775807)
            ORDER BY p.parent DESC, p.child DESC OFFSET 0
        ) x WHERE x.state < 5
    );
END $$;

-- Jobs of a state, or of either of two, in the order in which they may be deleted, which is by the moment when they were
-- over: all before a moment, and of the others so many that `p_excess` are answered in all.
--
-- Parents stay whose result an unfinished child wants. There may be a million of them, and they are the oldest: so a walk
-- passes some thousand and leaves a mark where the next one goes on, and when one has come to the end, none begins anew
-- within a minute. A walk that meets few of them leaves no mark.
CREATE OR REPLACE FUNCTION oldest_finished(
    p_state integer, p_or_state integer, p_before bigint, p_excess bigint, p_limit bigint, p_now bigint,
    OUT seqs bigint[], OUT overs bigint[], OUT more boolean
) LANGUAGE plpgsql
-- Whatever the planner believes of how many there are, nothing is sorted.
SET enable_bitmapscan = off SET enable_sort = off AS $$
DECLARE
    few constant integer := 1000;
    many constant integer := 5000;
    mark prune_mark;
    f record;
    wanted integer := 0;
    reached bigint;
    found_seqs bigint[] := '{}';
    found_overs bigint[] := '{}';
    bound bigint := CASE WHEN p_excess > 0 THEN 9223372036854775807 ELSE p_before END;
BEGIN
    seqs := '{}';
    overs := '{}';
    more := p_limit <= 0;
    IF more THEN
        RETURN;
    END IF;
    DELETE FROM prune_mark m WHERE m.state = p_state AND m.until <= p_now;
    SELECT * INTO mark FROM prune_mark m WHERE m.state = p_state;
    reached := coalesce(mark.over, -1);
    FOR f IN
        (
            SELECT j.seq, j.id, greatest(j.finished_at, coalesce(j.result_until, 0)) AS over FROM job j
            WHERE j.state = p_state AND j.state >= 5 AND greatest(j.finished_at, coalesce(j.result_until, 0)) > reached
                AND greatest(j.finished_at, coalesce(j.result_until, 0)) < bound
            ORDER BY over
        ) UNION ALL (
            SELECT j.seq, j.id, greatest(j.finished_at, coalesce(j.result_until, 0)) AS over FROM job j
            WHERE j.state = p_or_state AND j.state >= 5 AND greatest(j.finished_at, coalesce(j.result_until, 0)) > reached
                AND greatest(j.finished_at, coalesce(j.result_until, 0)) < bound
            ORDER BY over
        ) ORDER BY over
    LOOP
        -- Those that were over at the same moment are looked at together, unless they are very many: the first that arrived
        -- go first, and the mark stands between moments.
        IF f.over > reached OR cardinality(found_seqs) >= p_limit + many THEN
            EXIT WHEN f.over >= p_before AND cardinality(found_seqs) >= p_excess;
            more := wanted >= many OR cardinality(found_seqs) >= p_limit;
            EXIT WHEN more;
        END IF;
        reached := f.over;
        IF is_wanted(f.id) THEN
            wanted := wanted + 1;
        ELSE
            found_seqs := found_seqs || f.seq;
            found_overs := found_overs || f.over;
        END IF;
    END LOOP;
    SELECT coalesce(array_agg(c.seq ORDER BY c.place), '{}'), coalesce(array_agg(c.over ORDER BY c.place), '{}')
    INTO seqs, overs FROM (
        SELECT x.seq, x.over, row_number() OVER (ORDER BY x.over, x.seq) AS place
        FROM unnest(found_seqs, found_overs) x(seq, over)
    ) c WHERE c.place <= p_limit AND (c.over < p_before OR c.place <= p_excess);
    IF cardinality(seqs) < cardinality(found_seqs) THEN
        more := more OR cardinality(seqs) >= p_limit;
        reached := found_overs[cardinality(seqs) + 1] - 1;
    END IF;
    IF mark.state IS NOT NULL OR wanted > few THEN
        INSERT INTO prune_mark AS m (state, over, until)
        VALUES (p_state, reached, CASE WHEN more THEN NULL ELSE p_now + 60000 END)
        ON CONFLICT (state) DO UPDATE SET over = excluded.over, until = coalesce(m.until, excluded.until);
    END IF;
END $$;

-- What somebody else has locked is in use again, or goes anyway: nobody is waited for. The gate is held. Answers whether
-- there may be more.
CREATE OR REPLACE FUNCTION prune_small(p_minute bigint, p_seen bigint, p_limit bigint, p_now bigint) RETURNS boolean
LANGUAGE plpgsql AS $$
DECLARE
    gone_ bigint;
    most_ bigint;
BEGIN
    DELETE FROM stat_base WHERE minute < p_minute;
    -- A minute later than they are over: see coordinate.sql.
    DELETE FROM lock WHERE name IN (SELECT name FROM lock WHERE until <= p_now - 60000 FOR UPDATE SKIP LOCKED);
    DELETE FROM kv WHERE key IN (SELECT key FROM kv WHERE until <= p_now - 60000 LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS most_ = ROW_COUNT;
    DELETE FROM unique_key WHERE key IN (
        SELECT key FROM unique_key WHERE until <= p_now LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone_ = ROW_COUNT;
    most_ := greatest(most_, gone_);
    DELETE FROM tenant WHERE ctid = ANY (ARRAY(
        SELECT t.ctid FROM lane_clock c CROSS JOIN LATERAL (
            SELECT x.ctid FROM tenant x WHERE x.queue = c.queue AND x.priority = c.priority AND x.tag <= c.clock
            ORDER BY x.tag LIMIT p_limit
        ) t LIMIT p_limit
    ));
    GET DIAGNOSTICS gone_ = ROW_COUNT;
    most_ := greatest(most_, gone_);
    UPDATE job SET result = NULL, flags = flags | 256 WHERE seq IN (
        SELECT seq FROM job WHERE result_until IS NOT NULL AND flags & 256 = 0 AND result_until <= p_now
        ORDER BY result_until LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone_ = ROW_COUNT;
    most_ := greatest(most_, gone_);
    -- Their names stay, since histories of jobs tell them.
    UPDATE worker SET gone = 3, info = '', status = '' WHERE gone < 3 AND seen_at < p_seen;
    RETURN most_ >= p_limit;
END $$;
