-- Letting jobs into their lanes: the gate, places of keys, tags of fair queues; and what every verb has to write down.
--
-- What other files call. Names of verbs' own functions are those of their verbs.
--
--   gate()                 Takes the gate: one change of what jobs share at a time, until the transaction ends. Call
--                          it before any row of job is locked. If rows are locked already (`locking()` was called
--                          in this transaction) it does not wait: it raises FY001, after which the runner begins the
--                          transaction anew with the gate. Taking it twice is harmless.
--   try_gate() -> boolean  The same, but answers false if somebody else has it.
--   locking()              To be called before rows of job are locked without the gate.
--   is_locking() -> boolean  Whether it was.
--   begin_again()          Raises FY001.
--   durable()              Every verb that writes calls this first: a claim that shares its transaction is synced too.
--   lose_patience()        To be called before something is waited for that a user's own transaction may hold for ever,
--                          and regain_patience() before anything else is, such as the gate. Not inside such a transaction.
--   now_or(p_now) -> bigint               The given moment, or the server's.
--   ring(p_always DEFAULT false)          Wakes sleeping workers at commit: call it once, if a job has become READY or
--                                         SCHEDULED, was staged, or (p_always) an order was left.
--   count_move(p_queue text, p_priority smallint, p_before smallint, p_after smallint, p_count integer DEFAULT 1)
--                                         NULL: from or to nothing. Appends to lane_news.
--   count_stat(p_queue text, p_task text, p_kind smallint, p_bucket smallint, p_count integer, p_now bigint)
--   bucket_of(p_us bigint) -> smallint    As ferryman.policy.latency.bucket_of.
--   is_fair(p_queue text) -> boolean
--   next_tag(p_queue text, p_priority smallint, p_tenant text) -> double precision     Gate held.
--   enter(p_seq bigint, p_run_at bigint, p_now bigint) -> smallint
--                                         Gate held. Lets a job that wants to run now into its lane, or parks it;
--                                         from whatever state it is in, which it counts. `p_run_at` is the moment
--                                         since when it is ready, NULL: now. Answers the new state, 2 or 3.
--   rejoin_key(p_key text, p_room integer)                  Gate held. Counts a replayed job to its key.
--   forget_heads()         To be called when jobs became READY without `enter`: some may be ahead of where claims begin.
--   free_place(p_key text, p_now bigint), leave_key(p_key text)        Gate held. Used by let_go.
--
-- What to know about others:
--   Unique keys are taken before the gate, in sorted order, and whoever has the gate waits for no row of unique_key
--   that somebody may be about to take: delete expired ones FOR UPDATE SKIP LOCKED.
--   A claim takes READY rows, and a settle RUNNING ones, without the gate: lock rows FOR UPDATE in order of seq, and
--   look at their state again after that.
--   A staged job (WAITING, flag 512) belongs to no key yet and has told no parent; cancel_pending and let_go know.
--   A function that is called from outside sets `search_path`, and `enable_seqscan = off`, so that no plan is kept from
--   the time when tables were small. What is off makes plans seem dear, for which the server would compile them: so
--   `jit = off` goes with it.
--   Plans are made when a session first performs a statement, perhaps on empty tables, and kept while these grow. So rows that
--   are looked up by id or seq are looked up by nothing else that has an index, be it a partial one: `state + 0 = 5`,
--   `seq + 0 > x`. And where two lists are joined, one of them must be a table: nested loops over both are all that is left.
--   Only enqueue and admit deal with staged jobs. One may be cancelled, deleted and reprioritised like others.

-- The server's time, which moves on within a transaction.
CREATE OR REPLACE FUNCTION ferryman_now() RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint $$;

CREATE OR REPLACE FUNCTION now_or(p_now bigint) RETURNS bigint LANGUAGE sql VOLATILE AS
$$ SELECT coalesce(p_now, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) $$;

-- -- the gate ------------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION try_gate() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN pg_try_advisory_xact_lock(hashtextextended(current_schema() || '.gate', 0));
END $$;

-- Whoever holds rows must not wait for the gate: who has it may wait for those rows.
CREATE OR REPLACE FUNCTION gate() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF NOT is_locking() THEN
        PERFORM pg_advisory_xact_lock(hashtextextended(current_schema() || '.gate', 0));
    ELSIF NOT try_gate() THEN
        PERFORM begin_again();
    END IF;
END $$;

CREATE OR REPLACE FUNCTION begin_again() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the gate is needed: begin the transaction again with it' USING ERRCODE = 'FY001';
END $$;

CREATE OR REPLACE FUNCTION locking() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('ferryman.locking', '1', true);
END $$;

CREATE OR REPLACE FUNCTION is_locking() RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN coalesce(current_setting('ferryman.locking', true), '') <> '';
END $$;

