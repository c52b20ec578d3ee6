-- The register of workers: leases, orders, and rescuing the jobs of those that died. A lease belongs to the worker:
-- renewing it is one row, however many jobs it holds.

CREATE OR REPLACE FUNCTION register(
    p_worker text, p_info bytea, p_status bytea, p_queues text[], p_lease bigint, p_now bigint
) RETURNS void
LANGUAGE plpgsql SET search_path = @schema@, pg_temp AS $$
DECLARE
    now_ bigint := now_or(p_now);
BEGIN
    PERFORM durable();
    INSERT INTO worker (name, info, status, queues, registered_at, seen_at, lease_until)
    VALUES (p_worker, p_info, p_status, p_queues, now_, now_, now_ + p_lease)
    ON CONFLICT (name) DO UPDATE SET
        info = excluded.info, queues = excluded.queues, seen_at = excluded.seen_at, lease_until = excluded.lease_until,
        listens = true;
END $$;

-- Forgets the orders that were heard, and answers the others, in their order. One about a job stands no more once that
-- lease has ended.
CREATE OR REPLACE FUNCTION heartbeat(p_worker text, p_status bytea, p_lease bigint, p_heard bigint, p_now bigint)
RETURNS TABLE (id bigint, stands boolean, kind text, job text, reason text)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    now_ bigint := now_or(p_now);
    w record;
BEGIN
    PERFORM durable();
    SELECT * INTO w FROM find_worker(p_worker);
    UPDATE worker x SET status = p_status, seen_at = now_, lease_until = now_ + p_lease
    WHERE x.id = w.id AND x.gone IS NULL;
    IF NOT found THEN
        -- Taken for dead just now.
        PERFORM find_worker(p_worker);
    END IF;
    DELETE FROM worker_order o WHERE o.worker = w.id AND o.id <= p_heard;
    RETURN QUERY SELECT o.id,
        o.job IS NULL OR EXISTS (SELECT 1 FROM job j WHERE j.id = o.job AND j.state + 0 = 4 AND j.lease = o.lease),
        o.kind, encode(uuid_send(o.job), 'hex'), o.reason
    FROM worker_order o WHERE o.worker = w.id ORDER BY o.id;
    PERFORM fold();
END $$;

-- What it still holds is settled as crashed, without counting a death.
CREATE OR REPLACE FUNCTION leave(p_worker text, p_now bigint) RETURNS void
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
    worker_ integer;
    message text := 'worker ' || p_worker || ' left before the job was done';
BEGIN
    PERFORM durable();
    PERFORM gate();
    PERFORM pg_advisory_xact_lock(worker_lock(p_worker));
    UPDATE worker SET gone = 1 WHERE name = p_worker AND gone IS NULL RETURNING id INTO worker_;
    IF found THEN
        PERFORM take_back(
            worker_, pack_error('WorkerLeft', message), 'WorkerLeft: ' || message, 0::smallint, now_or(p_now)
        );
        DELETE FROM worker_order WHERE worker = worker_;
        PERFORM ring();
    END IF;
END $$;

-- Workers whose lease has ended, or that are known to be dead: whom `rescue` would take off the register. A look without
-- the gate, since there is seldom anybody.
CREATE OR REPLACE FUNCTION lost_workers(p_dead text[], p_late boolean, p_now bigint) RETURNS text[] LANGUAGE plpgsql AS $$
BEGIN
    RETURN ARRAY(
        SELECT name FROM worker WHERE gone IS NULL AND ((p_late AND lease_until <= p_now) OR name = ANY (p_dead)) ORDER BY id
    );
END $$;

-- Takes back all running jobs of workers that are lost. Answers for each how many run again, and how many died.
CREATE OR REPLACE FUNCTION rescue(p_dead text[], p_late boolean, p_now bigint) RETURNS TABLE (worker text, again integer, dead integer)
LANGUAGE plpgsql
SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    now_ bigint := now_or(p_now);
    name_ text;
    worker_ integer;
    message text;
    fate record;
