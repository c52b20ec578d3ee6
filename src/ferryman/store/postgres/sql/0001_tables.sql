-- The tables. Times are milliseconds. What is long lies out of line by itself (TOAST), so that a job's row is small
-- however often claims and settles write it anew. An index that a plain job never enters is partial. Whatever makes jobs
-- ready keeps lane_head in mind, and counts are kept by news: see places.sql.

CREATE TABLE queue (
    name text COLLATE "C" PRIMARY KEY,
    paused boolean NOT NULL DEFAULT false,
    fair boolean NOT NULL DEFAULT false,
    weights jsonb NOT NULL DEFAULT '{}',        -- tenant -> share
    max_size bigint,
    overflow text NOT NULL DEFAULT 'reject'
);

CREATE TABLE job (
    seq bigint GENERATED ALWAYS AS IDENTITY,    -- the number of arrival
    id uuid NOT NULL,
    enqueued_at bigint NOT NULL,
    run_at bigint NOT NULL,                     -- when due; for ready jobs, since when they are ready
    deadline bigint,
    started_at bigint,
    finished_at bigint,
    result_until bigint,
    tag double precision NOT NULL DEFAULT 0,    -- place in a fair lane
    lease integer NOT NULL DEFAULT 0,           -- claims so far: the fence
    worker integer,                             -- worker.id
    flags integer NOT NULL DEFAULT 0,           -- FLAG of store/rows.py
    attempt integer NOT NULL DEFAULT 0,
    max_attempts integer NOT NULL,
    deaths smallint NOT NULL DEFAULT 0,
    state smallint NOT NULL,                    -- ferryman.job.State
    priority smallint NOT NULL,
    queue text COLLATE "C" NOT NULL,
    task text COLLATE "C" NOT NULL,
    args bytea NOT NULL,
    options bytea,
    result bytea,
    reason text,
    progress double precision,
    key text COLLATE "C",
    room integer,                               -- places that its key had when it was enqueued
    rank integer,                               -- order among the parked jobs of a key: smaller is sooner
    missing integer,                            -- parents that are still to finish
    tenant text,
    tags text[],
    unique_key text COLLATE "C"                 -- must be free when it is replayed
) WITH (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000,
        autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);
CREATE UNIQUE INDEX job_id ON job (id);
CREATE UNIQUE INDEX job_seq ON job (seq);
CREATE INDEX job_ready ON job (queue, priority, tag, seq) WHERE state = 2;
CREATE INDEX job_running ON job (worker) WHERE state = 4;
-- In the order in which they may be deleted: a result that is to be kept longer keeps its job.
CREATE INDEX job_finished ON job (state, greatest(finished_at, coalesce(result_until, 0))) WHERE state >= 5;
CREATE INDEX job_scheduled ON job (run_at, seq) WHERE state = 1;
CREATE INDEX job_waiting ON job (seq) WHERE state = 0;
CREATE INDEX job_staged ON job (seq) WHERE state = 0 AND flags & 512 <> 0;
CREATE INDEX job_parked ON job (key, rank, seq) WHERE state = 3;
CREATE INDEX job_deadline ON job (deadline) WHERE deadline IS NOT NULL AND state < 4;
CREATE INDEX job_result_until ON job (result_until) WHERE result_until IS NOT NULL AND flags & 256 = 0;
CREATE INDEX job_tags ON job USING gin (tags) WHERE tags IS NOT NULL;
-- For people who look for the jobs of a queue or a task that is rare among many. Of finished jobs alone, which are the
-- many: so a job enters it once in its life, with its last change. Without seq, equal entries are stored once with a
-- list of places, some 8 bytes a job; the few that are found are sorted. (Those of a queue that is not rare are found
-- on the way through job_seq.) Finding by task asks for all queues, which lane knows.
CREATE INDEX job_shelf ON job (queue, task) WHERE state >= 5;

-- Attempts that did not succeed.
CREATE TABLE attempt (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seq bigint NOT NULL,
    number integer NOT NULL,
    kind smallint NOT NULL,                     -- ferryman.job.OutcomeKind
    worker integer NOT NULL,
    started_at bigint NOT NULL,
    finished_at bigint NOT NULL,
    error bytea,                                -- MessagePack of ferryman.job.ErrorInfo
    reason text
);
CREATE INDEX attempt_job ON attempt (seq, id);

CREATE TABLE note (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    seq bigint NOT NULL, at bigint NOT NULL, attempt integer NOT NULL, text text NOT NULL
);
CREATE INDEX note_job ON note (seq, id);

-- Who waits for whom. A row stays after it was done, as history.
CREATE TABLE parent (
    child bigint NOT NULL,                      -- job.seq
    place integer NOT NULL,                     -- its place in `after`
    parent uuid NOT NULL,                       -- job.id
    done boolean NOT NULL,
    PRIMARY KEY (child, place)
);
CREATE INDEX parent_of ON parent (parent, child);

CREATE TABLE unique_key (
    key text COLLATE "C" PRIMARY KEY,
    id uuid NOT NULL,                           -- the job that has it
    until bigint                                -- NULL: until the job starts or finishes
);
CREATE INDEX unique_key_job ON unique_key (id);
CREATE INDEX unique_key_until ON unique_key (until) WHERE until IS NOT NULL;

-- Keys that have unfinished jobs: how many places, how many of them taken, how many such jobs.
CREATE TABLE room (
    key text COLLATE "C" PRIMARY KEY, room integer NOT NULL, used integer NOT NULL, jobs integer NOT NULL
);