-- A claim by itself is not synced (it calls `ease`). Both last as long as the transaction, whichever came first.
CREATE OR REPLACE FUNCTION durable() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM set_config('ferryman.durable', '1', true);
    IF coalesce(current_setting('ferryman.eased', true), '') <> '' THEN
        PERFORM set_config('synchronous_commit', current_setting('ferryman.eased'), true);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION ease() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('ferryman.durable', true), '') = ''
        AND coalesce(current_setting('ferryman.eased', true), '') = ''
    THEN
        PERFORM set_config('ferryman.eased', current_setting('synchronous_commit'), true);
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
END $$;

-- Whoever waits keeps all others of its process from writing, perhaps even the one who would end that transaction. So
-- it fails soon, and its runner lets others go ahead before it tries again.
CREATE OR REPLACE FUNCTION lose_patience() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('lock_timeout') = '0' THEN
        PERFORM set_config('lock_timeout', '10ms', true), set_config('ferryman.impatient', '1', true);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION regain_patience() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF coalesce(current_setting('ferryman.impatient', true), '') <> '' THEN
        PERFORM set_config('lock_timeout', '0', true), set_config('ferryman.impatient', '', true);
    END IF;
END $$;

-- -- what every verb writes down -----------------------------------------------------------------

CREATE OR REPLACE FUNCTION ring(p_always boolean DEFAULT false) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_always OR EXISTS (SELECT 1 FROM worker WHERE gone IS NULL AND listens) THEN
        PERFORM pg_notify(current_schema(), '');
    END IF;
END $$;