BEGIN
    PERFORM durable();
    IF lost_workers(p_dead, p_late, now_) = '{}' THEN
        RETURN;
    END IF;
    PERFORM gate();
    FOREACH name_ IN ARRAY lost_workers(p_dead, p_late, now_) LOOP
        PERFORM pg_advisory_xact_lock(worker_lock(name_));
        -- It may have renewed its lease meanwhile.
        UPDATE worker w SET gone = 2
        WHERE w.name = name_ AND w.gone IS NULL AND ((p_late AND w.lease_until <= now_) OR name_ = ANY (p_dead))
        RETURNING w.id INTO worker_;
        CONTINUE WHEN NOT found;
        message := 'worker ' || name_ || ' died';
        SELECT * INTO fate FROM take_back(
            worker_, pack_error('WorkerLost', message), 'WorkerLost: ' || message, 1::smallint, now_
        );
        DELETE FROM worker_order o WHERE o.worker = worker_;
        RETURN QUERY SELECT name_, fate.again, fate.died;
    END LOOP;
    PERFORM ring();
END $$;

-- MessagePack of ferryman.job.ErrorInfo without a traceback. No backslashes: what these mean is a setting of the database.
CREATE OR REPLACE FUNCTION pack_error(p_type text, p_message text) RETURNS bytea LANGUAGE plpgsql AS $$
BEGIN
    RETURN decode('93', 'hex') || pack_text(p_type) || pack_text(p_message) || decode('a0', 'hex');
END $$;

CREATE OR REPLACE FUNCTION pack_text(p_text text) RETURNS bytea LANGUAGE plpgsql AS $$
DECLARE
    raw bytea := convert_to(p_text, 'UTF8');
    size integer := length(raw);
BEGIN
    RETURN CASE
        WHEN size < 32 THEN set_byte(decode('00', 'hex'), 0, 160 + size)
        WHEN size < 256 THEN set_byte(decode('d900', 'hex'), 1, size)
        ELSE decode('da', 'hex') || substr(int4send(size), 3, 2)
    END || raw;
END $$;

-- Settles all running jobs of a worker as crashed. The gate is held.
CREATE OR REPLACE FUNCTION take_back(
    p_worker integer, p_error bytea, p_cause text, p_deaths smallint, p_now bigint, OUT again integer, OUT died integer
) LANGUAGE plpgsql AS $$
DECLARE
    j record;
    state_ smallint;
BEGIN
    again := 0;
    died := 0;
    -- One of them may have completed in a transaction of its own that goes on: others wait at the gate meanwhile.
    PERFORM lose_patience();
    PERFORM 1 FROM job WHERE state = 4 AND worker = p_worker ORDER BY seq FOR UPDATE;
    PERFORM regain_patience();
    FOR j IN SELECT seq, started_at FROM job WHERE state = 4 AND worker = p_worker ORDER BY seq LOOP
        state_ := settle_leased(
            j.seq, 6::smallint, greatest(0, p_now - j.started_at) * 1000, 0, p_error, p_cause, NULL, p_deaths, p_now
        );
        again := again + (state_ = 2)::integer;
        died := died + (state_ = 6)::integer;
    END LOOP;
END $$;

-- Answers for how many workers the order was left.
CREATE OR REPLACE FUNCTION leave_orders(p_workers text[], p_kind text, p_job uuid, p_reason text) RETURNS integer
LANGUAGE plpgsql SET search_path = @schema@, pg_temp AS $$
DECLARE
    count_ integer;
BEGIN
    PERFORM durable();
    -- Orders are heard up to a number: so numbers are drawn in the order of the commits.
    PERFORM gate();
    INSERT INTO worker_order (worker, kind, job, lease, reason)
    SELECT w.id, p_kind, p_job, (SELECT j.lease FROM job j WHERE j.id = p_job), p_reason
    FROM worker w WHERE w.gone IS NULL AND w.name = ANY (p_workers) ORDER BY w.id;
    GET DIAGNOSTICS count_ = ROW_COUNT;
    IF count_ > 0 THEN
        PERFORM ring(true);
    END IF;
    RETURN count_;
END $$;