-- Fair lanes: virtual time, and the last tag of each tenant that is ahead of it.
CREATE TABLE lane_clock (
    queue text COLLATE "C" NOT NULL, priority smallint NOT NULL, clock double precision NOT NULL,
    PRIMARY KEY (queue, priority)
);
-- Where the ready jobs of a lane began a moment ago: a claim that starts there does not go through all that others
-- have taken since the last vacuum. A hint, for lanes in order of arrival: see `claim`.
CREATE TABLE lane_head (
    queue text COLLATE "C" NOT NULL, priority smallint NOT NULL,
    seq bigint NOT NULL, until bigint NOT NULL, PRIMARY KEY (queue, priority)
) WITH (fillfactor = 20);
CREATE TABLE tenant (
    queue text COLLATE "C" NOT NULL, priority smallint NOT NULL, tenant text COLLATE "C" NOT NULL,
    tag double precision NOT NULL, PRIMARY KEY (queue, priority, tenant)
);
CREATE INDEX tenant_tag ON tenant (queue, priority, tag);       -- those that are ahead of nothing are forgotten

-- How far a pruning came in a walk past finished jobs that it has to leave, by the (first) state that it looks at; and until
-- when it need not begin anew, once it has been at the end. See `prune`.
CREATE TABLE prune_mark (state smallint PRIMARY KEY, over bigint NOT NULL, until bigint);

-- How many jobs of a lane are in each state: the sum of a base and of news, so that no two transactions write one row.
CREATE TABLE lane_base (
    queue text COLLATE "C" NOT NULL, priority smallint NOT NULL,
    counts bigint[] NOT NULL,                   -- by ferryman.job.State, nine of them
    PRIMARY KEY (queue, priority)
);
CREATE TABLE lane_news (
    id bigint GENERATED ALWAYS AS IDENTITY,
    queue text COLLATE "C" NOT NULL, priority smallint NOT NULL,
    state smallint NOT NULL, n integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
-- Base and news together.
CREATE VIEW lane AS
SELECT
    queue, priority,
    ARRAY[
        coalesce(sum(n) FILTER (WHERE state = 0), 0)::bigint, coalesce(sum(n) FILTER (WHERE state = 1), 0)::bigint,
        coalesce(sum(n) FILTER (WHERE state = 2), 0)::bigint, coalesce(sum(n) FILTER (WHERE state = 3), 0)::bigint,
        coalesce(sum(n) FILTER (WHERE state = 4), 0)::bigint, coalesce(sum(n) FILTER (WHERE state = 5), 0)::bigint,
        coalesce(sum(n) FILTER (WHERE state = 6), 0)::bigint, coalesce(sum(n) FILTER (WHERE state = 7), 0)::bigint,
        coalesce(sum(n) FILTER (WHERE state = 8), 0)::bigint
    ] AS counts
FROM (
    SELECT b.queue, b.priority, (c.place - 1)::smallint AS state, c.n
    FROM lane_base b, unnest(b.counts) WITH ORDINALITY c(n, place)
    UNION ALL
    SELECT queue, priority, state, n FROM lane_news
) l GROUP BY queue, priority;

-- One row per minute, queue, task, kind of number and histogram bucket; base and news as above.
CREATE TABLE stat_base (
    minute bigint NOT NULL, queue text COLLATE "C" NOT NULL, task text COLLATE "C" NOT NULL,
    kind smallint NOT NULL,                     -- STAT of ferryman.store.minutes
    bucket smallint NOT NULL, n bigint NOT NULL,
    PRIMARY KEY (minute, queue, task, kind, bucket)
);
CREATE TABLE stat_news (
    minute bigint NOT NULL, queue text COLLATE "C" NOT NULL, task text COLLATE "C" NOT NULL,
    kind smallint NOT NULL, bucket smallint NOT NULL, n integer NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE worker (
    id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,    -- history names workers that are long gone
    name text COLLATE "C" NOT NULL UNIQUE,      -- ferryman.job.WorkerId
    info bytea NOT NULL,                        -- MessagePack of ferryman.store.records.WorkerInfo
    status bytea NOT NULL,
    queues text[],                              -- NULL: all
    listens boolean NOT NULL DEFAULT true,      -- wants to be notified
    registered_at bigint NOT NULL,
    seen_at bigint NOT NULL,
    lease_until bigint NOT NULL,
    gone smallint                               -- 1 stopped, 2 dead, 3 either, and pruned save for its name
) WITH (fillfactor = 50);
CREATE INDEX worker_alive ON worker (id) WHERE gone IS NULL;
CREATE INDEX worker_gone ON worker (id) WHERE gone < 3;     -- not by seen_at, which each heartbeat writes

CREATE TABLE worker_order (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    worker integer NOT NULL, kind text NOT NULL, job uuid,
    lease integer,                              -- of the job, when the order was left
    reason text
);
CREATE INDEX worker_order_of ON worker_order (worker);

CREATE TABLE lock (name text COLLATE "C" PRIMARY KEY, owner text NOT NULL, token bigint NOT NULL, until bigint NOT NULL);
CREATE TABLE kv (key text COLLATE "C" PRIMARY KEY, value bytea NOT NULL, version bigint NOT NULL, until bigint);
CREATE INDEX kv_until ON kv (until) WHERE until IS NOT NULL;
CREATE SEQUENCE lock_token;
CREATE SEQUENCE kv_version;
