-- Named locks with fencing tokens, and a small key-value table with compare-and-set. `p_now` is NULL, or the time
-- of a test's clock.
--
-- Rows are not deleted when they are given up: their end is set to 0, and prune takes them away when they have been
-- over for a minute. So a row that others compete for is always there, and its number is drawn while it is locked:
-- numbers of one name grow in the order in which they are handed out. (One that is inserted draws its number before;
-- there was none for that long.)

-- Take or renew; answers the token, or NULL if another owner holds it.
CREATE OR REPLACE FUNCTION lock_take(p_name text, p_owner text, p_ttl bigint, p_now bigint) RETURNS bigint
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
DECLARE
    now_ bigint := coalesce(p_now, ferryman_now());
    token_ bigint;
BEGIN
    PERFORM durable();
    INSERT INTO lock AS l (name, owner, token, until) VALUES (p_name, p_owner, nextval('lock_token'), now_ + p_ttl)
    ON CONFLICT (name) DO UPDATE SET
        token = CASE WHEN l.owner = p_owner AND l.until > now_ THEN l.token ELSE nextval('lock_token') END,
        owner = p_owner, until = now_ + p_ttl
    WHERE l.owner = p_owner OR l.until <= now_
    RETURNING l.token INTO token_;
    RETURN token_;
END $$;

CREATE OR REPLACE FUNCTION lock_give_back(p_name text, p_owner text, p_now bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
BEGIN
    PERFORM durable();
    UPDATE lock SET until = 0 WHERE name = p_name AND owner = p_owner AND until > coalesce(p_now, ferryman_now());
    RETURN found;
END $$;

-- Compare and set; answers the new version, or NULL if the comparison failed.
CREATE OR REPLACE FUNCTION kv_put(
    p_key text, p_value bytea, p_expected bigint, p_ttl bigint, p_own boolean, p_now bigint
) RETURNS bigint LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
DECLARE
    now_ bigint := coalesce(p_now, ferryman_now());
    version_ bigint;
BEGIN
    PERFORM durable();
    IF p_own THEN
        PERFORM lose_patience();
    END IF;
    IF p_expected IS NULL THEN
        -- In two steps: one would lock the row of a key that it does not get, until the end of a user's transaction that
        -- waits for whoever has it. A row that is over may go between the two.
        WHILE version_ IS NULL LOOP
            INSERT INTO kv (key, value, version, until) VALUES (p_key, p_value, nextval('kv_version'), now_ + p_ttl)
            ON CONFLICT DO NOTHING RETURNING version INTO version_;
            EXIT WHEN version_ IS NOT NULL;
            UPDATE kv SET value = p_value, version = nextval('kv_version'), until = now_ + p_ttl
            WHERE key = p_key AND until <= now_ RETURNING version INTO version_;
            EXIT WHEN EXISTS (SELECT 1 FROM kv WHERE key = p_key AND (until IS NULL OR until > now_));
        END LOOP;
    ELSE
        UPDATE kv SET value = p_value, version = nextval('kv_version'), until = now_ + p_ttl
        WHERE key = p_key AND version = p_expected AND (until IS NULL OR until > now_)
        RETURNING version INTO version_;
    END IF;
    RETURN version_;
END $$;

CREATE OR REPLACE FUNCTION kv_delete(p_key text, p_own boolean, p_now bigint) RETURNS boolean
LANGUAGE plpgsql SET search_path = @schema@, pg_temp SET jit = off SET enable_seqscan = off AS $$
BEGIN
    PERFORM durable();
    IF p_own THEN
        PERFORM lose_patience();
    END IF;
    UPDATE kv SET value = '', until = 0
    WHERE key = p_key AND (until IS NULL OR until > coalesce(p_now, ferryman_now()));
    RETURN found;
END $$;