CREATE OR REPLACE FUNCTION count_move(
    p_queue text, p_priority smallint, p_before smallint, p_after smallint, p_count integer DEFAULT 1
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF p_before IS NULL THEN
        INSERT INTO lane_news (queue, priority, state, n) VALUES (p_queue, p_priority, p_after, p_count);
    ELSIF p_after IS NULL THEN
        INSERT INTO lane_news (queue, priority, state, n) VALUES (p_queue, p_priority, p_before, -p_count);
    ELSIF p_before <> p_after THEN
        INSERT INTO lane_news (queue, priority, state, n)
        VALUES (p_queue, p_priority, p_before, -p_count), (p_queue, p_priority, p_after, p_count);
    END IF;
END $$;

CREATE OR REPLACE FUNCTION count_stat(
    p_queue text, p_task text, p_kind smallint, p_bucket smallint, p_count integer, p_now bigint
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO stat_news (minute, queue, task, kind, bucket, n)
    VALUES (p_now - p_now % 60000, p_queue, p_task, p_kind, p_bucket, p_count);
END $$;

-- How far a duration is shifted until four bits of it are left: from 8 µs on, each power of two moves it by one.
CREATE OR REPLACE FUNCTION bucket_shift(p_us bigint) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT width_bucket(p_us, '{8,16,32,64,128,256,512,1024,2048,4096,8192,16384,32768,65536,131072,262144,524288,1048576,
        2097152,4194304,8388608,16777216,33554432,67108864,134217728,268435456,536870912,1073741824,
        2147483648,4294967296,8589934592,17179869184,34359738368,68719476736,137438953472,274877906944,
        549755813888,1099511627776,2199023255552,4398046511104,8796093022208,17592186044416,35184372088832,
        70368744177664,140737488355328,281474976710656,562949953421312,1125899906842624,2251799813685248,
        4503599627370496,9007199254740992,18014398509481984,36028797018963968,72057594037927936,144115188075855872,
        288230376151711744,576460752303423488,1152921504606846976,2305843009213693952,4611686018427387904}'::bigint[]) - 1
$$;

-- As ferryman.policy.latency.bucket_of.
CREATE OR REPLACE FUNCTION bucket_of(p_us bigint) RETURNS smallint LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (CASE WHEN p_us < 8 THEN greatest(p_us, 0) ELSE
        bucket_shift(p_us) * 8
        + (p_us >> bucket_shift(p_us))
    END)::smallint
$$;

-- -- fair queues ---------------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION is_fair(p_queue text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    RETURN EXISTS (SELECT 1 FROM queue WHERE name = p_queue AND fair);
END $$;

-- Start-time fair queueing (Goyal, Vin and Cheng, 1996): the later of the lane's virtual time and the tenant's last
-- tag, plus the cost of one job.
CREATE OR REPLACE FUNCTION next_tag(p_queue text, p_priority smallint, p_tenant text) RETURNS double precision
LANGUAGE plpgsql AS $$
DECLARE
    name_ text := coalesce(p_tenant, '');
    cost double precision;
    virtual double precision;
    tag_ double precision;
BEGIN
    SELECT 1.0 / coalesce((weights ->> name_)::double precision, 1.0) INTO cost FROM queue WHERE name = p_queue;
    SELECT clock INTO virtual FROM lane_clock WHERE queue = p_queue AND priority = p_priority;
    IF NOT found THEN
        INSERT INTO lane_clock (queue, priority, clock) VALUES (p_queue, p_priority, 0) ON CONFLICT DO NOTHING;
        virtual := 0;
    END IF;
    INSERT INTO tenant AS t (queue, priority, tenant, tag) VALUES (p_queue, p_priority, name_, virtual + cost)
    ON CONFLICT (queue, priority, tenant) DO UPDATE SET tag = greatest(t.tag, virtual) + cost
    RETURNING t.tag INTO tag_;
    RETURN tag_;
END $$;

-- -- entering a lane -----------------------------------------------------------------------------

CREATE OR REPLACE FUNCTION enter(p_seq bigint, p_run_at bigint, p_now bigint) RETURNS smallint
LANGUAGE plpgsql AS $$
DECLARE
    j record;
BEGIN
    SELECT queue, priority, state, flags, key, tenant INTO j FROM job WHERE seq = p_seq;
    IF j.key IS NOT NULL AND j.flags & 16 = 0 THEN
        UPDATE room SET used = used + 1 WHERE key = j.key AND used < room;
        IF NOT found THEN
            UPDATE job SET state = 3, flags = flags & ~512, missing = NULL WHERE seq = p_seq;
            PERFORM count_move(j.queue, j.priority, j.state, 3::smallint);
            RETURN 3;
        END IF;
        j.flags := j.flags | 16;
    END IF;
    PERFORM enter_lane(p_seq, j.flags, p_run_at, p_now, j.queue, j.priority, j.state, j.tenant);
    RETURN 2;
END $$;

CREATE OR REPLACE FUNCTION enter_lane(
    p_seq bigint, p_flags integer, p_run_at bigint, p_now bigint, p_queue text, p_priority smallint, p_before smallint,
    p_tenant text
) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    tag_ double precision := 0;
BEGIN
    IF is_fair(p_queue) THEN
        tag_ := next_tag(p_queue, p_priority, p_tenant);
    END IF;
    UPDATE job SET state = 2, flags = p_flags & ~512, tag = tag_, run_at = coalesce(p_run_at, p_now), missing = NULL
    WHERE seq = p_seq;
    PERFORM count_move(p_queue, p_priority, p_before, 2::smallint);
    PERFORM forget_head(p_queue, p_priority);
END $$;

-- Not if somebody is at it just now: a hint is void after half a second anyway.
CREATE OR REPLACE FUNCTION forget_heads() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE lane_head SET until = 0 WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM lane_head WHERE until > 0 FOR UPDATE SKIP LOCKED
    ));
END $$;

CREATE OR REPLACE FUNCTION forget_head(p_queue text, p_priority smallint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM lane_head WHERE queue = p_queue AND priority = p_priority AND until > 0) THEN
        PERFORM forget_heads();
    END IF;
END $$;

-- -- keys ----------------------------------------------------------------------------------------

-- What later jobs said of its places (see `admit`) goes on to hold.
CREATE OR REPLACE FUNCTION rejoin_key(p_key text, p_room integer) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO room (key, room, used, jobs) VALUES (p_key, p_room, 0, 1)
    ON CONFLICT (key) DO UPDATE SET jobs = room.jobs + 1;
END $$;

CREATE OR REPLACE FUNCTION free_place(p_key text, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE room SET used = used - 1 WHERE key = p_key;
    PERFORM admit_parked(p_key, p_now);
END $$;

-- A key is forgotten with its last job.
CREATE OR REPLACE FUNCTION leave_key(p_key text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    UPDATE room SET jobs = jobs - 1 WHERE key = p_key AND jobs > 1;
    IF NOT found THEN
        DELETE FROM room WHERE key = p_key;
    END IF;
END $$;

-- Lets parked jobs of a key into their lanes while it has room, in order.
CREATE OR REPLACE FUNCTION admit_parked(p_key text, p_now bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    free integer;
    j record;
BEGIN
    SELECT room - used INTO free FROM room WHERE key = p_key;
    IF free <= 0 THEN
        RETURN;
    END IF;
    FOR j IN
        SELECT seq, queue, priority, flags, tenant FROM job WHERE state = 3 AND key = p_key
        ORDER BY rank, seq LIMIT free
    LOOP
        UPDATE room SET used = used + 1 WHERE key = p_key;
        PERFORM enter_lane(j.seq, j.flags | 16, NULL, p_now, j.queue, j.priority, 3::smallint, j.tenant);
    END LOOP;
END $$;
