-- Tally: counts and statistics are appended as news, so that no two transactions write one row; the sum of base and news
-- is the truth. `fold` adds the news to the base. Whoever finds somebody else at it leaves it to them.

CREATE OR REPLACE FUNCTION fold() RETURNS void LANGUAGE plpgsql SET jit = off AS $$
BEGIN
    IF may_fold() THEN
        PERFORM fold_lanes();
        PERFORM fold_stats();
    END IF;
EXCEPTION WHEN OTHERS THEN
    -- Whoever came by has more important things to do, such as a heartbeat. The news stay, and count all the same.
    RAISE WARNING 'ferryman could not sum up its counts: %', SQLERRM;
END $$;

CREATE OR REPLACE FUNCTION may_fold() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.fold', 0));
END $$;

CREATE OR REPLACE FUNCTION fold_lanes() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH news AS (
        DELETE FROM lane_news RETURNING queue, priority, state, n
    ), sums AS (
        SELECT queue, priority, ARRAY[
            coalesce(sum(n) FILTER (WHERE state = 0), 0), coalesce(sum(n) FILTER (WHERE state = 1), 0),
            coalesce(sum(n) FILTER (WHERE state = 2), 0), coalesce(sum(n) FILTER (WHERE state = 3), 0),
            coalesce(sum(n) FILTER (WHERE state = 4), 0), coalesce(sum(n) FILTER (WHERE state = 5), 0),
            coalesce(sum(n) FILTER (WHERE state = 6), 0), coalesce(sum(n) FILTER (WHERE state = 7), 0),
            coalesce(sum(n) FILTER (WHERE state = 8), 0)
        ] AS c FROM news GROUP BY queue, priority
    )
    INSERT INTO lane_base AS b (queue, priority, counts) SELECT queue, priority, c FROM sums
    ON CONFLICT (queue, priority) DO UPDATE SET counts = ARRAY[
        b.counts[1] + excluded.counts[1], b.counts[2] + excluded.counts[2], b.counts[3] + excluded.counts[3],
        b.counts[4] + excluded.counts[4], b.counts[5] + excluded.counts[5], b.counts[6] + excluded.counts[6],
        b.counts[7] + excluded.counts[7], b.counts[8] + excluded.counts[8], b.counts[9] + excluded.counts[9]
    ];
END $$;

CREATE OR REPLACE FUNCTION fold_stats() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    WITH news AS (
        DELETE FROM stat_news RETURNING minute, queue, task, kind, bucket, n
    )
    INSERT INTO stat_base AS b (minute, queue, task, kind, bucket, n)
    SELECT minute, queue, task, kind, bucket, sum(n) FROM news GROUP BY minute, queue, task, kind, bucket
    ON CONFLICT (minute, queue, task, kind, bucket) DO UPDATE SET n = b.n + excluded.n;
END $$;
