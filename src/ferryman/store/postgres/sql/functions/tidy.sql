-- Tidy: room that old versions of rows take up. A server looks for it once a minute, in which a million jobs may pass.

-- Tables in which dead rows are half as many as live ones. One that was vacuumed is left alone for as long as it would
-- take to vacuum it some times: a transaction that stays open keeps all of it from being of use. Whoever does not
-- own the tables may not.
CREATE OR REPLACE FUNCTION bloated() RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = @schema@, pg_temp AS $$
    SELECT c.relname::text FROM pg_class c
    WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
        AND pg_stat_get_dead_tuples(c.oid) > 10000 + greatest(c.reltuples, pg_stat_get_live_tuples(c.oid)) / 2
        AND coalesce(
            greatest(pg_stat_get_last_vacuum_time(c.oid), pg_stat_get_last_autovacuum_time(c.oid)), '-infinity'
        ) < clock_timestamp() - make_interval(secs => 5 + c.relpages / 20000.0)
        AND pg_has_role(c.relowner, 'USAGE')
$$;
