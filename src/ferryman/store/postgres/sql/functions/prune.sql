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
    seqs_ bigint[] := '{}';
BEGIN
    PERFORM durable();
    PERFORM fold();
    -- Finished jobs come to life again, and get children, under the gate alone: it is enough to look once.
    PERFORM gate();
    jobs := 0;
    more := prune_small(now_ - p_stats, now_ - p_workers, p_limit, now_);
    -- ferryman.store.records.ARRIVING.
    IF EXISTS (SELECT 1 FROM kv WHERE key = 'ferryman.arriving' AND (until IS NULL OR until > now_)) THEN
        RETURN;
    END IF;
    SELECT ARRAY[sum(counts[6]) - p_most[1], sum(counts[7]) - p_most[2], sum(counts[8] + counts[9]) - p_most[3]]
    INTO excess_ FROM lane;
    seqs_ := oldest_finished(5, 5, now_ - p_ages[1], excess_[1], p_limit);
    seqs_ := seqs_ || oldest_finished(6, 6, now_ - p_ages[2], excess_[2], p_limit - cardinality(seqs_));
    seqs_ := seqs_ || oldest_finished(7, 8, now_ - p_ages[3], excess_[3], p_limit - cardinality(seqs_));
    IF cardinality(seqs_) > 0 THEN
        PERFORM erase(seqs_);
    END IF;
    jobs := cardinality(seqs_);
    more := more OR jobs >= p_limit;
END $$;

-- Jobs of some states in the order in which they may be deleted: all that were over before a moment, and of the
-- others so many that `p_excess` are answered in all. Parents stay whose result an unfinished child wants, be it staged
-- still.
CREATE OR REPLACE FUNCTION oldest_finished(
    p_from integer, p_to integer, p_before bigint, p_excess bigint, p_limit bigint
) RETURNS bigint[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT seq FROM (
            SELECT f.seq, f.over, row_number() OVER (ORDER BY f.over, f.seq) AS place
            FROM generate_series(p_from, p_to) s CROSS JOIN LATERAL (
                SELECT j.seq, greatest(j.finished_at, coalesce(j.result_until, 0)) AS over FROM job j
                WHERE j.state = s AND j.state >= 5
                    AND greatest(j.finished_at, coalesce(j.result_until, 0))
                        < CASE WHEN p_excess > 0 THEN 9223372036854775807 ELSE p_before END
                    -- For each by itself (OFFSET 0): else the planner may begin with all parents.
                    AND NOT EXISTS (
                        SELECT 1 FROM parent p JOIN job c ON c.seq = p.child WHERE p.parent = j.id AND c.state < 5
                        OFFSET 0)
                ORDER BY greatest(j.finished_at, coalesce(j.result_until, 0)) LIMIT p_limit
            ) f
        ) o
        WHERE over < p_before OR place <= p_excess ORDER BY place LIMIT p_limit
    );
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
    DELETE FROM tenant t USING lane_clock c WHERE c.queue = t.queue AND c.priority = t.priority AND t.tag <= c.clock;
    UPDATE job SET result = NULL, flags = flags | 256 WHERE seq IN (
        SELECT seq FROM job WHERE result_until IS NOT NULL AND flags & 256 = 0 AND result_until <= p_now
        ORDER BY result_until LIMIT p_limit FOR UPDATE SKIP LOCKED);
    GET DIAGNOSTICS gone_ = ROW_COUNT;
    most_ := greatest(most_, gone_);
    -- Their names stay, since histories of jobs tell them.
    UPDATE worker SET gone = 3, info = '', status = '' WHERE gone < 3 AND seen_at < p_seen;
    RETURN most_ >= p_limit;
END $$;
